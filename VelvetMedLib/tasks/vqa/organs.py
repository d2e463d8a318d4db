"""Answers about organs, read from the segments: volume, extent, density, comparisons, whether and where they are in the scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from VelvetMedLib.case import Link, Segment
from VelvetMedLib.reports import ontology
from VelvetMedLib.reports.asked import Asked, Organ, findings_of
from VelvetMedLib.reports.phrases import capitalise
from VelvetMedLib.tasks.vqa.findings import about_all, measured
from VelvetMedLib.tasks.vqa.known import Known, Planned, cannot, millilitres, percent

ABOUT_EQUAL, ABOUT_EQUAL_HU = 0.05, 5.0
"""Two volumes (share of the larger) or densities closer than this are called about the same: segments are no more exact."""


@dataclass(frozen=True)
class Figures:
    """What the segments of an organ say together. cut: partly outside the scan, so that the volume is a lower bound."""

    display: str
    segments: tuple[Segment, ...]

    @property
    def volume_ml(self) -> float:
        return sum(s.volume_ml for s in self.segments)

    @property
    def mean_hu(self) -> float | None:
        """Mean over all voxels; None where a segment has none."""
        if any(s.mean_hu is None for s in self.segments) or not self.volume_ml:
            return None
        return sum((s.mean_hu or 0.0) * s.volume_ml for s in self.segments) / self.volume_ml

    @property
    def cut(self) -> bool:
        return any(s.truncated for s in self.segments)

    @property
    def link(self) -> Link:
        """To the largest of the segments."""
        largest = max(self.segments, key=lambda s: s.volume_ml)
        return link_to(largest)

    @property
    def marks(self) -> str:
        """What takes from the figures."""
        cut = " It is partly outside the field of view." if self.cut else ""
        stale = " Out of date: the segment has been edited." if any(s.stale for s in self.segments) else ""
        edited = " The segment was edited by a person." if not stale and any(s.edited for s in self.segments) else ""
        return cut + stale + edited

    def ml(self) -> str:
        return f"{'at least ' if self.cut else ''}{millilitres(self.volume_ml)}"

    def span(self) -> str:
        """Extent along the patient's axes, of all segments together."""
        low = [min(s.box_ras_mm[0][axis] for s in self.segments) for axis in range(3)]
        high = [max(s.box_ras_mm[1][axis] for s in self.segments) for axis in range(3)]
        r, a, s = (round(b - a) for a, b in zip(low, high, strict=True))
        return f"{r} mm from left to right, {a} mm from front to back, {s} mm from head to foot"


def link_to(segment: Segment) -> Link:
    """A link to a segment or kind of lesion."""
    kind: Literal["lesion", "segment"] = "lesion" if segment.kind == "lesion" else "segment"
    return Link(kind=kind, label=segment.label, center_ras_mm=segment.center_ras_mm, box_ras_mm=segment.box_ras_mm)


def figures(known: Known, organ: Organ) -> Figures | Planned:
    """The segments of an organ, or why there are none."""
    found = tuple(segment for name in organ.names if (segment := known.segment(name)) is not None)
    if len(found) == len(organ.names) or (found and len(organ.names) > 3):
        return Figures(organ.display, found)
    if not known.segments:
        return cannot("not_assessed", "this case has no segments")
    lacking = next(name for name in organ.names if known.segment(name) is None)
    display = organ.display if not found else next(s.display for s in ontology().structures if s.name == lacking)
    return Planned(
        f"No {display} was segmented on this scan: it lies outside of the field of view, or the model does not see it.",
        None, None, unanswered="out_of_view",
    )  # fmt: skip


def about_organs(known: Known, asked: Asked) -> Planned:
    """Any question that names an organ and no finding."""
    if asked.kind == "compare":
        return _compared(known, asked)
    if asked.kind in ("findings", "normal"):
        return _overview(known, asked)
    own = figures(known, asked.organs[0])
    return own if isinstance(own, Planned) else of_segments(known, own, asked.kind or "volume")


def of_segments(known: Known, own: Figures, kind: str) -> Planned:
    """Volume, size, density, coverage or place of segments taken together."""
    plural = "" if len(own.segments) == 1 else "s"
    name = f"segment{plural} of the {own.display}" if own.segments[0].kind == "organ" else f"marked {own.display}"
    if kind == "density":
        if own.mean_hu is None:
            return cannot("not_assessed", f"the density of the {own.display} was not measured", link=own.link)
        text = f"The mean density of the {own.display} is {own.mean_hu:.0f} HU.{own.marks}"
    elif kind == "covered":
        yes = "Partly: it is cut off by the border of the scan" if own.cut else "Yes, the scan shows it as a whole"
        text = f"{yes} ({own.ml()})."
    elif kind == "site":
        at = ", ".join(f"{axis} {value:.0f}" for axis, value in zip("RAS", own.link.center_ras_mm, strict=True))
        text = f"The {own.display} is marked on the scan; its middle is at {at} mm."
    else:
        text = f"The {name} measure{'s' if not plural else ''} {millilitres(own.volume_ml)}."
        if kind == "size":
            text += f" It spans {own.span()}.{_judged(known, own)}"
        text += own.marks
    return Planned(text, None, None, None, own.link)


def _judged(known: Known, own: Figures) -> str:
    """The measurement by which this organ's size is judged, where there is one: heart, spleen, aorta."""
    for finding in findings_of(own.segments[0].name) if len(own.segments) == 1 else ():
        found = known.finding(finding.name)
        if found is not None and finding.requires == (own.segments[0].name,) and (figure := measured(finding, found)) is not None:
            return f" {capitalise(figure)} ({found.display}: {found.state.replace('_', ' ')})."
    return ""


def _overview(known: Known, asked: Asked) -> Planned:
    """Findings that concern the organs, then the figures of their segments."""
    of = "of the " + " and the ".join(organ.display for organ in asked.organs)
    names = dict.fromkeys(finding.name for name in asked.structures for finding in findings_of(name))
    found = [f for name in names if (f := known.finding(name)) is not None]
    if asked.side is not None:
        found = [f for f in found if f.side in (asked.side, "both", None)]
    drawn = [own for organ in asked.organs if isinstance(own := figures(known, organ), Figures)]
    told = "".join(f" {capitalise(own.display)}: {own.ml()}{'' if own.mean_hu is None else f', {own.mean_hu:.0f} HU'}." for own in drawn)
    link = drawn[0].link if drawn else None
    if not found:
        plan = cannot("not_assessed", f"no finding {of} is among those that this model looks for")
    else:
        plan = about_all(asked.kind or "findings", found, of)
    return Planned(f"{plan.text}{told}", None, plan.confidence, plan.finding, plan.link or link, plan.unanswered)


def _compared(known: Known, asked: Asked) -> Planned:
    """Two organs by volume or density. A volume that is only a lower bound decides nothing where it is the smaller one."""
    if len(asked.organs) < 2:
        return cannot("not_understood", f"it names only the {asked.organs[0].display} to compare")
    first, second = (figures(known, organ) for organ in asked.organs[:2])
    if isinstance(first, Planned):
        return first
    if isinstance(second, Planned):
        return second
    if asked.by_density:
        if first.mean_hu is None or second.mean_hu is None:
            return cannot("not_assessed", "their densities were not measured")
        high, low = (first, second) if first.mean_hu >= second.mean_hu else (second, first)
        apart_hu = abs(first.mean_hu - second.mean_hu)
        equal, apart, more, less = apart_hu < ABOUT_EQUAL_HU, f"{apart_hu:.0f} HU apart", "denser", "less dense"
        told = {one: f"the {one.display} ({one.mean_hu:.0f} HU)" for one in (first, second)}
    else:
        high, low = (first, second) if first.volume_ml >= second.volume_ml else (second, first)
        if low.cut:
            is_cut = f"the {low.display} is partly outside the field of view ({low.ml()}; {high.display} {high.ml()})"
            return cannot("out_of_view", is_cut, link=low.link)
        share = 1.0 - low.volume_ml / max(high.volume_ml, 1e-9)
        equal = share < ABOUT_EQUAL and not high.cut
        apart, more, less = f"{'at least ' if high.cut else ''}{percent(share)} apart", "larger", "smaller"
        told = {one: f"the {one.display} ({one.ml()})" for one in (first, second)}
    if asked.claim is None:
        first, second = high, low
    if equal:
        text = f"{told[first]} and {told[second]} are about the same, {apart}."
    else:
        text = f"{told[first]} is {more if high is first else less} than {told[second]}, {apart}."
    if asked.claim is not None:
        holds = not equal and (high is first) == (asked.claim == "more")
        text = f"{'yes' if holds else 'no'}: {text}"
    return Planned(capitalise(text), None, None, None, high.link)
