"""The token layout: the worked example of the specification, cutting, subsets, refusals, and readable text back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from VelvetMedLib.errors import BundleError
from VelvetMedLib.models.text import SPECIALS, ReportTokenizer, special_tokens
from VelvetMedLib.reports import ontology

REPORT = ["No effusion.", "Small nodule."]


def test_the_worked_example_has_its_ids_types_mask_and_nine_merged_entries(published_tokenizer: ReportTokenizer) -> None:
    t = published_tokenizer
    layout = t.layout([REPORT, ["No effusion."] * 3], 512)
    words = [t.id(w) for w in ("no", "effusion", ".", "small", "nod", "##ule", ".")]
    assert layout.ids[0].tolist() == [2, 30522, *words[:3], 30523, *words[3:], 0, 0, 0]
    assert layout.type_ids[0].tolist() == [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0, 0]
    assert layout.pad_mask[0].int().tolist() == [1] * 10 + [0] * 3
    assert layout.word_index[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 7, 8, -1, -1, -1]
    assert layout.entry_sentence[0, :9].tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert layout.word_entry[0, layout.word_mask[0]].tolist() == [2, 3, 4, 6, 7, 8]
    assert layout.sentence_mask.tolist() == [[True, True, False], [True, True, True]]


def test_a_long_report_loses_whole_sentences_at_its_end(tokenizer: ReportTokenizer) -> None:
    layout = tokenizer.layout([REPORT], 9)
    assert layout.ids.shape[1] == 5 and layout.sentence_mask.sum() == 1
    assert tokenizer.layout([REPORT], 10).ids.shape[1] == 10


def test_a_first_sentence_that_is_too_long_alone_is_cut_and_no_sentence_exceeds_200_pieces(tokenizer: ReportTokenizer) -> None:
    layout = tokenizer.layout([["no " * 300]], 64)
    assert layout.ids.shape[1] == 64 and layout.word_mask.sum() == 62
    assert tokenizer.layout([["no " * 300]], 512).ids.shape[1] == 1 + 1 + 198


def test_of_sixty_sentences_fifty_are_kept_the_first_at_evaluation_and_a_random_ordered_subset_in_training(
    tokenizer: ReportTokenizer,
) -> None:
    report = [" ".join(["no"] * (n + 1)) for n in range(60)]
    evaluated = tokenizer.layout([report], 4000)
    assert torch.bincount(evaluated.entry_sentence[0])[1:].tolist() == [n + 2 for n in range(50)]
    drawn = tokenizer.layout([report], 4000, training=True, rng=np.random.default_rng(1))
    lengths = torch.bincount(drawn.entry_sentence[0])[1:].tolist()
    assert len(lengths) == 50 and lengths == sorted(lengths) and lengths[-1] > 51
    again = tokenizer.layout([report], 4000, training=True, rng=np.random.default_rng(1))
    assert torch.equal(drawn.ids, again.ids)
    with pytest.raises(ValueError, match="rng"):
        tokenizer.layout([report], 4000, training=True)


def test_a_plain_string_is_refused_at_both_depths(tokenizer: ReportTokenizer) -> None:
    with pytest.raises(TypeError, match="list of reports"):
        tokenizer.layout("No effusion.", 32)
    with pytest.raises(TypeError, match="list of reports"):
        tokenizer.layout(["No effusion."], 32)


def test_a_report_without_sentences_is_only_cls(tokenizer: ReportTokenizer) -> None:
    layout = tokenizer.layout([[], ["  "]], 32)
    assert layout.ids.tolist() == [[tokenizer.cls_id]] * 2
    assert not layout.sentence_mask.any() and not layout.word_mask.any()


def test_text_cannot_smuggle_in_special_tokens_but_slots_are_welcome(tokenizer: ReportTokenizer) -> None:
    ids = tokenizer.encode("no [SEP] [PAD] [SEN_3] nodule of [SIZE]")
    assert [tokenizer.id("[SEP]"), tokenizer.id("[PAD]"), tokenizer.id("[SEN_3]")] not in [ids[n : n + 3] for n in range(len(ids))]
    assert set(ids) & tokenizer.special_ids == {tokenizer.unk_id, tokenizer.id("[SIZE]")}


def test_decoding_joins_pieces_closes_punctuation_keeps_slots_and_begins_with_a_capital(tokenizer: ReportTokenizer) -> None:
    ids = tokenizer.encode("small nodules (1.5 mm), ground-glass, of [SIZE]. no effusion.")
    assert tokenizer.decode([tokenizer.id("[BOS]"), *ids, tokenizer.id("[EOS]")]) == (
        "Small nodules (1.5 mm), ground-glass, of [SIZE]. No effusion."
    )


def test_every_finding_state_side_site_and_severity_has_one_token(tokenizer: ReportTokenizer) -> None:
    tokens = special_tokens(ontology())
    assert len(set(tokens)) == len(tokens) and tuple(tokens[: len(SPECIALS)]) == SPECIALS
    expected = ("[F:lung_nodule]", "[S:not_assessed]", "[D:both]", "[P:lung_upper_lobe_left]", "[V:severe]")
    assert all(tokenizer.id(t) >= len(SPECIALS) for t in expected)
    assert tokenizer.vocab_size == len(tokens) + 21
    with pytest.raises(KeyError):
        tokenizer.id("[P:T12]")


def test_a_broken_tokenizer_or_one_without_the_special_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        ReportTokenizer("{}")
    with pytest.raises(BundleError, match="cannot be read"):
        ReportTokenizer(tmp_path / "absent.json")
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece

    with pytest.raises(BundleError, match="special tokens"):
        ReportTokenizer(Tokenizer(WordPiece({"[UNK]": 0}, unk_token="[UNK]")).to_str())
