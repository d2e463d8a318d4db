"""What a case knows when it is asked, and the answer that follows from it before the decoder has its say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from VelvetMedLib.case import CaseFinding, Link, Segment
from VelvetMedLib.ct import Grid
from VelvetMedLib.reports import suggested_questions
from VelvetMedLib.tasks.evidence import Evidence

CANNOT = "This question cannot be answered from this scan."
Unanswered: TypeAlias = Literal["not_understood", "beyond", "not_assessed", "out_of_view"]
EXAMPLES = 3
_STRENGTH = ("present", "uncertain", "absent", "not_assessed")


@dataclass(frozen=True)
class Planned:
    """The answer that follows from findings and segments. confidence: None for a plain measurement.

    key: what the decoder would say if it agreed, None where it is not asked. unanswered: as in `case.Answer`.
    """

    text: str
    key: str | None = None
    confidence: float | None = None
    finding: str | None = None
    link: Link | None = None
    unanswered: Unanswered | None = None


@dataclass(frozen=True)
class Known:
    """The records of one case. evidence: the maps behind them, None where the case holds no encoding.

    thresholds: per finding, below which probability it is absent and from which it is present. lesion_thresholds: the bundle's, by
    channel. scan: the scan's own grid.
    """

    findings: Sequence[CaseFinding]
    segments: Sequence[Segment]
    evidence: Evidence | None = None
    thresholds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    lesion_thresholds: tuple[float, ...] = ()
    scan: Grid | None = None

    def finding(self, name: str) -> CaseFinding | None:
        """The one that counts where a person has added another of the name: present before uncertain before absent."""
        named = [f for f in self.findings if f.name == name]
        return min(named, key=lambda f: _STRENGTH.index(f.state), default=None)

    def segment(self, name: str) -> Segment | None:
        return next((s for s in self.segments if s.name == name), None)

    def bounds(self, found: CaseFinding) -> tuple[float, float] | None:
        """The thresholds that call a finding, a person's own before the model's; None where they are not known."""
        mine = found.overruling
        if mine is not None and mine.absent_below is not None and mine.present_from is not None:
            return mine.absent_below, mine.present_from
        return self.thresholds.get(found.name)


def cannot(why: Unanswered, reason: str, *, finding: str | None = None, link: Link | None = None) -> Planned:
    """No answer, and the reason."""
    return Planned(f"{CANNOT[:-1]}: {reason}.", None, 0.0, finding, link, unanswered=why)


def not_understood(known: Known) -> Planned:
    """What could not be mapped to a finding or an organ, with questions that this very case can answer."""
    organs = sorted((s for s in known.segments if s.kind == "organ"), key=lambda s: -s.volume_ml)
    # The first would all be about findings: the last of them makes room for an organ's volume, where there is one.
    first = suggested_questions([f.record() for f in known.findings], limit=EXAMPLES)
    both = suggested_questions([], structures=[s.name for s in organs])
    volume = [question for question in both if "volume" in question][:1]
    told = " ".join([*first[: EXAMPLES - len(volume)], *volume])
    plan = cannot("not_understood", "its words could not be related to a finding or an organ")
    return Planned(f"{plan.text} You can ask, for example: {told}", None, 0.0, unanswered="not_understood")


def millilitres(volume_ml: float) -> str:
    """With as many digits as a person reads at that size."""
    digits = 0 if volume_ml >= 10 else 1 if volume_ml >= 1 else 2
    return f"{volume_ml:.{digits}f} ml"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"
