"""Linear probe: what a frozen embedding tells about each finding, by logistic regression and AUROC with an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from VelvetMedLib.evaluation.bootstrap import estimate, resamples
from VelvetMedLib.evaluation.findings import LEAST_POSITIVES, auroc

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse regularisation strengths tried; validation chooses."""

Features = NDArray[np.floating[Any]]
Truth = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class ProbeSplit:
    """features [N, D]; truth [N, F]: 1 present, 0 absent, NaN unknown (uncertain or not assessed), left out finding by finding."""

    features: Features
    truth: Truth

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.truth.ndim != 2 or len(self.features) != len(self.truth):
            raise ValueError(f"features {self.features.shape} and truth {self.truth.shape} must be [N, D] and [N, F]")
        if not np.isfinite(self.features).all():
            raise ValueError("features hold a value that is not finite")


@dataclass(frozen=True, kw_only=True)
class FindingProbe:
    """One finding on the test part. auroc, low, high: None where `reason` says why there is none. strength: chosen on validation."""

    finding: str
    auroc: float | None
    low: float | None
    high: float | None
    strength: float | None
    positives: int
    negatives: int
    reason: str = ""


def auroc_interval(truth: NDArray[np.bool_], score: NDArray[np.float64], *, draws: int = 500, seed: int = 0) -> tuple[float, float, float]:
    """AUROC with a 95 % bootstrap interval over cases, positives and negatives drawn apart; there must be some of both."""
    weights = np.zeros((draws, len(truth)))
    for n, part in enumerate((truth, ~truth)):
        weights[:, part] = resamples(range(int(part.sum())), draws=draws, seed=(seed, n))
    found = estimate(auroc(truth.astype(np.float64), score), weights)
    assert found.value is not None and found.low is not None and found.high is not None
    return found.value, found.low, found.high


def linear_probe(
    train: ProbeSplit,
    val: ProbeSplit,
    test: ProbeSplit,
    findings: Sequence[str],
    *,
    strengths: Sequence[float] = STRENGTHS,
    draws: int = 500,
    seed: int = 0,
) -> list[FindingProbe]:
    """One logistic regression per finding on features standardised by the training part.

    The strength with the best AUROC on validation is taken (of equals the most regularised), the model stays as fitted on
    the training part, and the test part is looked at once. A part with fewer than `LEAST_POSITIVES` of either class gives no figure.
    """
    if any(part.truth.shape[1] != len(findings) for part in (train, val, test)):
        raise ValueError(f"truth must have one column for each of the {len(findings)} findings")
    mean, spread = train.features.mean(axis=0), train.features.std(axis=0)
    # A feature that never varies in training tells nothing; dividing by its spread would blow up what varies later.
    used = spread > 1e-8
    parts = [((part.features[:, used] - mean[used]) / spread[used]).astype(np.float64) for part in (train, val, test)]
    results = []
    for column, finding in enumerate(findings):
        known = [np.isfinite(part.truth[:, column]) for part in (train, val, test)]
        truth = [part.truth[k, column] > 0.5 for part, k in zip((train, val, test), known, strict=True)]
        x = [part[k] for part, k in zip(parts, known, strict=True)]
        positives, negatives = int(truth[2].sum()), int((~truth[2]).sum())
        if reason := _too_few(truth) or ("" if used.any() else "no feature varies in the training part"):
            results.append(
                FindingProbe(
                    finding=finding, auroc=None, low=None, high=None, strength=None,
                    positives=positives, negatives=negatives, reason=reason,
                )
            )  # fmt: skip
            continue
        fits = {c: _fit(x[0], truth[0], c) for c in sorted(strengths)}
        best = max(fits, key=lambda c: float(roc_auc_score(truth[1], fits[c].decision_function(x[1]))))
        value, low, high = auroc_interval(truth[2], fits[best].decision_function(x[2]), draws=draws, seed=seed)
        results.append(
            FindingProbe(finding=finding, auroc=value, low=low, high=high, strength=best, positives=positives, negatives=negatives)
        )
    return results


def _fit(x: NDArray[np.float64], truth: NDArray[np.bool_], strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=2000, class_weight="balanced").fit(x, truth)


def _too_few(truth: Sequence[NDArray[np.bool_]]) -> str:
    for name, part in zip(("training", "validation", "test"), truth, strict=True):
        positives, negatives = int(part.sum()), int((~part).sum())
        if min(positives, negatives) < LEAST_POSITIVES:
            return f"too few {name} cases ({positives} present, {negatives} absent)"
    return ""


def macro_auroc(results: Sequence[FindingProbe]) -> float:
    """Mean AUROC over the findings that have one; NaN without any."""
    values = [r.auroc for r in results if r.auroc is not None]
    return float(np.mean(values)) if values else math.nan


def as_markdown(results: Mapping[str, Sequence[FindingProbe]]) -> str:
    """One row per finding and one column per model: AUROC (95 % interval), with the mean in the last row."""
    models = list(results)
    rows = ["| finding | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    names = dict.fromkeys(r.finding for probes in results.values() for r in probes)
    for name in names:
        cells = []
        for model in models:
            own = next((r for r in results[model] if r.finding == name), None)
            told = own is not None and own.auroc is not None
            cells.append(f"{own.auroc:.2f} ({own.low:.2f}–{own.high:.2f})" if told and own else own.reason if own else "–")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    means = [macro_auroc(results[model]) for model in models]
    rows.append("| **mean** | " + " | ".join("–" if math.isnan(m) else f"**{m:.3f}**" for m in means) + " |")
    return "\n".join(rows) + "\n"


def as_records(results: Sequence[FindingProbe]) -> list[dict[str, Any]]:
    """JSON-ready."""
    return [asdict(r) for r in results]
