"""What a bundle says of each case of a cohort, kept case by case: every figure and every comparison is made from these files alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.errors import UsageError
from VelvetMedLib.files import write_json
from VelvetMedLib.reports import FindingRecord

FORMAT_VERSION = 3
RUN = "run.json"
CASES = "cases"
METRICS = "metrics.json"


@dataclass(frozen=True, kw_only=True)
class CaseOutput:
    """One case: the truth and what the bundle made of it. What the bundle's model cannot make is None or empty.

    group: cases of one group (twins) are no independent evidence. view: field of view. truth, said: finding records.
    scores: by finding, what ranks the cases. report: the draft. unheld: the draft as the writer words it, held to no finding.
    contradictions: of "report" and "unheld", (sentences that contradict the findings of the same case, all).
    references: the truth in words, by wording ("seen", "unseen");
    texts: as queries of a search by words, and kept what an index keeps of the scan (`tasks.statements`); both begin with a unit vector,
    study that of the scan.
    answers: `answers.Answered` without case and group. structures: `segmentation.StructureScore` of organs and lesions.
    pointing: `grounding.Pointed`.
    seconds: of the analysis.
    """

    case: str
    group: str
    view: str
    truth: Sequence[FindingRecord]
    said: Sequence[FindingRecord]
    scores: Mapping[str, float]
    report: str | None
    references: Mapping[str, str]
    study: Sequence[float]
    kept: Sequence[float]
    texts: Mapping[str, Sequence[float]]
    answers: Sequence[Mapping[str, Any]]
    structures: Sequence[Mapping[str, Any]]
    pointing: Sequence[Mapping[str, Any]]
    seconds: float
    unheld: str | None = None
    contradictions: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; inverse of `from_dict`."""
        records = {"truth": [r.as_dict() for r in self.truth], "said": [r.as_dict() for r in self.said]}
        return {"format_version": FORMAT_VERSION} | vars(self) | records

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CaseOutput:
        """Raises KeyError or TypeError where the file is not one of these."""
        rest = {k: v for k, v in data.items() if k not in ("format_version", "truth", "said")}
        truth, said = ([FindingRecord.from_dict(r) for r in data[name]] for name in ("truth", "said"))
        return cls(truth=truth, said=said, **rest)


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the outputs of a folder rest on: the same facts, the same outputs. calibrated: findings whose scores are meant as
    probabilities. writer: facts of who worded the drafts; empty where the bundle's model writes none."""

    bundle_id: str
    bundle_version: str
    bundle_key: str
    calibrated: Sequence[str]
    cohort_seed: int
    cohort_cases: int
    cohort_options: Mapping[str, Any]
    wording_seed: int
    velvetmed: str
    writer: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"format_version": FORMAT_VERSION} | asdict(self)

    @property
    def cohort(self) -> tuple[Any, ...]:
        """Equal for runs over the same cases and texts."""
        return self.cohort_seed, self.cohort_cases, json.dumps(self.cohort_options, sort_keys=True), self.wording_seed


def vectors(rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """[cases, D]."""
    return np.array(rows, np.float64).reshape(len(rows), -1)


def claim(out: Path, facts: RunFacts) -> None:
    """Make the folder the place of this run; outputs of the same run that are there already stay. Raises UsageError."""
    path = out / RUN
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(facts.as_dict())):
            return
        found = "the evaluation of another bundle, writer, cohort or version"
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        found = "other files"
    else:
        (out / CASES).mkdir(parents=True, exist_ok=True)
        write_json(path, facts.as_dict())
        return
    raise UsageError(
        "The evaluation cannot be written there.",
        found=found,
        expected="a new or empty folder, or a stopped evaluation of the same bundle, writer and cohort",
        next_step="Choose another --out.",
    )


def case_file(out: Path, case: str) -> Path:
    """Where the output of a case is kept."""
    return out / CASES / f"{case}.json"


def write_output(out: Path, output: CaseOutput) -> None:
    """All or nothing."""
    write_json(case_file(out, output.case), output.as_dict(), indent=None)


def read_outputs(out: Path | str) -> tuple[RunFacts, list[CaseOutput]]:
    """A finished run: its facts and its outputs in order of the cases' names. Raises UsageError."""
    out = Path(out)
    try:
        data = json.loads((out / RUN).read_text(encoding="utf-8"))
        if data.pop("format_version") != FORMAT_VERSION:
            raise ValueError("another format version")
        facts = RunFacts(**data)
        files = sorted((out / CASES).glob("*.json"))
        outputs = [CaseOutput.from_dict(json.loads(path.read_text(encoding="utf-8"))) for path in files]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(type(error).__name__) from error
    if len(outputs) != facts.cohort_cases:
        raise _unreadable(f"{len(outputs)} of {facts.cohort_cases} cases")
    return facts, outputs


def _unreadable(found: str) -> UsageError:
    return UsageError(
        "The evaluation cannot be read.",
        found=found,
        expected="a folder that 'velvetmed evaluate' has finished with this version of VelvetMed",
        next_step="Run 'velvetmed evaluate' with the same --out again: it takes up where it stopped.",
    )
