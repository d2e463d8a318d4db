"""Masked words: every rule of what may be asked for and what may stand in its place."""

from __future__ import annotations

import numpy as np
import torch

from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.objectives.base import NOT_ASKED
from VelvetMedLib.objectives.masking import MaskingRule

LONG = ["No effusion, no nodules in the left lung.", "Small ground-glass nodule of [SIZE] mm in the left lung.", "5 mm nodule."]


def draws(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, n]) for n in range(count)]


def test_only_ordinary_tokens_are_asked_for_and_everything_else_stays(tokenizer: ReportTokenizer) -> None:
    layout = tokenizer.layout([LONG, LONG[:1], ["Effusion"]] * 30, 128)
    masked, labels = MaskingRule.of(tokenizer, share=0.5).masked(layout, draws(90))
    asked = labels != NOT_ASKED
    special = torch.tensor(sorted(tokenizer.special_ids))
    assert not torch.isin(layout.ids[asked], special).any(), "[CLS], [SEN_i], slots and padding are never asked for"
    assert torch.equal(labels[asked], layout.ids[asked]) and torch.equal(masked.ids[~asked], layout.ids[~asked])
    assert not asked[~layout.pad_mask].any()
    for name in ("type_ids", "pad_mask", "word_index", "entry_sentence", "word_entry"):
        assert torch.equal(getattr(masked, name), getattr(layout, name))


def test_what_stands_in_place_is_the_mask_or_an_ordinary_token_never_another_special_one(tokenizer: ReportTokenizer) -> None:
    layout = tokenizer.layout([LONG] * 300, 128)
    masked, labels = MaskingRule.of(tokenizer).masked(layout, draws(300))
    put = set(masked.ids[labels != NOT_ASKED].tolist())
    mask_id = tokenizer.id("[MASK]")
    assert put - {mask_id} <= set(tokenizer.ordinary_ids) and not put & (tokenizer.special_ids - {mask_id})
    assert len(put) > 15, "random replacements come from the whole vocabulary"


def test_fifteen_percent_are_asked_for_and_split_eighty_ten_ten(tokenizer: ReportTokenizer) -> None:
    layout = tokenizer.layout([LONG] * 2000, 128)
    masked, labels = MaskingRule.of(tokenizer).masked(layout, draws(2000))
    asked = labels != NOT_ASKED
    ordinary = torch.isin(layout.ids, torch.tensor(tokenizer.ordinary_ids))
    share = int(asked.sum()) / int(ordinary.sum())
    assert abs(share - 0.15) < 0.006, share
    now, then = masked.ids[asked], layout.ids[asked]
    as_mask, same = float((now == tokenizer.id("[MASK]")).float().mean()), float((now == then).float().mean())
    # A random token is the old one by chance once in as many draws as there are ordinary tokens.
    lucky = 0.1 / len(tokenizer.ordinary_ids)
    assert abs(as_mask - 0.8) < 0.02 and abs(same - 0.1 - lucky) < 0.02 and abs(1 - as_mask - same - 0.1 + lucky) < 0.02


def test_at_least_one_token_of_every_report_is_asked_for_also_of_one_word(tokenizer: ReportTokenizer) -> None:
    layout = tokenizer.layout([["Effusion"], ["No effusion."]] * 100, 16)
    _, labels = MaskingRule.of(tokenizer, share=1e-9).masked(layout, draws(200))
    assert ((labels != NOT_ASKED).sum(dim=1) == 1).all()
    second = labels[1::2]
    assert len(set((second != NOT_ASKED).int().argmax(dim=1).tolist())) == 3, "the one is drawn evenly, not always the first"


def test_a_report_without_words_is_left_as_it_is(tokenizer: ReportTokenizer) -> None:
    layout = tokenizer.layout([[], ["[SIZE] [COUNT]"]], 16)
    masked, labels = MaskingRule.of(tokenizer, share=0.9).masked(layout, draws(2))
    assert (labels == NOT_ASKED).all() and torch.equal(masked.ids, layout.ids)


def test_a_report_is_masked_alike_in_every_batch_and_afresh_under_another_key(tokenizer: ReportTokenizer) -> None:
    rule = MaskingRule.of(tokenizer)
    alone, _ = rule.masked(tokenizer.layout([LONG], 128), [np.random.default_rng(7)])
    among, _ = rule.masked(tokenizer.layout([["Effusion"] * 40, LONG], 512), [np.random.default_rng(1), np.random.default_rng(7)])
    length = int(alone.pad_mask.sum())
    assert torch.equal(alone.ids[0], among.ids[1, :length])
    others = [rule.masked(tokenizer.layout([LONG], 128), [np.random.default_rng(n)])[0].ids for n in range(8)]
    assert any(not torch.equal(alone.ids, other) for other in others)


def test_a_full_sequence_and_sixty_sentences_are_masked_within_their_bounds(tokenizer: ReportTokenizer) -> None:
    layout = tokenizer.layout([["No effusion in the left lung, no nodules."] * 60], 512)
    assert int(layout.sentence_mask.sum()) < 60 and layout.ids.shape[1] <= 512
    exact = tokenizer.layout([["no"] * 1 + ["no " * 197] * 3], 512)
    for one in (layout, exact):
        _, labels = MaskingRule.of(tokenizer).masked(one, draws(1))
        assert 0 < int((labels != NOT_ASKED).sum()) < one.ids.shape[1]


def test_unused_rows_of_a_bert_vocabulary_are_not_ordinary() -> None:
    from Testing.models.conftest import build

    names = ["[unused0]", "no", "##ule"]
    from VelvetMedLib.models.text import SPECIALS

    made = build({t: n for n, t in enumerate([*SPECIALS, *names])}, list(SPECIALS))
    assert [made.id(t) for t in ("no", "##ule")] == sorted(made.ordinary_ids)
