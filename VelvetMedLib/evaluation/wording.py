"""How a written report's words compare with a reference's: BLEU, ROUGE-L, CIDEr-D and, by a local model, BERTScore.

Words say little of truth: a report with one "no" too many scores almost full marks. Read them beside `evaluation.reports`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.evaluation.bootstrap import Measure, mean

ORDER = 4
"""Longest n-gram of BLEU and CIDEr."""
CIDER_SIGMA = 6.0
TextModel = Callable[[str], NDArray[np.float32]]
"""A text to the unit vectors of its tokens, [T, D]."""


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits, as ROUGE's reference implementation takes them."""
    return re.findall(r"[a-z0-9]+", text.lower())


def measures(texts: Sequence[str], references: Sequence[str], text_model: TextModel | None = None) -> dict[str, Measure]:
    """By name, over cases in one order. BERTScore only with a model."""
    out = {f"BLEU-{n}": bleu(texts, references, n) for n in range(1, ORDER + 1)}
    out["ROUGE-L"] = mean([rouge_l(text, reference) for text, reference in zip(texts, references, strict=True)])
    out["CIDEr"] = mean(cider(texts, references))
    if text_model is not None:
        out["BERTScore"] = mean([bert_score(text, reference, text_model) for text, reference in zip(texts, references, strict=True)])
    return out


def bleu(texts: Sequence[str], references: Sequence[str], order: int = ORDER) -> Measure:
    """Corpus BLEU, 0 to 1 (Papineni et al. 2002), counted by sacrebleu with its 13a tokens, case kept; exponential smoothing."""
    from sacrebleu.metrics.bleu import BLEU

    # effective_order only quietens a warning here: the counts are the same, and the score below is taken without it.
    metric = BLEU(max_ngram_order=order, effective_order=True)
    scored = [metric.sentence_score(text, [reference]) for text, reference in zip(texts, references, strict=True)]
    rows = np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scored], np.float64).reshape(-1, 2 * order + 2)

    def one(sums: NDArray[np.float64]) -> float:
        n = [round(x) for x in sums]
        if n[-1] == 0:
            return float("nan")
        score = BLEU.compute_bleu(n[:order], n[order : 2 * order], n[-2], n[-1], smooth_method="exp", max_ngram_order=order)
        return float(score.score) / 100

    return lambda weights: np.array([one(sums) for sums in weights @ rows])


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004); 0 where either has none."""
    a, b = words(text), words(reference)
    before = [0] * (len(b) + 1)
    for word in a:
        row = [0]
        for n, other in enumerate(b):
            row.append(before[n] + 1 if word == other else max(before[n + 1], row[n]))
        before = row
    return 2 * before[-1] / (len(a) + len(b)) if before[-1] else 0.0


def cider(texts: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """[cases]: CIDEr-D with one reference each (Vedantam et al. 2015): ten times the mean over n = 1..4 of the clipped cosine of tf-idf
    vectors of n-grams, less for another length. A document is one case's reference; the references give the idf."""
    grams = [[_grams(words(text), n) for n in range(1, ORDER + 1)] for text in texts]
    true = [[_grams(words(text), n) for n in range(1, ORDER + 1)] for text in references]
    frequency: Counter[tuple[str, ...]] = Counter(gram for case in true for of_order in case for gram in of_order)
    cases = max(len(true), 1)

    def weigh(counts: Counter[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
        return {gram: count * float(np.log(cases) - np.log(max(1, frequency[gram]))) for gram, count in counts.items()}

    scores = []
    for said, reference in zip(grams, true, strict=True):
        # Lengths are counted in pairs of words: so does the published code.
        apart = sum(said[1].values()) - sum(reference[1].values())
        length = float(np.exp(-(apart**2) / (2 * CIDER_SIGMA**2)))
        similar = [_clipped_cosine(weigh(a), weigh(b)) for a, b in zip(said, reference, strict=True)]
        scores.append(10.0 * length * float(np.mean(similar)))
    return np.array(scores, np.float64)


def _grams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1))


def _clipped_cosine(said: Mapping[tuple[str, ...], float], true: Mapping[tuple[str, ...], float]) -> float:
    product = sum(min(value, true[gram]) * true[gram] for gram, value in said.items() if gram in true)
    norm = float(np.sqrt(sum(v * v for v in said.values()) * sum(v * v for v in true.values())))
    return product / norm if norm > 0 else 0.0


def bert_score(text: str, reference: str, model: TextModel) -> float:
    """F1 of greedy matching by cosine (Zhang et al. 2020), without idf and without rescaling; 0 where either has no token."""
    said, true = model(text), model(reference)
    if not len(said) or not len(true):
        return 0.0
    cosine = said @ true.T
    precision, recall = float(cosine.max(1).mean()), float(cosine.max(0).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def local_text_model(folder: Path | str, *, layer: int | None = None) -> TextModel:
    """Token vectors of a transformers encoder kept in a local folder; nothing is fetched. layer: hidden layer, counted from 1; without
    it three quarters of the depth (9 of 12, as BERTScore takes for BERT-base). Special tokens are left out. Longer texts are cut at
    the model's own limit. Raises OSError or ValueError where the folder holds no such model."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    network = AutoModel.from_pretrained(str(folder), local_files_only=True, use_safetensors=True).eval()
    chosen = layer or max(1, round(0.75 * int(network.config.num_hidden_layers)))
    limit = int(getattr(network.config, "max_position_embeddings", 512))

    def vectors(text: str) -> NDArray[np.float32]:
        encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=limit, return_special_tokens_mask=True)
        ordinary = encoded.pop("special_tokens_mask")[0] == 0
        with torch.inference_mode():
            states = network(**encoded, output_hidden_states=True).hidden_states[chosen][0][ordinary]
        out: NDArray[np.float32] = torch.nn.functional.normalize(states.float(), dim=-1).numpy()
        return out

    return vectors
