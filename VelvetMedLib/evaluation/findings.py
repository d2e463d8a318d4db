"""How well findings are told: ranking (AUROC, average precision), calls (F1, precision, recall) and calibration (ECE).

Every figure is a `bootstrap.Measure`, so that its interval and a paired comparison cost no second implementation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.evaluation.bootstrap import Measure, Weights, mean_of, ratio
from VelvetMedLib.reports import Finding, FindingRecord, ontology

Floats = NDArray[np.float64]
BINS = 10
"""Of equal width, for the calibration error."""
SIZES_MM = ((0.0, 10.0), (10.0, 20.0), (20.0, np.inf), (10.0, np.inf))
"""Classes of the true longest diameter of focal findings, from (including) to (excluding)."""
LEAST_POSITIVES = 5
"""Of each class: the ranking of fewer is noise, and enters no mean over findings."""
KINDS = ("focal", "diffuse", "measured organ")
TRUTH = {"present": 1.0, "absent": 0.0}


@dataclass(frozen=True, kw_only=True)
class FindingTable:
    """All cases' findings, [cases, findings] in the order of `names`.

    truth: 1 present, 0 absent, NaN where the record is unsure or could not see. score: what ranks the cases, NaN where there is none.
    probability: the score where it is meant as a probability, else NaN. called: what is called present. size_mm: of the truth, else NaN.
    """

    names: tuple[str, ...]
    truth: Floats
    score: Floats
    probability: Floats
    called: NDArray[np.bool_]
    size_mm: Floats

    @classmethod
    def of(
        cls,
        records: Sequence[Sequence[FindingRecord]],
        scores: Sequence[Mapping[str, float]],
        said: Sequence[Sequence[FindingRecord]],
        *,
        calibrated: Collection[str] = (),
    ) -> FindingTable:
        """From the truth, the scores by finding and the called findings of each case; the ontology's findings.
        calibrated: those whose scores are probabilities."""
        names = ontology().finding_names
        truth, size, called = [], [], []
        for true, told in zip(records, said, strict=True):
            known = {r.name: r for r in true}
            present = {r.name for r in told if r.state == "present"}
            truth.append([TRUTH.get(known[n].state, np.nan) if n in known else np.nan for n in names])
            size.append([known[n].size_mm if n in known and known[n].size_mm is not None else np.nan for n in names])
            called.append([n in present for n in names])
        score = np.array([[one.get(n, np.nan) for n in names] for one in scores], np.float64).reshape(-1, len(names))
        shape = (len(records), len(names))
        return cls(
            names=names,
            truth=np.array(truth, np.float64).reshape(shape),
            score=score,
            probability=np.where([n in calibrated for n in names], score, np.nan),
            called=np.array(called, bool).reshape(shape),
            size_mm=np.array(size, np.float64).reshape(shape),
        )

    @property
    def known(self) -> NDArray[np.bool_]:
        return np.isfinite(self.truth)

    @property
    def present(self) -> NDArray[np.bool_]:
        return self.truth == 1.0

    def columns(self, kind: str) -> list[int]:
        """Of the findings of a kind, or of "all"."""
        return [n for n, name in enumerate(self.names) if kind in ("all", kind_of(ontology().finding(name)))]

    def of_size(self, low: float, high: float) -> FindingTable:
        """The focal findings, present in this class of size or absent."""
        columns = self.columns("focal")
        size = self.size_mm[:, columns]
        truth = np.where(self.present[:, columns] & ~((size >= low) & (size < high)), np.nan, self.truth[:, columns])
        names = tuple(self.names[n] for n in columns)
        return FindingTable(
            names=names, truth=truth, score=self.score[:, columns], probability=self.probability[:, columns],
            called=self.called[:, columns], size_mm=size,
        )  # fmt: skip

    def counts(self) -> dict[str, dict[str, int]]:
        """Present and absent cases of each finding."""
        pairs = zip(self.names, self.present.sum(0), (self.truth == 0.0).sum(0), strict=True)
        return {name: {"present": int(a), "absent": int(b)} for name, a, b in pairs}


def kind_of(finding: Finding) -> str:
    """What sort of thing a finding is: how it is found differs more by this than by its organ."""
    if finding.lesion is None:
        return "measured organ"
    return "focal" if finding.sized else "diffuse"


def measures(table: FindingTable) -> dict[str, Measure]:
    """By name: of each finding, of all, of each kind of finding, and of focal findings by class of size (beside all cases without)."""
    out: dict[str, Measure] = {}
    for column, name in enumerate(table.names):
        truth, score, called = table.truth[:, column], table.score[:, column], table.called[:, column]
        own = {"AUROC": auroc(truth, score), "AUPRC": average_precision(truth, score)} | calls(truth, called)
        own["ECE"] = calibration_error(truth, table.probability[:, column])
        out |= {f"findings/{name}/{metric}": measure for metric, measure in own.items()}
    for kind in ("all", *KINDS):
        out |= {f"findings/{kind}/{metric}": measure for metric, measure in _of_group(table, table.columns(kind)).items()}
        out[f"findings/{kind}/ECE"] = calibration_error(table.truth[:, table.columns(kind)], table.probability[:, table.columns(kind)])
    for size in SIZES_MM:
        part = table.of_size(*size)
        group = _of_group(part, part.columns("all"))
        out |= {f"findings/focal {size_name(*size)}/{metric}": measure for metric, measure in group.items()}
    return out


def _of_group(table: FindingTable, columns: Sequence[int]) -> dict[str, Measure]:
    """Means of AUROC and AUPRC over the findings with cases enough; precision, recall and F1 pool all of them."""
    truth, score = table.truth[:, columns], table.score[:, columns]
    enough = np.flatnonzero(np.minimum((truth == 1.0).sum(0), (truth == 0.0).sum(0)) >= LEAST_POSITIVES)
    ranked: dict[str, Measure] = {
        metric: mean_of([rank(truth[:, n], score[:, n]) for n in enough])
        for metric, rank in (("AUROC", auroc), ("AUPRC", average_precision))
    }
    return ranked | calls(truth, table.called[:, columns])


def size_name(low: float, high: float) -> str:
    """ "10–20 mm", "≥ 20 mm"."""
    return f"≥ {low:g} mm" if np.isinf(high) else f"{low:g}–{high:g} mm" if low else f"< {high:g} mm"


def calls(truth: Floats, called: NDArray[np.bool_]) -> dict[str, Measure]:
    """Precision, recall and F1 of what is called present, where the truth is known; several findings are pooled (micro)."""
    known = np.isfinite(truth)
    said, true = (called & known).reshape(len(truth), -1).sum(1), (truth == 1.0).reshape(len(truth), -1).sum(1)
    hits = (called & (truth == 1.0)).reshape(len(truth), -1).sum(1)
    return {"precision": ratio(hits, said), "recall": ratio(hits, true), "F1": ratio(2 * hits, said + true)}


def _tied(truth: Floats, score: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Known cases by descending score, where each run of equal scores begins, and their truth."""
    cases = np.flatnonzero(np.isfinite(truth) & np.isfinite(score))
    order = cases[np.argsort(-score[cases], kind="stable")]
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0]) if len(order) else np.zeros(0, np.intp)
    return order, starts, truth[order]


def auroc(truth: Floats, score: Floats) -> Measure:
    """Chance that a present case scores above an absent one, equal scores counting half (Hanley and McNeil 1982)."""
    order, starts, y = _tied(truth, score)

    def measure(weights: Weights) -> Floats:
        if not len(order):
            return np.full(len(weights), np.nan)
        drawn = weights[:, order]
        positive = np.add.reduceat(drawn * y, starts, axis=1)
        negative = np.add.reduceat(drawn * (1 - y), starts, axis=1)
        below = negative.sum(1, keepdims=True) - np.cumsum(negative, axis=1)
        pairs = positive.sum(1) * negative.sum(1)
        return _divided((positive * (below + 0.5 * negative)).sum(1), pairs)

    return measure


def average_precision(truth: Floats, score: Floats) -> Measure:
    """Area under precision over recall, as steps (scikit-learn's `average_precision_score`)."""
    order, starts, y = _tied(truth, score)

    def measure(weights: Weights) -> Floats:
        if not len(order):
            return np.full(len(weights), np.nan)
        drawn = weights[:, order]
        positive = np.add.reduceat(drawn * y, starts, axis=1)
        said = np.cumsum(np.add.reduceat(drawn, starts, axis=1), axis=1)
        precision = np.nan_to_num(_divided(np.cumsum(positive, axis=1), said))
        return _divided((positive * precision).sum(1), positive.sum(1))

    return measure


def calibration_error(truth: Floats, probability: Floats, bins: int = BINS) -> Measure:
    """Expected calibration error (Guo et al. 2017, of the probability of `present`): |mean probability - share present| over bins of
    equal width, weighted by the cases in them. [cases] or [cases, findings]: pooled."""
    known = np.isfinite(truth) & np.isfinite(probability)
    gap = np.where(known, probability - truth, 0.0).reshape(len(truth), -1)
    place = np.minimum((np.where(known, probability, 0.0) * bins).astype(np.int64), bins - 1).reshape(len(truth), -1)
    flat = known.reshape(len(truth), -1)
    # [cases, bins]: how far each case pulls each bin.
    pull = np.stack([np.where(flat & (place == b), gap, 0.0).sum(1) for b in range(bins)], axis=1)
    count = flat.sum(1).astype(np.float64)

    def measure(weights: Weights) -> Floats:
        return _divided(np.abs(weights @ pull).sum(1), weights @ count)

    return measure


def reliability(truth: Floats, probability: Floats, bins: int = BINS) -> list[dict[str, Any]]:
    """For the plot: of each bin that holds any, mean probability, share present and how many."""
    known = np.isfinite(truth) & np.isfinite(probability)
    p, y = probability[known], truth[known]
    place = np.minimum((p * bins).astype(np.int64), bins - 1)
    held = [(b, place == b) for b in range(bins) if (place == b).any()]
    return [{"bin": b, "probability": float(p[m].mean()), "present": float(y[m].mean()), "cases": int(m.sum())} for b, m in held]


def _divided(above: Floats, below: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        out: Floats = np.where(below > 0, above / below, np.nan)
    return out
