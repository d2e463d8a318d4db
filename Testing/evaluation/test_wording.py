"""Metrics of words: against sacrebleu's own corpus score, definitions by brute force, and empty texts."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from VelvetMedLib.evaluation.wording import bert_score, bleu, cider, local_text_model, measures, rouge_l, words

TEXTS = ["There is a small effusion on the left. The heart is normal.", "No nodule is seen.", "The liver is normal in size."]
REFERENCES = ["There is a small pleural effusion on the left. Heart size is normal.", "No lung nodule is seen in either lung.", "A cyst."]


def test_bleu_equals_the_corpus_score_of_sacrebleu_also_on_drawn_cases() -> None:
    from sacrebleu.metrics.bleu import BLEU

    for order, counts in itertools.product((1, 2, 4), ([1, 1, 1], [2, 0, 3], [0, 1, 0])):
        texts = [t for t, n in zip(TEXTS, counts, strict=True) for _ in range(n)]
        references = [t for t, n in zip(REFERENCES, counts, strict=True) for _ in range(n)]
        slow = BLEU(max_ngram_order=order).corpus_score(texts, [references]).score / 100
        assert bleu(TEXTS, REFERENCES, order)(np.array([counts], float))[0] == pytest.approx(slow)


def slow_common(a: list[str], b: list[str]) -> int:
    """The longest common subsequence by trying all of them."""
    for length in range(min(len(a), len(b)), 0, -1):
        if set(itertools.combinations(a, length)) & set(itertools.combinations(b, length)):
            return length
    return 0


def test_rouge_l_equals_trying_all_subsequences() -> None:
    draw = np.random.default_rng(2)
    for _ in range(20):
        a, b = ([str(x) for x in draw.choice(list("abcd"), draw.integers(1, 8))] for _ in range(2))
        common = slow_common(a, b)
        precision, recall = common / len(a), common / len(b)
        expected = 2 * precision * recall / (precision + recall) if common else 0.0
        assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(expected)


def slow_cider(texts: list[str], references: list[str]) -> list[float]:
    """CIDEr-D as its paper writes it, term by term over the whole vocabulary."""

    def grams(text: str, n: int) -> list[tuple[str, ...]]:
        tokens = words(text)
        return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]

    out = []
    for text, reference in zip(texts, references, strict=True):
        by_order = []
        for n in (1, 2, 3, 4):
            said, true = Counter(grams(text, n)), Counter(grams(reference, n))
            vocabulary = sorted(set(said) | set(true))
            idf = [math.log(len(references) / max(1, sum(g in grams(r, n) for r in references))) for g in vocabulary]
            a = np.array([said[g] * w for g, w in zip(vocabulary, idf, strict=True)])
            b = np.array([true[g] * w for g, w in zip(vocabulary, idf, strict=True)])
            norm = np.linalg.norm(a) * np.linalg.norm(b)
            by_order.append(float(np.minimum(a, b) @ b / norm) if norm else 0.0)
        apart = len(grams(text, 2)) - len(grams(reference, 2))
        out.append(10 * math.exp(-(apart**2) / (2 * 6.0**2)) * sum(by_order) / 4)
    return out


def test_cider_equals_its_definition_and_is_ten_for_the_reference_itself() -> None:
    assert cider(TEXTS, REFERENCES) == pytest.approx(slow_cider(TEXTS, REFERENCES))
    long_enough = REFERENCES[:2]
    assert cider(long_enough, long_enough) == pytest.approx([10.0, 10.0])


def test_an_empty_report_scores_nothing() -> None:
    found = {name: measure(np.ones((1, 2)))[0] for name, measure in measures(["", "."], REFERENCES[:2]).items()}
    assert set(found) == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"} and max(found.values()) < 1e-6


def test_bert_score_is_the_f1_of_the_best_match_of_every_token() -> None:
    table = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [0.6, 0.8]}

    def model(text: str) -> np.ndarray:
        return np.array([table[t] for t in text.split()], np.float32).reshape(-1, 2)

    precision, recall = (1.0 + 0.8) / 2, (1.0 + 0.8) / 2
    assert bert_score("a c", "a b", model) == pytest.approx(2 * precision * recall / (precision + recall))
    assert bert_score("a b", "a b", model) == pytest.approx(1.0) and bert_score("", "a", model) == 0.0


def test_a_local_text_model_gives_unit_vectors_of_its_ordinary_tokens(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "nodule", "effusion"]))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, max_position_embeddings=12
    )
    network = transformers.BertModel(config).eval()
    network.save_pretrained(tmp_path)
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    model = local_text_model(tmp_path)
    found = model("no nodule")
    with torch.inference_mode():
        states = network(torch.tensor([[2, 5, 6, 3]]), output_hidden_states=True).hidden_states[3][0, 1:3].numpy()
    assert found == pytest.approx(states / np.linalg.norm(states, axis=1, keepdims=True), abs=1e-5)
    assert len(model("no " * 50)) == 10  # cut at the model's limit
    with pytest.raises((OSError, ValueError)):
        local_text_model(tmp_path / "nothing")
