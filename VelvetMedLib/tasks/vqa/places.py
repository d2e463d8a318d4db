"""Answers about one segment or one box: which lesions lie in it, how much of them, what else it holds and how dense it is.

All of it is read from the fine view's maps, on whose grid every box is laid in patient millimetres: cells that a box cuts count by
the share of them that lies inside. What the finding as a whole is called (present, uncertain, absent) stays as the findings have it.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.case import About, CaseFinding, Link
from VelvetMedLib.reports import LUNG_LOBES, ontology
from VelvetMedLib.reports.asked import Asked, Organ, findings_of
from VelvetMedLib.reports.phrases import capitalise
from VelvetMedLib.shapes import Triple
from VelvetMedLib.tasks.evidence import KIDNEYS, Component, Evidence
from VelvetMedLib.tasks.tokens import threshold_bytes
from VelvetMedLib.tasks.vqa.findings import about_all, about_finding, not_there, worded
from VelvetMedLib.tasks.vqa.known import Known, Planned, cannot, millilitres, percent
from VelvetMedLib.tasks.vqa.organs import Figures, about_organs, link_to, of_segments

SUBCELLS = 4
"""Samples along each edge of a cell for the share of it that lies in a box: a face is met to half a millimetre on 4 mm cells."""
LEAST_PART = 0.5
"""Share of a lesion that must lie in a place for it to be counted and measured there; any of it makes it present there."""
MOST_NAMED = 3


class Place:
    """A part of the fine view. words: "in this box". share_xyz: how much of every cell belongs to it, on the whole fine grid."""

    def __init__(self, evidence: Evidence, words: str, share_xyz: NDArray[np.float32], homes: tuple[str, ...] = ()) -> None:
        self.evidence, self.words, self.share_xyz, self.homes = evidence, words, share_xyz, homes

    @classmethod
    def of_structures(cls, evidence: Evidence, names: tuple[str, ...], words: str) -> Place:
        """Organs; of lobes and kidneys a lesion's own home decides, as it does for the finding's site."""
        labels = [ontology().structure(name).label for name in names]
        return cls(evidence, words, np.isin(evidence.fine.organs_xyz, labels).astype(np.float32), names)

    @classmethod
    def of_lesion(cls, evidence: Evidence, channel: int, thresholds: tuple[float, ...], words: str) -> Place:
        marked = evidence.fine.lesions_cxyz[channel] >= threshold_bytes(thresholds)[channel]
        return cls(evidence, words, marked.astype(np.float32))

    @classmethod
    def of_box(cls, evidence: Evidence, about: About) -> Place:
        """Cells that the scan covers, by the share of each that lies in the box."""
        fine = evidence.fine
        share = np.zeros(fine.organs_xyz.shape, np.float32)
        corners = np.array(list(itertools.product(*zip(*about.bounds_ras_mm, strict=True))))
        cells = corners @ fine.grid.ras_to_ijk[:3, :3].T + fine.grid.ras_to_ijk[:3, 3]
        first = np.clip(np.floor(cells.min(0) + 0.5).astype(int), 0, share.shape)
        stop = np.clip(np.floor(cells.max(0) + 0.5).astype(int) + 1, first, share.shape)
        block = tuple(slice(a, b) for a, b in zip(first, stop, strict=True))
        steps = (np.arange(SUBCELLS) + 0.5) / SUBCELLS - 0.5
        index = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in block), indexing="ij"), -1).astype(np.float64)
        affine = fine.grid.ijk_to_ras
        for offset in itertools.product(steps, steps, steps):
            share[block] += about.holds((index + offset) @ affine[:3, :3].T + affine[:3, 3])
        share[block] /= SUBCELLS**3
        share[~fine.in_view[1:-1, 1:-1, 1:-1]] = 0.0
        return cls(evidence, "in this box", share)

    @cached_property
    def volume_ml(self) -> float:
        return float(self.share_xyz.sum(dtype=np.float64)) * self.evidence.fine.grid.voxel_volume_ml

    @cached_property
    def mean_hu(self) -> float | None:
        """Mean over the place; None where it holds no cell."""
        whole = float(self.share_xyz.sum(dtype=np.float64))
        return float((self.evidence.fine.hu_xyz * self.share_xyz).sum(dtype=np.float64)) / whole if whole > 0 else None

    def structures_ml(self) -> dict[str, float]:
        """Structures in the place by their ml there, largest first."""
        cells = np.bincount(self.evidence.fine.organs_xyz.ravel(), weights=self.share_xyz.ravel(), minlength=33)
        ml = {s.name: float(cells[s.label]) * self.evidence.fine.grid.voxel_volume_ml for s in ontology().structures}
        return dict(sorted(((name, value) for name, value in ml.items() if value > 0), key=lambda pair: -pair[1]))

    def holds(self, point_ras_mm: Triple) -> bool:
        """Whether any of the cell at a point belongs to the place."""
        grid = self.evidence.fine.grid
        cell = np.rint(grid.ras_to_ijk[:3, :3] @ np.array(point_ras_mm) + grid.ras_to_ijk[:3, 3]).astype(int)
        inside = bool(((cell >= 0) & (cell < self.share_xyz.shape)).all())
        return inside and bool(self.share_xyz[tuple(cell)] > 0)

    def part_of(self, component: Component) -> float:
        """Share of a lesion that lies in the place."""
        if component.home is not None and self.homes and set(self.homes) <= {*LUNG_LOBES, *KIDNEYS}:
            return float(component.home in self.homes)
        box = tuple(slice(a, b) for a, b in zip(component.meta.first_xyz, component.meta.stop_xyz, strict=True))
        return float(self.share_xyz[box][component.mask].mean())


def about_place(known: Known, asked: Asked, about: About) -> Planned:
    """A question put to a segment or a box."""
    place = _place(known, about)
    if isinstance(place, Planned):
        return place
    plan, outside = _in_scan(known, asked, about, place), 1.0 - _share_in_scan(known, about)
    segment = None if about.segment is None else known.segment(about.segment)
    if outside > 0:
        return replace(plan, text=f"{plan.text} {percent(outside)} of the box lie outside of the scan.")
    if segment is not None and segment.edited and asked.finding is not None:
        return replace(plan, text=f"{plan.text} The segment was edited by a person; what lies in it is told of the model's own.")
    return plan


def _share_in_scan(known: Known, about: About) -> float:
    if about.segment is not None or known.scan is None:
        return 1.0
    return about.share_in(known.scan.shape_kji, known.scan.ijk_to_ras)


def _in_scan(known: Known, asked: Asked, about: About, place: Place | None) -> Planned:
    if asked.finding is not None and asked.kind is not None:
        return _finding(known, asked, place, about)
    if asked.kind in ("compare", "covered", "site") and asked.organs:
        plan = about_organs(known, asked)
        return replace(plan, text=f"On the whole scan: {plan.text}")
    segment = None if about.segment is None else known.segment(about.segment)
    if segment is not None and set(asked.structures) <= {segment.name}:
        if segment.kind == "organ" and asked.kind in ("findings", "normal", None):
            return about_organs(known, replace(asked, kind=asked.kind or "findings", organs=(Organ(segment.display, (segment.name,)),)))
        return of_segments(known, Figures(segment.display, (segment,)), asked.kind if asked.kind in ("density", "site") else "size")
    if place is None:
        return cannot("not_assessed", "the case holds no encoding, so what lies in this place is not known")
    plan = _inside(known, asked, place, about)
    return plan if plan.link is not None else replace(plan, link=_link_of(known, about))


def in_place(known: Known, found: CaseFinding, kind: str, place: Place) -> Planned:
    """A present or uncertain finding in a place: the part of it that lies there, or where it is instead."""
    finding = ontology().finding(found.name)
    assert finding.lesion is not None
    channel = ontology().lesion(finding.lesion).channel
    parts = [c for c in place.evidence.components(channel) if ontology().counts_for(finding, c.long_mm)]
    if found.by_person and found.link is not None:
        # A person marked a point: no voxels of the model's are behind it.
        return worded(known, found, found.record(), kind) if place.holds(found.link.center_ras_mm) else not_there(found, place.words)
    if not parts:
        return cannot("not_assessed", f"{finding.display} is not marked on the scan, so its place is not known", finding=found.name)
    shares = [place.part_of(c) for c in parts]
    if not any(shares):
        return not_there(found, place.words)
    inside = [c for c, share in zip(parts, shares, strict=True) if share >= LEAST_PART]
    largest = max(inside or [c for c, share in zip(parts, shares, strict=True) if share], key=lambda c: c.meta.volume_ml)
    size_mm = largest.short_mm if finding.measure.quantity == "short_axis_mm" else largest.long_mm
    ml = sum(c.meta.volume_ml * share for c, share in zip(parts, shares, strict=True))
    whole_ml = sum(c.meta.volume_ml for c in parts)
    record = replace(
        found.record(),
        side=largest.side if finding.sided else None,
        site=largest.home if largest.home in finding.sites else None,
        size_mm=round(size_mm, 1) if inside and found.size_mm is not None else None,
        count=len(inside) if inside and found.count is not None else None,
        volume_ml=round(ml, 2) if found.volume_ml is not None else None,
        severity=found.severity if ml > 0.99 * whole_ml else None,
        value=found.value if ml > 0.99 * whole_ml else None,
    )
    part = "" if inside and ml > 0.99 * whole_ml else f" {millilitres(ml)} of {millilitres(whole_ml)} marked lie {place.words}."
    plan = worded(known, found, record, kind)
    return replace(plan, text=f"{plan.text}{part}", link=place.evidence.lesion_link(largest))


def _place(known: Known, about: About) -> Place | Planned | None:
    """The place, None where the case keeps no maps, or why it is none."""
    if about.segment is not None:
        segment = known.segment(about.segment)
        if segment is None:
            return cannot("out_of_view", f"the case has no segment {about.segment.replace('_', ' ')}")
        if known.evidence is None:
            return None
        if segment.kind == "organ":
            return Place.of_structures(known.evidence, (segment.name,), f"in the {segment.display}")
        return Place.of_lesion(known.evidence, segment.label - 101, known.lesion_thresholds, f"in the marked {segment.display}")
    if _share_in_scan(known, about) == 0.0:
        return cannot("out_of_view", "the box lies outside of the scan")
    return None if known.evidence is None else Place.of_box(known.evidence, about)


def _finding(known: Known, asked: Asked, place: Place | None, about: About) -> Planned:
    """A finding in the place. What has no voxels of its own is told of the organ it concerns, not of a part of it."""
    assert asked.finding is not None and asked.kind is not None
    finding, found = ontology().finding(asked.finding), known.finding(asked.finding)
    if found is None or found.state == "not_assessed":
        return about_finding(known, replace(asked, side=None, organs=()))
    segment = None if about.segment is None else known.segment(about.segment)
    of_lesion = segment is not None and segment.kind == "lesion" and finding.lesion == segment.name
    if segment is not None and not of_lesion and finding not in findings_of(segment.name):
        reason = f"{finding.display} is not looked for in the {segment.display}"
        return cannot("not_assessed", reason, finding=found.name, link=found.link)
    if found.state == "absent" or of_lesion or (finding.lesion is None and segment is not None):
        return worded(known, found, found.record(), asked.kind)
    if finding.lesion is None:
        return cannot("not_assessed", f"{finding.display} is told of the organ as a whole, not of a part of it", finding=found.name)
    if place is None:
        return cannot("not_assessed", "the case holds no encoding, so what lies in this place is not known", finding=found.name)
    return in_place(known, found, asked.kind, place)


def _touching(found: CaseFinding, place: Place) -> Component | None:
    """The largest marked lesion of a finding of which any lies in a place."""
    lesion = ontology().finding(found.name).lesion
    if lesion is None or found.state not in ("present", "uncertain"):
        return None
    parts = [c for c in place.evidence.components(ontology().lesion(lesion).channel) if place.part_of(c) > 0]
    return max(parts, key=lambda c: c.meta.volume_ml, default=None)


def _inside(known: Known, asked: Asked, place: Place, about: About) -> Planned:
    """Density and volume of a box or of an organ's part in it, or everything that it holds."""
    structures = place.structures_ml()
    named = [name for name in asked.structures if name in structures]
    if asked.organs and not named:
        return cannot("out_of_view", f"there is no {asked.organs[0].display} {place.words}")
    if asked.kind == "volume" and named:
        return Planned(f"{millilitres(sum(structures[n] for n in named))} of the {asked.organs[0].display} lie {place.words}.")
    if asked.kind in ("volume", "size") and not named:
        return Planned(f"{capitalise(str(about))}: {millilitres(about.volume_ml)}.")
    if asked.kind == "density" and place.mean_hu is not None:
        if not named:
            return Planned(f"The mean density {place.words} is {place.mean_hu:.0f} HU.")
        labels = [ontology().structure(n).label for n in named]
        part = Place(place.evidence, place.words, place.share_xyz * np.isin(place.evidence.fine.organs_xyz, labels))
        return Planned(f"The mean density of the {asked.organs[0].display} {place.words} is {part.mean_hu:.0f} HU.")
    return _everything(known, asked, place, structures)


def _everything(known: Known, asked: Asked, place: Place, structures: dict[str, float]) -> Planned:
    """Organs that fill the place most, its density, and the findings that have voxels there."""
    here = {f: part for f in known.findings if (part := _touching(f, place)) is not None}
    if place.mean_hu is None:
        return cannot("out_of_view", "no part of the body lies in it")
    named = [f"{ontology().structure(name).display} {percent(ml / place.volume_ml)}" for name, ml in list(structures.items())[:MOST_NAMED]]
    organs = f"{capitalise(place.words)}: {', '.join(named) or 'no organ that this model segments'}; mean density {place.mean_hu:.0f} HU."
    # What is seen elsewhere is not seen here; that it is absent here is only said of what has voxels that could have been here.
    concerned = {f.name for name in structures for f in findings_of(name) if f.lesion is not None}
    judged = [*here, *(f for f in known.findings if f.state in ("absent", "not_assessed") and f.name in concerned)]
    if not judged:
        return Planned(f"{organs} No finding is looked for there.")
    plan = about_all(asked.kind or "findings", judged, place.words)
    link = next((place.evidence.lesion_link(part) for part in here.values()), None)
    if plan.unanswered is not None and asked.kind != "normal":
        return Planned(f"{organs} Not assessed: {', '.join(f.display for f in judged)}.", link=link)
    return replace(plan, text=f"{plan.text} {organs}", key=None, finding=None, link=link)


def _link_of(known: Known, about: About) -> Link | None:
    if about.segment is not None:
        segment = known.segment(about.segment)
        return None if segment is None else link_to(segment)
    return Link(kind="box", center_ras_mm=about.center_ras_mm, box_ras_mm=about.bounds_ras_mm)
