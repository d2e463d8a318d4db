"""The list of studies a training reads: one JSON object per line, checked before anything is learnt from it.

    {"study": "a1", "patient": "p7", "split": "train", "volume": "a1.nii.gz", "reports": [[{"title": "Findings", "text": "..."}]]}

`volume` and `report_file` are relative to the manifest. A report is given as `report` (plain text), as `report_file`, or
as `reports`: versions of one report, each a list of sections with `text` or `sentences`; one version is drawn per epoch.
`image_only`: true marks a scan that has no report on purpose: recipes that can learn from scans alone use it, others leave it out.
`record`, optional: a word for the facts of the study; studies with the same one cannot be told apart by their reports.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from VelvetMedLib.errors import TrainingError
from VelvetMedLib.files import write_text
from VelvetMedLib.reports import split_sections, split_sentences

SPLITS = ("train", "val", "test")
KEYS = frozenset({"study", "patient", "split", "volume", "report", "report_file", "reports", "record", "image_only"})


@dataclass(frozen=True)
class Section:
    """A titled part of a report."""

    title: str
    sentences: tuple[str, ...]


Report = tuple[Section, ...]


@dataclass(frozen=True, kw_only=True)
class Study:
    """One line of the manifest. reports: versions of the study's report, each with at least one
    sentence; empty only for a scan without a report."""

    study: str
    patient: str
    split: str
    volume: Path
    reports: tuple[Report, ...]
    record: str | None = None


@dataclass(frozen=True)
class Quarantined:
    """A study, or a line of the manifest, that is left out, and why."""

    study: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        return {"study": self.study, "reason": self.reason}


@dataclass(frozen=True)
class Manifest:
    """Usable studies in the manifest's order, and what was left out. scans: studies without a report."""

    studies: tuple[Study, ...]
    quarantined: tuple[Quarantined, ...] = ()
    scans: tuple[Study, ...] = ()

    def split(self, name: str) -> list[Study]:
        return [study for study in self.studies if study.split == name]


def read_manifest(path: Path, *, unreported: bool = False) -> Manifest:
    """Read and check a manifest. A bad line is quarantined with its reason; a patient in two splits is a TrainingError.

    unreported: a line without a report, or with an empty one, is a scan as if it were marked `image_only`, instead of being
    quarantined. A study id that is listed twice stays where it is evaluated (test, then val, then train) and is quarantined elsewhere.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(
            "The manifest of studies cannot be read.",
            found=type(error).__name__,
            expected="a UTF-8 text file with one JSON object per line",
            next_step="Give a manifest, or a cohort folder made by 'velvetmed cohort make'.",
        ) from None
    studies: list[Study] = []
    bad: list[Quarantined] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            read = _read_line(line, number, path.parent, unreported)
            (studies if isinstance(read, Study) else bad).append(read)  # type: ignore[arg-type]
    kept, doubles = without_doubles(studies)
    refuse_leaks(kept)
    return Manifest(tuple(s for s in kept if s.reports), (*bad, *doubles), tuple(s for s in kept if not s.reports))


def without_doubles(studies: Iterable[Study]) -> tuple[list[Study], list[Quarantined]]:
    """Each study id once: where it is listed in several splits, evaluation keeps it."""
    chosen: dict[str, Study] = {}
    listed = list(studies)
    for study in sorted(listed, key=lambda s: -SPLITS.index(s.split)):
        chosen.setdefault(study.study, study)
    kept = [study for study in listed if chosen[study.study] is study]
    doubles = [
        # Named with its split: the line is left out, and not the study.
        Quarantined(f"{study.study} ({study.split})", f"listed twice: as {study.split} and as {chosen[study.study].split}")
        for study in listed
        if chosen[study.study] is not study
    ]
    return kept, doubles


def refuse_leaks(studies: Iterable[Study]) -> None:
    """A patient whose studies lie in more than one split makes every figure of the validation worthless: TrainingError."""
    splits: dict[str, set[str]] = {}
    for study in studies:
        splits.setdefault(study.patient, set()).add(study.split)
    leaks = sorted(patient for patient, names in splits.items() if len(names) > 1)
    if leaks:
        shown = ", ".join(leaks[:5]) + (f" and {len(leaks) - 5} more" if len(leaks) > 5 else "")
        raise TrainingError(
            "The splits of the manifest leak: a patient has studies in more than one of them.",
            found=f"{len(leaks)} such patients: {shown}",
            expected="all studies of a patient in one split",
            next_step="Split by patient and write the manifest again.",
        )


def write_manifest(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """One JSON object per line, all or nothing."""
    write_text(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))


def full_text(report: Report) -> str:
    """The whole report, titles included, as `objectives.groups.report_hash` wants it."""
    return "\n".join("\n".join((section.title, *section.sentences)) for section in report)


def _read_line(line: str, number: int, folder: Path, unreported: bool) -> Study | Quarantined:
    try:
        data = json.loads(line)
    except ValueError:
        return Quarantined(f"line {number}", "the line is not JSON")
    if not isinstance(data, dict) or not isinstance(data.get("study"), str) or not data["study"]:
        return Quarantined(f"line {number}", "the line has no study id")
    name = data["study"]
    if unknown := sorted(set(data) - KEYS):
        return Quarantined(name, f"unknown keys: {', '.join(unknown)}")
    if data.get("split") not in SPLITS:
        return Quarantined(name, f"split {data.get('split')!r} is none of {', '.join(SPLITS)}")
    if not isinstance(data.get("volume"), str):
        return Quarantined(name, "no volume is named")
    try:
        reports = _reports(data, folder)
    except (OSError, UnicodeDecodeError):
        return Quarantined(name, "the report file cannot be read")
    except (TypeError, KeyError, ValueError, AttributeError):
        return Quarantined(name, "the report is not in a known form")
    image_only = data.get("image_only", False)
    if not isinstance(image_only, bool):
        return Quarantined(name, "image_only is neither true nor false")
    if image_only and reports:
        return Quarantined(name, "image_only, but there is a report")
    if not reports and not (image_only or unreported):
        return Quarantined(name, "the report is empty")
    volume = folder / data["volume"]
    if not volume.exists():
        return Quarantined(name, "the volume is missing")
    patient = data.get("patient")
    record = data.get("record")
    return Study(
        study=name,
        patient=name if patient is None else str(patient),
        split=data["split"],
        volume=volume,
        reports=reports,
        record=None if record is None else str(record),
    )


def _reports(data: dict[str, Any], folder: Path) -> tuple[Report, ...]:
    given = [key for key in ("report", "report_file", "reports") if key in data]
    if len(given) > 1:
        raise ValueError(given)
    if not given:
        return ()
    if given[0] == "reports":
        versions = [tuple(_section(section) for section in version) for version in data["reports"]]
    else:
        text = data["report"] if given[0] == "report" else (folder / data["report_file"]).read_text(encoding="utf-8")
        versions = [tuple(Section(title, tuple(split_sentences(body))) for title, body in split_sections(text))]
    return tuple(version for version in versions if any(section.sentences for section in version))


def _section(data: dict[str, Any]) -> Section:
    sentences = data["sentences"] if "sentences" in data else split_sentences(data["text"])
    if isinstance(sentences, str) or not all(isinstance(s, str) for s in sentences):
        raise TypeError("sentences must be a list of texts")
    return Section(str(data.get("title", "")), tuple(s.strip() for s in sentences if s.strip()))
