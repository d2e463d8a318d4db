"""What the fine view shows of a finding: lesion components, organ measurements, side, site, and what lies outside the view.

Every number comes from `case.measure` on the fine grid, as the synthetic cohort's truth does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.case import Link, measure
from VelvetMedLib.ct import Grid
from VelvetMedLib.reports import LUNG_LOBES, Finding, Side, ontology
from VelvetMedLib.shapes import Triple
from VelvetMedLib.tasks.cleaning import spine_r_mm
from VelvetMedLib.tasks.encoding import FinePart
from VelvetMedLib.tasks.tokens import LesionMeta, border_shell, part_mask, threshold_bytes

TYPICAL_ML = {
    # ICRP Publication 89 (2002), reference woman, the smaller of the two adults: grams read as millilitres (5 % too many at most).
    "liver": 1400.0, "spleen": 130.0, "kidney_right": 138.0, "kidney_left": 138.0, "heart": 620.0, "stomach": 370.0, "esophagus": 35.0,
    # Each lobe's share of the lungs, supine (Yamada Y et al., Respiration 99:598-605, 2020), of 4200 ml: a breath held, not a full one.
    "lung_upper_lobe_left": 970.0, "lung_lower_lobe_left": 975.0,
    "lung_upper_lobe_right": 750.0, "lung_middle_lobe_right": 390.0, "lung_lower_lobe_right": 1115.0,
    # No published figure covers what our labels cover. The sample scan's mask has 188 ml of aorta down to the kidneys, 25 ml of trachea,
    # and 450 ml of vertebrae from the neck to the upper lumbar spine, below which three or four of 60 to 70 ml lie.
    "aorta": 200.0, "trachea": 30.0, "vertebrae": 700.0,
}  # fmt: skip
"""What an adult has, by source: it is judged against it how much of a cut-off structure is in view. Nobody's organ is called
large or small by these figures; a small adult's whole organ passes because a structure that is not cut off needs `LEAST_SHARE`."""
NEEDED_SHARE = {"aorta": 0.2, "vertebrae": 0.12, "trachea": 0.5, "esophagus": 0.4, "stomach": 0.4, "heart": 0.6, "liver": 0.5,
                "spleen": 0.6, "kidney_right": 0.6, "kidney_left": 0.6}  # fmt: skip
"""Share of the typical volume that must be in view of a structure which meets the border; lobes: `NEEDED_LOBE_SHARE`. Chosen by us
below the shares that the cohort's truth asks for, as people vary in size and the cohort knows each body's own."""
NEEDED_LOBE_SHARE = 0.35
LEAST_SHARE = 0.12
"""A structure that does not meet the border may be this small and still count as seen (shrunken, or partly consolidated)."""
ARTERIAL_AORTA_HU = 200.0
"""Median HU of the aorta above which the scan is in an arterial phase: the spleen is then brighter than any liver."""
BOTH_SIDES_SHARE = 0.15
"""A finding is on both sides when the smaller side holds at least this share of its volume."""
KIDNEYS = ("kidney_right", "kidney_left")
KIDNEY_LESIONS = ("renal_cyst", "kidney_stone", "hydronephrosis")
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
    home: str | None


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
        spine = spine_r_mm(self.fine.organs_kji, self.fine.grid)
        if spine is not None:
            return spine
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

    def seen(self, name: str) -> bool:
        """Whether enough of a structure lies within the field of view."""
        typical = TYPICAL_ML.get(name, 0.0)
        needed = NEEDED_LOBE_SHARE if name in LUNG_LOBES else NEEDED_SHARE.get(name, 0.5)
        return self.volume_ml(name) >= max(typical * (needed if self.truncated(name) else LEAST_SHARE), 1e-9)

    def out_of_view(self, finding: Finding) -> str | None:
        """Why this scan does not allow the finding to be assessed, or None."""
        lobes = [name for name in finding.requires if name in LUNG_LOBES]
        if lobes and sum(self.seen(name) for name in lobes) < min(len(lobes), 4):
            return "the lungs are not fully covered by this scan"
        others = [name for name in finding.requires if name not in LUNG_LOBES]
        unseen = [name for name in others if not self.seen(name)]
        # Of a pair (the kidneys) one is enough, if the other is absent and not cut off: it may have been removed.
        pair = len(others) == 2 and len({name.rsplit("_", 1)[0] for name in others}) == 1
        if not unseen or (pair and len(unseen) == 1 and not self.truncated(unseen[0])):
            return self._incomparable(finding.measure.quantity)
        names = [ontology().structure(name).display for name in unseen]
        be = "is" if len(names) == 1 and unseen != ["vertebrae"] else "are"
        return f"the {' and the '.join(names)} {be} not fully covered by this scan"

    def _incomparable(self, quantity: str) -> str | None:
        """What a comparison needs beyond the organ itself, as the cohort's truth asks for it."""
        if quantity == "cardiothoracic_ratio" and not all(self.seen(name) for name in LUNG_LOBES):
            return "the chest is not covered in its full width by this scan"
        if quantity == "liver_minus_spleen_hu":
            if self.volume_ml("spleen") < 0.2 * TYPICAL_ML["spleen"]:
                return "the spleen, with which the liver is compared, is not covered by this scan"
            aorta = self.mask("aorta")
            if aorta.any() and float(np.median(self.fine.hu_kji[aorta])) > ARTERIAL_AORTA_HU:
                return "an arterial phase does not show the liver's fat"
        return None

    def components(self, channel: int) -> tuple[Component, ...]:
        """The components behind the lesion tokens of a channel, largest first."""
        if channel not in self._components:
            metas = [m for m in self.fine.lesions if m.channel == channel]
            self._components[channel] = tuple(self._component(m) for m in metas)
        return self._components[channel]

    def _component(self, meta: LesionMeta) -> Component:
        mask = part_mask(self.fine.lesions_cxyz[meta.channel], meta, int(self._lowest[meta.channel]))
        axes = measure.axial_axes(mask.transpose(2, 1, 0), self._crop_grid(meta.first_xyz, mask.shape))
        home = self._home(meta, mask)
        side: Side = "left" if meta.center_ras_mm[0] < self.midline_mm else "right"
        if home is not None:
            side = "left" if home.endswith("_left") else "right"
        return Component(meta, mask, axes.long_mm, axes.short_mm, side, home)

    def _crop_grid(self, first: tuple[int, ...], shape: tuple[int, ...]) -> Grid:
        affine = np.array(self.fine.grid.ijk_to_ras)
        affine[:3, 3] += affine[:3, :3] @ np.array(first, np.float64)
        return Grid((shape[2], shape[1], shape[0]), affine)

    def _home(self, meta: LesionMeta, mask: NDArray[np.bool_]) -> str | None:
        """The lobe or kidney that holds most of a component, or, if none touches it, most of its surroundings."""
        among = KIDNEYS if ontology().lesions[meta.channel].name in KIDNEY_LESIONS else LUNG_LOBES
        wide = tuple(slice(max(a - BRIDGE_VOXELS, 0), b + BRIDGE_VOXELS) for a, b in zip(meta.first_xyz, meta.stop_xyz, strict=True))
        around = self.fine.organs_xyz[wide]
        inside = np.zeros(around.shape, bool)
        offset = tuple(a - w.start for a, w in zip(meta.first_xyz, wide, strict=True))
        inside[tuple(slice(o, o + n) for o, n in zip(offset, mask.shape, strict=True))] = mask
        labels = [ontology().structure(name).label for name in among]
        for part in (around[inside], around):
            counts = [int((part == label).sum()) for label in labels]
            if max(counts) > 0:
                return among[int(np.argmax(counts))]
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

    def _pleural(self) -> NDArray[np.bool_]:
        channels = [ontology().lesion(name).channel for name in ("pleural_effusion", "pneumothorax")]
        hit = np.zeros(self.fine.organs_xyz.shape, bool)
        for channel in channels:
            hit |= self.fine.lesions_cxyz[channel] >= self._lowest[channel]
        return hit.transpose(2, 1, 0)

    def measure(self, finding: Finding) -> Measured:
        """Everything that can be measured of a finding.

        A vertebra's loss of height and its level are not: the fine view has one label for all vertebrae, its cells of 4 mm
        make a body six or seven cells tall, and a loss of 15 % is one cell. What is reported of it is the model's verdict and
        the place of the marked voxels (`findings.UNMEASURED` says so in the finding).
        """
        if finding.lesion is None or finding.measure.quantity == "aortic_diameter_mm":
            return self._measure_organ(finding)
        return self._measure_lesions(finding)

    def _measure_lesions(self, finding: Finding) -> Measured:
        assert finding.lesion is not None
        parts = tuple(c for c in self.components(ontology().lesion(finding.lesion).channel) if ontology().counts_for(finding, c.long_mm))
        quantity, least = finding.measure.quantity, finding.measure.absent_below or 0.0
        if not parts:
            return Measured(value=0.0 if quantity == "volume_ml" else None)
        volume = sum(c.meta.volume_ml for c in parts)
        value: float | None = None
        largest, counted = parts[0], list(parts)
        if quantity in ("longest_axial_diameter_mm", "short_axis_mm"):
            sizes = [c.short_mm if quantity == "short_axis_mm" else c.long_mm for c in parts]
            value = max(sizes)
            largest = parts[int(np.argmax(sizes))]
            counted = [c for c, size in zip(parts, sizes, strict=True) if size >= least] or [largest]
        elif quantity == "volume_ml":
            value = volume
        elif quantity == "lung_fraction":
            lungs = sum(self.volume_ml(name) for name in LUNG_LOBES)
            value = min(volume / lungs, 1.0) if lungs > 0 else None
        return Measured(
            value=value,
            size_mm=value if finding.sized else None,
            volume_ml=sum(c.meta.volume_ml for c in counted),
            side=self._side(counted, by_count=finding.countable) if finding.sided else None,
            site=largest.home if largest.home in finding.sites else None,
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
            # The chest is as wide as its pleural cavities: fluid and free air count, though they are not lung.
            ratio = measure.cardiothoracic_ratio(self.mask("heart"), self.mask(*LUNG_LOBES) | self._pleural(), grid)
            return Measured(value=ratio, reliable=not self.truncated("heart"), link=link)
        if quantity == "liver_minus_spleen_hu":
            hu = measure.liver_minus_spleen_hu(self.fine.hu_kji, self.mask("liver"), self.mask("spleen"))
            return Measured(value=hu, link=link)
        if quantity == "craniocaudal_length_mm":
            length = measure.craniocaudal_length_mm(self.mask("spleen"), grid) or None
            return Measured(value=length, reliable=not self.truncated("spleen"), link=link)
        if quantity == "aortic_diameter_mm":
            lungs = self.mask(*LUNG_LOBES)
            aorta = measure.aortic_diameter_mm(self.mask("aorta"), grid, lungs_kji=lungs if lungs.any() else None)
            if aorta is None:
                return Measured(link=link)
            if link is not None:
                link = replace(link, center_ras_mm=aorta.center_ras)
            return Measured(value=aorta.diameter_mm, size_mm=aorta.diameter_mm, site=aorta.site, link=link)
        raise ValueError(f"no measurement for {quantity!r}")


def inside_point(mask_kji: NDArray[np.bool_], grid: Grid) -> Triple:
    """The mask's voxel nearest to its centre of mass, in RAS mm: a crescent's centre lies outside the crescent."""
    k, j, i = np.nonzero(mask_kji)
    ras = np.stack([i, j, k], 1) @ grid.ijk_to_ras[:3, :3].T + grid.ijk_to_ras[:3, 3]
    nearest = ras[int(((ras - ras.mean(0)) ** 2).sum(1).argmin())]
    return float(nearest[0]), float(nearest[1]), float(nearest[2])
