"""What the fine view shows of a finding: lesion components, organ measurements, side, site, and what lies outside the view.

Every number comes from `case.measure` on the fine grid, as the synthetic cohort's truth does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.case import Link, measure
from VelvetMedLib.ct import Grid
from VelvetMedLib.reports import LUNG_LOBES, Finding, Side, ontology
from VelvetMedLib.shapes import Triple
from VelvetMedLib.tasks.encoding import FinePart
from VelvetMedLib.tasks.tokens import LesionMeta, border_shell, components, threshold_bytes

LEAST_SEEN_ML = {
    "liver": 250.0, "spleen": 40.0, "kidney_right": 35.0, "kidney_left": 35.0, "heart": 120.0, "aorta": 25.0, "stomach": 25.0,
    "esophagus": 3.0, "trachea": 4.0, "vertebrae": 40.0,
}  # fmt: skip
"""About a quarter of an adult's organ: below it a structure counts as outside the field of view."""
LEAST_LUNGS_ML = 500.0
BOTH_SIDES_SHARE = 0.15
"""A finding is on both sides when the smaller side holds at least this share of its volume."""
BRIDGE_VOXELS = 3
"""How far outside an organ a lesion may lie and still be placed in it."""


@dataclass(frozen=True, eq=False)
class Component:
    """One lesion component: where it is and how it measures."""

    meta: LesionMeta
    mask: NDArray[np.bool_]
    long_mm: float
    short_mm: float
    side: Side | None
    site: str | None


@dataclass(frozen=True, eq=False)
class Measured:
    """What the fine view says of one finding. value: in the ontology's unit, None where it cannot be measured."""

    value: float | None = None
    reliable: bool = True
    size_mm: float | None = None
    volume_ml: float | None = None
    side: Side | None = None
    site: str | None = None
    count: int | None = None
    link: Link | None = None


class Evidence:
    """Looks up and measures, each thing once. thresholds: the bundle's lesion thresholds."""

    def __init__(self, fine: FinePart, thresholds: tuple[float, ...]) -> None:
        self.fine = fine
        self._lowest = threshold_bytes(thresholds)
        self._components: dict[int, tuple[Component, ...]] = {}

    @cached_property
    def _voxels(self) -> NDArray[np.int64]:
        return np.bincount(self.fine.organs_xyz.ravel(), minlength=33)

    @cached_property
    def _shell_voxels(self) -> NDArray[np.int64]:
        shell = border_shell(self.fine.organs_xyz.shape, self.fine.in_view)
        return np.bincount(self.fine.organs_xyz[shell], minlength=33)

    @cached_property
    def midline_mm(self) -> float:
        """R coordinate between the patient's sides: the spine's, else the body's middle."""
        for name in ("spinal_cord", "vertebrae"):
            label = ontology().structure(name).label
            if self._voxels[label] >= 20:
                centre = measure.centroid_ras(self.mask(name), self.fine.grid)
                assert centre is not None
                return centre[0]
        low, high = self.fine.body_box_ras
        return float(low[0] + high[0]) / 2

    def volume_ml(self, name: str) -> float:
        return float(self._voxels[ontology().structure(name).label]) * self.fine.grid.voxel_volume_ml

    def truncated(self, name: str) -> bool:
        """Whether a structure meets the border of the field of view."""
        return bool(self._shell_voxels[ontology().structure(name).label] > 0)

    def mask(self, *names: str) -> NDArray[np.bool_]:
        """(k, j, i) mask of structures."""
        labels = [ontology().structure(name).label for name in names]
        organs = self.fine.organs_kji
        return organs == labels[0] if len(labels) == 1 else np.isin(organs, labels)

    def out_of_view(self, finding: Finding) -> str | None:
        """Why the field of view does not allow this finding to be assessed, or None."""
        lobes = [name for name in finding.requires if name in LUNG_LOBES]
        if lobes and sum(self.volume_ml(name) for name in lobes) < LEAST_LUNGS_ML:
            return "the lungs are not covered by this scan"
        others = [name for name in finding.requires if name not in LUNG_LOBES]
        unseen = [name for name in others if self.volume_ml(name) < LEAST_SEEN_ML.get(name, 1.0)]
        # Of a pair (the kidneys) one is enough: the other may have been removed.
        paired = {name.rsplit("_", 1)[0] for name in others if name.endswith(("_left", "_right"))}
        if len(paired) == 1 and len(unseen) < len(others):
            return None
        if not unseen:
            return None
        names = [ontology().structure(name).display for name in unseen]
        return f"the {' and the '.join(names)} {'is' if len(names) == 1 else 'are'} not covered by this scan"

    def components(self, channel: int) -> tuple[Component, ...]:
        """The components behind the lesion tokens of a channel, largest first."""
        if channel not in self._components:
            metas = [m for m in self.fine.lesions if m.channel == channel]
            self._components[channel] = tuple(self._component(m) for m in metas)
        return self._components[channel]

    def _component(self, meta: LesionMeta) -> Component:
        box = tuple(slice(a, b) for a, b in zip(meta.first_xyz, meta.stop_xyz, strict=True))
        hit = self.fine.lesions_cxyz[meta.channel][box] >= self._lowest[meta.channel]
        seed = tuple(s - a for s, a in zip(meta.seed_xyz, meta.first_xyz, strict=True))
        mask = np.zeros(hit.shape, bool)
        for place, part in components(hit):
            local = tuple(s - p.start for s, p in zip(seed, place, strict=True))
            if all(0 <= n < size for n, size in zip(local, part.shape, strict=True)) and part[local]:
                mask[place] = part
                break
        axes = measure.axial_axes(mask.transpose(2, 1, 0), self._crop_grid(meta.first_xyz, mask.shape))
        site = self._lobe(meta, mask)
        side = ontology().site_side(site) or ("left" if meta.center_ras_mm[0] < self.midline_mm else "right")
        return Component(meta, mask, axes.long_mm, axes.short_mm, side, site)

    def _crop_grid(self, first: tuple[int, ...], shape: tuple[int, ...]) -> Grid:
        affine = np.array(self.fine.grid.ijk_to_ras)
        affine[:3, 3] += affine[:3, :3] @ np.array(first, np.float64)
        return Grid((shape[2], shape[1], shape[0]), affine)

    def _lobe(self, meta: LesionMeta, mask: NDArray[np.bool_]) -> str | None:
        """The lobe that holds most of a component, or most of its surroundings."""
        wide = tuple(
            slice(max(a - BRIDGE_VOXELS, 0), b + BRIDGE_VOXELS) for a, b in zip(meta.first_xyz, meta.stop_xyz, strict=True)
        )
        around = self.fine.organs_xyz[wide]
        inside = np.zeros(around.shape, bool)
        offset = tuple(a - w.start for a, w in zip(meta.first_xyz, wide, strict=True))
        inside[tuple(slice(o, o + n) for o, n in zip(offset, mask.shape, strict=True))] = mask
        labels = [ontology().structure(name).label for name in LUNG_LOBES]
        for part in (around[inside], around):
            counts = [int((part == label).sum()) for label in labels]
            if max(counts) > 0:
                return LUNG_LOBES[int(np.argmax(counts))]
        return None

    def segment_link(self, finding: Finding) -> Link | None:
        """A point in the largest of the structures that the finding concerns."""
        seen = [name for name in finding.requires if self.volume_ml(name) > 0]
        return self.structure_link(max(seen, key=self.volume_ml)) if seen else None

    def structure_link(self, name: str) -> Link | None:
        """A link to a structure: a point inside it nearest to its centre, and its box."""
        mask, grid = self.mask(name), self.fine.grid
        corners = measure.box_ras(mask, grid)
        if corners is None:
            return None
        label = ontology().structure(name).label
        return Link(kind="segment", label=label, center_ras_mm=inside_point(mask, grid), box_ras_mm=corners)

    def lesion_link(self, component: Component) -> Link:
        """A link to a lesion: the voxel of it nearest to its centre, and its box."""
        meta = component.meta
        grid = self._crop_grid(meta.first_xyz, component.mask.shape)
        point = inside_point(component.mask.transpose(2, 1, 0), grid)
        return Link(kind="lesion", label=101 + meta.channel, center_ras_mm=point, box_ras_mm=meta.box_ras_mm)

    def measure(self, finding: Finding) -> Measured:
        """Everything that can be measured of a finding."""
        if finding.lesion is None or finding.measure.quantity == "aortic_diameter_mm":
            return self._measure_organ(finding)
        return self._measure_lesions(finding)

    def _measure_lesions(self, finding: Finding) -> Measured:
        assert finding.lesion is not None
        parts = self.components(ontology().lesion(finding.lesion).channel)
        quantity = finding.measure.quantity
        if not parts:
            return Measured()
        least = finding.measure.absent_below or 0.0
        largest = max(parts, key=lambda c: c.long_mm) if finding.sized else parts[0]
        volume = sum(c.meta.volume_ml for c in parts)
        value: float | None = None
        if quantity == "volume_ml":
            value = volume
        elif quantity == "longest_axial_diameter_mm":
            value = largest.long_mm
        elif quantity == "short_axis_mm":
            largest = max(parts, key=lambda c: c.short_mm)
            value = largest.short_mm
        elif quantity == "lung_fraction":
            lungs = sum(self.volume_ml(name) for name in LUNG_LOBES)
            value = min(volume / lungs, 1.0) if lungs > 0 else None
        measured = {"longest_axial_diameter_mm": lambda c: c.long_mm, "short_axis_mm": lambda c: c.short_mm}.get(quantity)
        counted = [c for c in parts if measured is None or measured(c) >= least] or [largest]
        side = self._side(counted, by_count=finding.countable) if finding.sided else None
        site = largest.site if finding.sites else None
        if site is not None and side in ("left", "right") and ontology().site_side(site) != side:
            site = None
        return Measured(
            value=value,
            size_mm=(largest.short_mm if quantity == "short_axis_mm" else largest.long_mm) if finding.sized else None,
            volume_ml=volume,
            side=side,
            site=site,
            count=len(counted) if finding.countable else None,
            link=self.lesion_link(largest),
        )

    def _side(self, parts: list[Component], *, by_count: bool) -> Side | None:
        weight = {"left": 0.0, "right": 0.0}
        for part in parts:
            if part.side in weight:
                weight[str(part.side)] += 1.0 if by_count else part.meta.volume_ml
        total = sum(weight.values())
        if total == 0:
            return None
        if min(weight.values()) >= (1e-9 if by_count else BOTH_SIDES_SHARE * total):
            return "both"
        return "left" if weight["left"] > weight["right"] else "right"

    def _measure_organ(self, finding: Finding) -> Measured:
        grid, quantity = self.fine.grid, finding.measure.quantity
        link = self.segment_link(finding)
        if quantity == "cardiothoracic_ratio":
            ratio = measure.cardiothoracic_ratio(self.mask("heart"), self.mask(*LUNG_LOBES), grid)
            return Measured(value=ratio, reliable=not self.truncated("heart"), link=link)
        if quantity == "liver_minus_spleen_hu":
            # A few voxels of a spleen outside the view say nothing about its attenuation.
            seen = self.volume_ml("spleen") >= LEAST_SEEN_ML["spleen"] / 2
            hu = measure.liver_minus_spleen_hu(self.fine.hu_kji, self.mask("liver"), self.mask("spleen")) if seen else None
            return Measured(value=hu, link=link)
        if quantity == "craniocaudal_length_mm":
            length = measure.craniocaudal_length_mm(self.mask("spleen"), grid) or None
            return Measured(value=length, reliable=not self.truncated("spleen"), link=link)
        if quantity == "aortic_diameter_mm":
            lungs = self.mask(*LUNG_LOBES)
            aorta = measure.aortic_diameter_mm(self.mask("aorta"), grid, lungs_kji=lungs if lungs.any() else None)
            if aorta is None:
                return Measured(link=link)
            point = Link(kind="point", label=ontology().structure("aorta").label, center_ras_mm=aorta.center_ras, box_ras_mm=None)
            return Measured(value=aorta.diameter_mm, size_mm=aorta.diameter_mm, site=aorta.site, link=point)
        raise ValueError(f"no measurement for {quantity!r}")


def inside_point(mask_kji: NDArray[np.bool_], grid: Grid) -> Triple:
    """The mask's voxel nearest to its centre of mass, in RAS mm: a crescent's centre lies outside the crescent."""
    k, j, i = np.nonzero(mask_kji)
    ras = np.stack([i, j, k], 1) @ grid.ijk_to_ras[:3, :3].T + grid.ijk_to_ras[:3, 3]
    nearest = ras[int(((ras - ras.mean(0)) ** 2).sum(1).argmin())]
    return float(nearest[0]), float(nearest[1]), float(nearest[2])
