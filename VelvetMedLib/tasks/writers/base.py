"""What a draft report can be asked for, and what every writer of its sentences is: records in, wordings with slots out.

A writer only proposes. `tasks.report` parses every wording back and takes it if it says the record and nothing else; where a writer
has no wording, or an untrue one, the built-in phrases speak.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from VelvetMedLib.errors import UsageError
from VelvetMedLib.reports import STYLES, FindingRecord, ontology
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.progress import Run

LENGTHS = ("full", "brief")
NOT_ASSESSED, IMPRESSION = "not_assessed", "impression"


def section_names() -> tuple[str, ...]:
    """Sections that a draft can have, in its order."""
    return (*ontology().sections, NOT_ASSESSED, IMPRESSION)


@dataclass(frozen=True, kw_only=True)
class DraftSettings:
    """Form of a draft.

    style: of its sentences, one of `STYLES`. sections: names from `section_names`, empty = all; the impression tells what is present
    anywhere. length: "full", every finding in a sentence of its own; "brief", what is present or uncertain so, and the others of a
    section in one sentence. hold_from: confidence, 0 to 1, from which no sentence may contradict a finding; 0 holds to all of them,
    None to none: the writer's words then stand as they are, and the checks of the Case flag what is wrong. Raises UsageError.
    """

    style: str = STYLES[0]
    sections: tuple[str, ...] = ()
    length: str = LENGTHS[0]
    hold_from: float | None = 0.0

    def __post_init__(self) -> None:
        for setting, values, known in (
            ("style", (self.style,), STYLES),
            ("sections", self.sections, section_names()),
            ("length", (self.length,), LENGTHS),
        ):
            if unknown := [value for value in values if value not in known]:
                raise UsageError(
                    "The draft report cannot be written in this form.",
                    found=f"{setting}: {', '.join(map(str, unknown))}",
                    expected=", ".join(known),
                    next_step="Choose among these.",
                )
        if self.hold_from is not None and not 0.0 <= self.hold_from <= 1.0:
            raise UsageError(
                "The draft report cannot be held to its findings this way.",
                found=f"a confidence of {self.hold_from:g}",
                expected="0 to 1, or none",
                next_step="Choose another confidence.",
            )

    def has(self, section: str) -> bool:
        """Whether the draft has this section."""
        return not self.sections or section in self.sections


@dataclass(frozen=True)
class Wording:
    """A proposed sentence. slotted: text with [SIZE], [COUNT], [VALUE] for numbers; it holds no number of its own.

    probability: geometric mean of the probabilities of a model's tokens; None where no model guessed.
    """

    slotted: str
    probability: float | None = None


class Writer(Protocol):
    """Words for findings."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """JSON-ready: what the Case's record says of the writer."""
        ...

    def write(self, records: Sequence[FindingRecord], encoding: Encoding, style: str, run: Run) -> list[Wording | None]:
        """A wording for each record in order, None where there is none. Honours a cancel (`run.check`)."""
        ...


def said(record: FindingRecord) -> FindingRecord:
    """The record as far as a sentence may speak of it: what is absent or was not seen has no size, side, place or grade."""
    if record.state in ("present", "uncertain"):
        return record
    return FindingRecord(name=record.name, state=record.state)
