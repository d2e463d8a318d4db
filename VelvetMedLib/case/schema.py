"""What a Case holds: segments, findings, a draft report, answers, and how they came about. One schema for every reader."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from VelvetMedLib import DRAFT_DISCLAIMER
from VelvetMedLib.case.about import About
from VelvetMedLib.case.records import Record
from VelvetMedLib.reports.ontology import Code
from VelvetMedLib.reports.records import FindingRecord, Severity, Side, State
from VelvetMedLib.shapes import IntTriple, Triple

if TYPE_CHECKING:
    from VelvetMedLib.ct import Volume

SCHEMA_VERSION = 2
"""2: sentences have flags, and vertebrae their heights. A case of version 1 is read as one where neither was looked at."""
READABLE_VERSIONS = (1, SCHEMA_VERSION)
_Row = tuple[float, float, float, float]
_LOOKS_LIKE_PATH = re.compile(r"(?:^|[\s\"'=(:])(?:/[\w.~-]+/[\w.~-]+|[A-Za-z]:\\|\\\\\w|~/)|\bfile://")


@dataclass(frozen=True, kw_only=True)
class Link(Record):
    """Where in the patient something is seen: a point in RAS mm to go to, and where there is one the box around it.

    label: label of the segment or lesion channel in `segmentation.nii.gz`.
    """

    kind: Literal["segment", "lesion", "point", "box"]
    center_ras_mm: Triple
    label: int | None = None
    box_ras_mm: tuple[Triple, Triple] | None = None

    def check(self) -> None:
        if self.box_ras_mm is not None and any(lo > hi for lo, hi in zip(*self.box_ras_mm, strict=True)):
            raise ValueError("Link.box_ras_mm: the first corner must be the lower one")


@dataclass(frozen=True, kw_only=True)
class Segment(Record):
    """One organ or kind of lesion. truncated: it touches the border of what was scanned (partly outside it).
    edited: a person has changed its voxels. stale: its figures are those of before the last change.

    `segmentation.nii.gz` is one label map for display: where a lesion lies in an organ, its voxels carry the lesion's label.
    An organ includes its lesions all the same: its volume, mean HU, centre and box are those of the whole organ, so that a
    nodule takes nothing from its lobe; counting the voxels of the label map gives the organ without them. A lesion is
    measured by the voxels that carry its label. An organ that lesions cover wholly is measured and has no voxel in the map.
    """

    label: int
    name: str
    display: str
    code: Code
    color: tuple[int, int, int]
    kind: Literal["organ", "lesion"]
    volume_ml: float
    mean_hu: float | None = None
    truncated: bool = False
    center_ras_mm: Triple
    box_ras_mm: tuple[Triple, Triple]
    edited: bool = False
    stale: bool = False

    def check(self) -> None:
        if not 0 < self.label < 256 or any(not 0 <= c <= 255 for c in self.color) or self.volume_ml < 0:
            raise ValueError(f"Segment {self.name}: label, colour or volume out of range")


@dataclass(frozen=True, kw_only=True)
class Overruling(Record):
    """What a person made of a finding. machine_state, machine_reason: what the model's own thresholds said; None where a
    person added the finding. absent_below, present_from: the person's thresholds on the probability. changed: when, ISO 8601."""

    machine_state: State | None = None
    machine_reason: str | None = None
    absent_below: float | None = None
    present_from: float | None = None
    changed: str


@dataclass(frozen=True, kw_only=True)
class CaseFinding(Record):
    """One finding. probability: calibrated, None where not assessed. value, unit: the measurement its state rests on.
    reason: why it is not assessed, or what weakens it (a measurement that disagrees or that cannot be made).
    stale: a segment that it was measured on has been edited since.
    overruling: None while no person has touched it."""

    name: str
    display: str
    state: State
    probability: float | None = None
    side: Side | None = None
    site: str | None = None
    size_mm: float | None = None
    count: int | None = None
    severity: Severity | None = None
    value: float | None = None
    unit: str | None = None
    volume_ml: float | None = None
    reason: str | None = None
    link: Link | None = None
    stale: bool = False
    overruling: Overruling | None = None

    def check(self) -> None:
        _check_share(self.probability, f"probability of {self.name}")

    @property
    def by_person(self) -> bool:
        """Whether a person added this finding: no model stands behind it."""
        return self.overruling is not None and self.overruling.machine_state is None

    def record(self) -> FindingRecord:
        """The record that prose, prompts, questions and answers are written from."""
        shared = {f.name for f in fields(FindingRecord)} & {f.name for f in fields(self)}
        return FindingRecord(**{name: getattr(self, name) for name in shared})


@dataclass(frozen=True, kw_only=True)
class Revision(Record):
    """What a person made of a sentence. machine_text: the model's words, with the state and support it gave them; None where
    a person wrote the sentence. model_id, weights_sha256: whose words these are. changed: when, ISO 8601 with zone."""

    verdict: Literal["accepted", "rejected"] | None = None
    machine_text: str | None = None
    machine_state: State | None = None
    machine_support: float | None = None
    model_id: str | None = None
    weights_sha256: str | None = None
    changed: str


Rule: TypeAlias = Literal[
    "state", "measurement", "side", "site", "size", "count", "grade", "value", "certainty", "assessed", "number"
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Flag(Record):
    """What is wrong with a sentence, by which rule of `case.checks`, and why, in words for the reader."""

    kind: Literal["contradiction", "unsupported"]
    rule: Rule
    reason: str


@dataclass(frozen=True, kw_only=True)
class Sentence(Record):
    """One sentence of the draft. support: 0 to 1, how far the image evidence bears it out. Without a link and without
    support it has no image evidence and must be shown so. finding and state are None for sentences about none.
    revision: None while no person has touched it. stale: a segment that it rests on has been edited since.
    flags: where it contradicts what was found and measured, or nothing bears it out."""

    text: str
    state: State | None = None
    support: float | None = None
    finding: str | None = None
    link: Link | None = None
    revision: Revision | None = None
    stale: bool = False
    flags: tuple[Flag, ...] = ()

    def check(self) -> None:
        _check_share(self.support, "support of a sentence")

    @property
    def by_person(self) -> bool:
        """Whether the words are a person's and not the model's."""
        return self.revision is not None and self.revision.machine_text != self.text

    @property
    def rejected(self) -> bool:
        """Whether a person has taken the sentence out of the draft."""
        return self.revision is not None and self.revision.verdict == "rejected"


@dataclass(frozen=True, kw_only=True)
class Section(Record):
    """A titled part of the draft."""

    title: str
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True, kw_only=True)
class Report(Record):
    """The draft report in one writing style."""

    style: str
    sections: tuple[Section, ...]


@dataclass(frozen=True, kw_only=True)
class Answer(Record):
    """A question that was put to the case, with its answer. about: the segment or box it was put to; None: the whole scan.

    unanswered: why it has no answer, None where it has one: the text was not understood; no scan can tell (beyond); the model
    does not tell it from chance or it was not measured (not_assessed); the field of view lacks it (out_of_view).
    """

    question: str
    answer: str
    confidence: float | None = None
    finding: str | None = None
    link: Link | None = None
    about: About | None = None
    unanswered: Literal["not_understood", "beyond", "not_assessed", "out_of_view"] | None = None
    created: str

    def check(self) -> None:
        _check_share(self.confidence, "confidence of an answer")


@dataclass(frozen=True, kw_only=True)
class CaseInput(Record):
    """The scan, by geometry and hash alone: no name, identifier, date or path. kind: dicom, nifti, nrrd or array."""

    kind: str
    shape_kji: IntTriple
    ijk_to_ras: tuple[_Row, _Row, _Row, _Row]
    spacing_mm: Triple
    sha256: str

    @classmethod
    def of(cls, volume: Volume) -> CaseInput:
        """The description of a volume; of its provenance only the kind of source is taken."""
        return cls(
            kind=str(volume.provenance.get("source", "array")),
            shape_kji=volume.shape_kji,
            ijk_to_ras=volume.ijk_to_ras.tolist(),
            spacing_mm=volume.spacing_mm,
            sha256=volume.sha256(),
        )


@dataclass(frozen=True, kw_only=True)
class CaseModel(Record):
    """The bundle that made the case. training_data: in the bundle's own words, what it learnt from and whom that asks to name."""

    id: str
    version: str
    sha256: str
    licence: str
    training_data: str = ""


@dataclass(frozen=True, kw_only=True)
class Vertebra(Record):
    """A vertebra between two discs, its level unknown: the way from disc to disc at three depths of its body (`case.vertebrae`).

    loss_fraction: what its middle lacks of the lower of its neighbours' heights; None at the ends, where it has but one."""

    center_ras_mm: Triple
    anterior_mm: float
    middle_mm: float
    posterior_mm: float
    loss_fraction: float | None = None


@dataclass(frozen=True, kw_only=True)
class Case(Record):
    """Everything that one analysis found. timings: seconds by stage. run: versions, device and parameters, and as
    `attribution` the line that the scan's licence asks for, where the scan is a known public one.
    vertebrae: from below. files: what stands in the folder beside `case.json`, name to {sha256, bytes}; filled in by `write_case`."""

    schema_version: int = SCHEMA_VERSION
    id: str
    created: str
    disclaimer: str = DRAFT_DISCLAIMER
    input: CaseInput
    model: CaseModel
    segments: tuple[Segment, ...] = ()
    findings: tuple[CaseFinding, ...] = ()
    report: Report | None = None
    answers: tuple[Answer, ...] = ()
    vertebrae: tuple[Vertebra, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    run: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Case:
        """Reads older versions too. Raises TypeError or ValueError on unknown or missing keys and on values that do not fit."""
        if isinstance(data, Mapping) and data.get("schema_version") in READABLE_VERSIONS:
            data = {**data, "schema_version": SCHEMA_VERSION}
        return super().from_dict(data)

    def check(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"Case.schema_version: {self.schema_version} is not {SCHEMA_VERSION}")
        if DRAFT_DISCLAIMER not in self.disclaimer:
            raise ValueError(f"Case.disclaimer: it must contain {DRAFT_DISCLAIMER!r}")
        for what, names in (("label", [s.label for s in self.segments]), ("finding", [f.name for f in self.findings if not f.by_person])):
            if len(set(names)) != len(names):
                raise ValueError(f"Case: a {what} occurs twice")
        # A path can carry a patient's name; none belongs into a case.
        for text in (*self.warnings, *_strings(self.run)):
            if _LOOKS_LIKE_PATH.search(text):
                raise ValueError("Case: a warning or a run entry contains a file path")

    def segment(self, label: int) -> Segment | None:
        """The segment with a label, None where there is none."""
        return next((s for s in self.segments if s.label == label), None)

    def finding(self, name: str) -> CaseFinding | None:
        """The finding of a name, None where there is none."""
        return next((f for f in self.findings if f.name == name), None)


def _check_share(value: float | None, what: str) -> None:
    if value is not None and not 0.0 <= value <= 1.0:
        raise ValueError(f"{what} must be between 0 and 1, got {value}")


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [s for item in value.values() for s in _strings(item)]
    if isinstance(value, (list, tuple)):
        return [s for item in value for s in _strings(item)]
    return []
