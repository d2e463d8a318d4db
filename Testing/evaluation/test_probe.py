"""The linear probe: AUROC by counting pairs, the strength chosen on validation alone, unknown findings left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("sklearn")

from sklearn.linear_model import LogisticRegression

from VelvetMedLib.evaluation.probe import FindingProbe, ProbeSplit, as_markdown, as_records, auroc_interval, linear_probe, macro_auroc


def made(n: int, seed: int, *, signal: float = 1.5) -> ProbeSplit:
    """8 features; finding 0 moves feature 0, finding 1 is chance, finding 2 is never seen."""
    rng = np.random.default_rng(seed)
    truth = np.stack([rng.random(n) < 0.4, rng.random(n) < 0.5, np.zeros(n, bool)], axis=1).astype(float)
    features = rng.normal(size=(n, 8))
    features[:, 0] += signal * truth[:, 0]
    features[:, 7] = 3.0
    return ProbeSplit(features=features, truth=truth)


def pairs_auroc(truth: NDArray[Any], score: NDArray[Any]) -> float:
    wins = [(p > q) + 0.5 * (p == q) for p in score[truth] for q in score[~truth]]
    return float(np.mean(wins))


def test_auroc_is_the_share_of_pairs_in_the_right_order_and_lies_in_its_interval() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(60) < 0.3
    score = np.round(truth + rng.normal(size=60), 1)
    auroc, low, high = auroc_interval(truth, score, draws=50)
    assert auroc == pytest.approx(pairs_auroc(truth, score))
    assert low <= auroc <= high and auroc_interval(truth, score, draws=50) == (auroc, low, high)


def test_the_probe_equals_a_plain_regression_with_the_strength_that_is_best_on_validation() -> None:
    train, val, test = made(80, 1), made(60, 2), made(70, 3)
    told, chance, never = linear_probe(train, val, test, ["nodule", "coin", "never"], draws=40, strengths=(1e-3, 1.0))
    mean, spread = train.features[:, :7].mean(0), train.features[:, :7].std(0)
    x = [(part.features[:, :7] - mean) / spread for part in (train, val, test)]
    scores: dict[float, tuple[float, float]] = {}
    for c in (1e-3, 1.0):
        fit = LogisticRegression(C=c, max_iter=2000, class_weight="balanced").fit(x[0], train.truth[:, 0] > 0.5)
        scores[c] = tuple(  # type: ignore[assignment]
            pairs_auroc(part.truth[:, 0] > 0.5, fit.decision_function(rows)) for part, rows in ((val, x[1]), (test, x[2]))
        )
    best = max(sorted(scores), key=lambda c: scores[c][0])
    assert told.strength == best and told.auroc == pytest.approx(scores[best][1])
    assert told.low is not None and told.low > 0.5
    assert chance.low is not None and chance.low < 0.5
    assert never.auroc is None and "too few" in never.reason
    assert macro_auroc([told, chance, never]) == pytest.approx((told.auroc + chance.auroc) / 2)  # type: ignore[operator]


def test_the_test_part_has_no_say_in_the_strength() -> None:
    train, val, test = made(60, 1), made(60, 2), made(60, 3)
    turned = ProbeSplit(features=test.features, truth=np.where(np.arange(3) == 0, 1 - test.truth, test.truth))
    a, b = (linear_probe(train, val, part, ["x", "y", "z"], draws=5)[0] for part in (test, turned))
    assert a.strength == b.strength and a.auroc == pytest.approx(1 - b.auroc)  # type: ignore[operator]


def test_unknown_truth_is_left_out_case_by_case() -> None:
    train, val, test = made(60, 1), made(60, 2), made(60, 3)
    wild = ProbeSplit(
        features=np.concatenate([test.features, np.full((9, 8), 50.0)]), truth=np.concatenate([test.truth, np.full((9, 3), np.nan)])
    )
    a, b = (linear_probe(train, val, part, ["x", "y", "z"], draws=5)[0] for part in (test, wild))
    assert a == b and a.positives + a.negatives == 60


def test_embeddings_without_variation_or_with_wrong_shapes_are_said_to_be_so() -> None:
    flat = ProbeSplit(features=np.ones((40, 3)), truth=np.tile([[1.0], [0.0]], (20, 1)))
    assert "varies" in linear_probe(flat, flat, flat, ["x"])[0].reason
    with pytest.raises(ValueError, match="one column"):
        linear_probe(flat, flat, flat, ["x", "y"])
    with pytest.raises(ValueError, match="finite"):
        ProbeSplit(features=np.full((4, 2), np.nan), truth=np.zeros((4, 1)))
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        ProbeSplit(features=np.ones((4, 2)), truth=np.zeros((5, 1)))


def test_the_table_shows_models_side_by_side_and_why_a_figure_is_missing() -> None:
    good = FindingProbe(finding="nodule", auroc=0.8, low=0.7, high=0.9, strength=1.0, positives=9, negatives=9)
    none = FindingProbe(
        finding="cyst", auroc=None, low=None, high=None, strength=None, positives=1, negatives=9, reason="too few test cases"
    )
    table = as_markdown({"ours": [good, none], "chance": [none]})
    assert "| nodule | 0.80 (0.70–0.90) | – |" in table and "| cyst | too few test cases | too few test cases |" in table
    assert "| **mean** | **0.800** | – |" in table
    assert as_records([good])[0]["auroc"] == 0.8 and math.isnan(macro_auroc([none]))
