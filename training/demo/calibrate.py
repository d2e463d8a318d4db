"""From validation logits to calibrated probabilities, thresholds, and the honest word 'cannot be told from chance'."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from VelvetMedLib.evaluation.probe import auroc_interval
from VelvetMedLib.shapes import FourNumbers

MINIMUM_POSITIVES = 12
CHANCE_MARGIN = 0.60
"""A finding is assessed only if the lower end of its 95 % interval of AUROC on validation is above this."""


LEAST_SLOPE = 1e-4
"""A slope above zero that moves no probability: a bundle's slopes are positive."""
FALSE_CALLS = 0.05
"""F0.5 alone, fitted to two hundred cases, called two weak findings in 36 % and 46 % of the held-out cases without them."""


FOLDS = 5
PRIOR = 0.3
"""Strength of the prior that holds the weights of evidence near zero (scikit-learn's C on standardised columns)."""


def fit_evidence(
    logit: NDArray[np.float64], summary: NDArray[np.float64], truth: NDArray[np.float64]
) -> tuple[FourNumbers | None, NDArray[np.float64]]:
    """Weights of the logit and of a kind of lesion's evidence, and the score to calibrate: for each case of validation the sum that
    the other folds' weights give. (None, the logit) where these sums do not rank better.

    The head reads tokens that it has met in training; how far it is to be trusted beside the lesion map, only other cases tell. A
    head that ranks the wrong way beside it weighs nothing.
    logit: [N]. summary: [N, 3] of `tokens.lesion_summary`. truth: as in `calibrate`.
    """
    known = np.isfinite(truth)
    label = truth[known] > 0.5
    if min(label.sum(), (~label).sum()) < MINIMUM_POSITIVES:
        return None, logit
    columns = np.column_stack([logit, summary])
    score = logit.copy()
    for others, held in StratifiedKFold(FOLDS).split(columns[known], label):
        score[np.flatnonzero(known)[held]] = columns[known][held] @ _weights(columns[known][others], label[others])
    if roc_auc_score(label, score[known]) <= roc_auc_score(label, logit[known]):
        return None, logit
    weights = _weights(columns[known], label)
    score[~known] = columns[~known] @ weights
    head, first, second, third = (round(float(w), 5) for w in weights)
    return (head, first, second, third), score


def _weights(columns: NDArray[np.float64], label: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Log-odds per unit of each column; none of the first where it would count against the finding."""
    spread = np.where(columns.std(0) > 0, columns.std(0), 1.0)
    standard = (columns - columns.mean(0)) / spread
    weights = LogisticRegression(C=PRIOR).fit(standard, label).coef_[0]
    if weights[0] < 0:
        weights = np.r_[0.0, LogisticRegression(C=PRIOR).fit(standard[:, 1:], label).coef_[0]]
    return np.asarray(weights / spread)


TRUSTS = tuple(n / 100 for n in range(5, 100, 5))
"""How much trust may be asked for in a part of a lesion map."""


def least_trust(trust: NDArray[np.float64], true: NDArray[np.bool_]) -> float:
    """The trust to ask for in a kind's parts: of best F1 over the parts of validation, 0 where dropping any of them costs more than it
    saves. trust, true: [N]."""

    def f1(least: float) -> float:
        kept = trust >= least
        return 2 * float((kept & true).sum()) / max(1.0, float(kept.sum() + true.sum()))

    best = max(TRUSTS, key=f1)
    return best if f1(best) > f1(0.0) else 0.0


@dataclass(frozen=True, kw_only=True)
class FindingCalibration:
    """probability = sigmoid(slope * logit + bias); below `absent` it is absent, from `present` on it is present.

    A logit that ranks nothing on validation, or the wrong way, moves no probability away from the prevalence.
    """

    slope: float
    bias: float
    absent: float
    present: float
    assessed: bool
    reason: str
    auroc: float | None
    auroc_low: float | None
    auroc_high: float | None
    positives: int
    negatives: int

    @property
    def prevalence(self) -> float | None:
        """Share of present among the cases where the finding is known; None where it never is."""
        known = self.positives + self.negatives
        return self.positives / known if known else None

    def probability(self, logit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of the finding being present."""
        return np.asarray(1 / (1 + np.exp(-(self.slope * logit + self.bias))))


def calibrate(logit: NDArray[np.float64], truth: NDArray[np.float64]) -> FindingCalibration:
    """Platt scaling and thresholds for one finding.

    truth: 1 present, 0 absent, NaN uncertain or not assessed (left out). The threshold for `present` is the one of
    best F0.5 on validation (a finding that is not there weighs more than one that is missed) among those that call at most
    `FALSE_CALLS` of the truly absent cases present; `absent` is where at most one in ten of the truly present cases would be called absent.
    """
    known = np.isfinite(truth)
    score, label = logit[known], truth[known] > 0.5
    positives, negatives = int(label.sum()), int((~label).sum())
    flat = {"slope": LEAST_SLOPE, "bias": float(np.log((positives + 1) / (negatives + 1)))}
    if positives < MINIMUM_POSITIVES or negatives < MINIMUM_POSITIVES:
        return FindingCalibration(
            **flat, absent=0.5, present=0.5, assessed=False,
            reason=f"too few validation cases ({positives} present, {negatives} absent)",
            auroc=None, auroc_low=None, auroc_high=None, positives=positives, negatives=negatives,
        )  # fmt: skip
    auroc, low, high = auroc_interval(label, score)
    fit = LogisticRegression(C=10.0).fit(score[:, None], label)
    slope, bias = float(fit.coef_[0, 0]), float(fit.intercept_[0])
    ranks = slope > LEAST_SLOPE
    if not ranks:
        slope, bias = flat["slope"], flat["bias"]
    probability = 1 / (1 + np.exp(-(slope * score + bias)))
    candidates = np.unique(np.clip(probability, 0.05, 0.95))

    def f_half(threshold: float) -> float:
        called = probability >= threshold
        return 1.25 * float((called & label).sum()) / float(called.sum() + 0.25 * positives)

    quiet = [t for t in candidates if (probability >= t)[~label].mean() <= FALSE_CALLS]
    present = max(quiet, key=f_half, default=float(np.nextafter(candidates[-1], 1)))
    absent = min(float(np.quantile(probability[label], 0.10)), float(present))
    told = low > CHANCE_MARGIN and ranks
    return FindingCalibration(
        slope=slope, bias=bias, absent=round(absent, 4), present=round(float(present), 4), assessed=told,
        reason="" if told else f"not told from chance on synthetic validation (AUROC {auroc:.2f}, 95 % interval {low:.2f}-{high:.2f})",
        auroc=round(auroc, 4), auroc_low=round(low, 4), auroc_high=round(high, 4), positives=positives, negatives=negatives,
    )  # fmt: skip
