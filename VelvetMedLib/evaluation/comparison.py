"""Two bundles on the same cases: the difference of every figure with its interval, by paired bootstrap (the same draws for both)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.errors import UsageError
from VelvetMedLib.evaluation import findings
from VelvetMedLib.evaluation.bootstrap import Estimate, Measure, Weights, estimate, resamples
from VelvetMedLib.evaluation.outputs import CaseOutput
from VelvetMedLib.evaluation.protocol import Evaluation, load
from VelvetMedLib.files import write_text

COMPARISON = "comparison.json"
LOWER_IS_BETTER = (
    "ECE", "HD95 (mm)", "contradictions", "contradicts itself", "sentences against the findings", "hallucinations per normal case",
    "seconds per case",
)  # fmt: skip
OF_NO_BUNDLE = ("record oracle", "chance", "majority", "question only", "all normal")
"""Parts of names that say nothing of a bundle: baselines that are the same for both."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure of two bundles. difference: second minus first. clear: its interval leaves out 0."""

    name: str
    first: float
    second: float
    difference: Estimate
    lower_is_better: bool

    @property
    def clear(self) -> bool:
        low, high = self.difference.low, self.difference.high
        return low is not None and high is not None and (low > 0 or high < 0)

    @property
    def better(self) -> str:
        """ "first", "second" or "" where it is not clear."""
        if not self.clear:
            return ""
        return "second" if ((self.difference.value or 0.0) > 0) != self.lower_is_better else "first"

    def __str__(self) -> str:
        apart = self.difference
        return f"{apart.value:+.3f}" + ("" if apart.low is None else f" ({apart.low:+.3f} to {apart.high:+.3f})")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"clear": self.clear, "better": self.better}


def differences(first: Mapping[str, Measure], second: Mapping[str, Measure], weights: Weights) -> list[Difference]:
    """Of every measure that both have and that is defined for both on these cases."""
    once = np.ones((1, weights.shape[1]))
    found = []
    for name in (n for n in first if n in second and not set(n.split("/")) & set(OF_NO_BUNDLE)):
        a, b = float(first[name](once)[0]), float(second[name](once)[0])
        if np.isfinite(a) and np.isfinite(b):
            apart = estimate(lambda w, name=name: second[name](w) - first[name](w), weights)  # type: ignore[misc]
            lower = name.split("/")[-1] in LOWER_IS_BETTER
            found.append(Difference(name=name, first=a, second=b, difference=apart, lower_is_better=lower))
    return found


def compare(first: Path | str, second: Path | str, out: Path | str) -> list[Difference]:
    """Two finished evaluations over the same cohort; writes comparison.json and comparison.md into `out`. Raises UsageError."""
    a, b = load(first), load(second)
    # A later generator writes other reports and questions from the same seed.
    if a.facts.cohort != b.facts.cohort or not all(_same_case(x, y) for x, y in zip(a.outputs, b.outputs, strict=True)):
        raise UsageError(
            "The two evaluations cannot be compared.",
            found=f"cohorts of seeds {a.facts.cohort_seed} and {b.facts.cohort_seed} with {len(a.outputs)} and {len(b.outputs)} cases",
            expected="two evaluations over the same cases, reports and questions",
            next_step="Evaluate both bundles with the same --cohort and the same VelvetMed.",
        )
    shared = sorted(set(a.facts.calibrated) & set(b.facts.calibrated))
    found = differences(_calibrated_on(a, shared), _calibrated_on(b, shared), resamples(a.groups))
    names = [f"{x.facts.bundle_id} {x.facts.bundle_version}" for x in (a, b)]
    if a.facts.writer != b.facts.writer:
        names = [f"{name} ({x.facts.writer.get('kind', 'no writer')})" for name, x in zip(names, (a, b), strict=True)]
    data = {
        "notice": RESEARCH_USE_ONLY,
        "first": a.facts.as_dict(),
        "second": b.facts.as_dict(),
        "differences": [d.as_dict() for d in found],
    }
    write_text(Path(out) / COMPARISON, json.dumps(data, indent=1) + "\n")
    write_text(Path(out) / "comparison.md", as_markdown(found, names, a))
    return found


def _calibrated_on(one: Evaluation, names: Sequence[str]) -> dict[str, Measure]:
    """All measures, with the calibration error over these findings: an error over others is another question."""
    chosen = np.isin(one.table.names, names)
    table = replace(one.table, probability=np.where(chosen, one.table.probability, np.nan))
    return {**one.measures, **{name: measure for name, measure in findings.measures(table).items() if name.endswith("/ECE")}}


def _same_case(one: CaseOutput, other: CaseOutput) -> bool:
    asked = [[(a["kind"], a["finding"], a["truth"]) for a in x.answers] for x in (one, other)]
    return one.case == other.case and one.references == other.references and asked[0] == asked[1]


HEADLINES = (
    "retrieval/all/own report/seen/text to image R@1",
    "retrieval/all/own report/unseen/text to image R@5",
    "findings/all/AUROC",
    "findings/all/F1",
    "findings/all/ECE",
    "segmentation/organs/Dice",
    "segmentation/lesions/Dice",
    "answers/model/mean of types",
    "answers/model/presence, balanced",
    "answers/model/presence, answered",
    "answers/model/presence, when answered, balanced",
    "report/model/F1",
    "report/model/F1 with side",
    "report/model/contradictions",
    "report/model/hallucinations per normal case",
    "report/model/ROUGE-L",
    "grounding/all/pointing",
    "grounding/all/called and pointed at",
)
"""Named before anyone looks: with hundreds of figures some differ clearly by chance."""


def as_markdown(found: Sequence[Difference], names: Sequence[str], of: Evaluation) -> str:
    """The headline figures, then all others that differ clearly."""
    rows = ["| figure | first | second | second − first (95 %) | clearly better |", "|---|---|---|---|---|"]

    def row(d: Difference) -> str:
        return f"| {d.name}{' (lower is better)' if d.lower_is_better else ''} | {d.first:.3f} | {d.second:.3f} | {d} | {d.better} |"

    head = [row(d) for d in found if d.name in HEADLINES]
    others = [d for d in found if d.name not in HEADLINES]
    clear = [row(d) for d in others if d.clear]
    title = f"# {names[1]} against {names[0]}"
    cases = f"First: {names[0]}. Second: {names[1]}. {len(of.outputs)} synthetic cases of seed {of.facts.cohort_seed}, the same for both."
    how = "Intervals: paired bootstrap over cases. A difference is clear where its interval leaves out 0. ECE: over findings that both use."
    rest = f"Of {len(others)} other figures {len(clear)} differ clearly; about one in twenty would by chance alone."
    lines = [title, "", cases, how, "", *rows, *head, "", "## Other figures that differ clearly", "", rest, ""]
    return "\n".join([*lines, *([*rows, *clear, ""] if clear else []), RESEARCH_USE_ONLY, ""])
