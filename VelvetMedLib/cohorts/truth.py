"""What a case's labels say: every state is measured on the painted case, through the same functions the tasks use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.case import measure
from VelvetMedLib.case.geometry import index_box
from VelvetMedLib.cohorts.canvas import LOBES, label
from VelvetMedLib.reports.ontology import LUNG_LOBES, Finding, ontology
from VelvetMedLib.reports.records import FindingRecord, Side, State
from VelvetMedLib.shapes import Affine

BOTH_SIDES_SHARE = 0.15
NEEDED_SHARE: dict[str, float] = {
    "aorta": 0.2, "vertebrae": 0.12, "esophagus": 0.45, "trachea": 0.6, "stomach": 0.5, "heart": 0.9, "liver": 0.75, "spleen": 0.97,
    "kidney_right": 0.85, "kidney_left": 0.85,
}  # fmt: skip
NEEDED_LOBE_SHARE = 0.55
WHOLE_LUNGS_SHARE = 0.8
"""The heart's width is compared with the chest's, so most of both lungs must be there."""

Instance = dict[str, Any]


class CaseMaps:
    """The arrays that truth is read from, with crops so that no measurement touches the whole grid twice."""

    def __init__(
        self, hu: NDArray[np.float32], organs: NDArray[np.uint8], lesions: NDArray[np.uint32], channels: list[str], affine: Affine
    ) -> None:
        self.hu, self.organs, self.lesions, self.channels, self.affine = hu, organs, lesions, channels, affine
        self.voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0

    def organ(self, *names: str) -> NDArray[np.bool_]:
        """Mask of some structures."""
        table = np.zeros(256, bool)
        table[[label(name) for name in names]] = True
        return table[self.organs]

    @property
    def pleural(self) -> NDArray[np.bool_]:
        """Fluid and free air in the pleural cavities."""
        bits = sum(1 << n for n, channel in enumerate(self.channels) if channel in ("pleural_effusion", "pneumothorax"))
        return (self.lesions & np.uint32(bits)) != 0

    def crop(self, mask: NDArray[np.bool_]) -> tuple[tuple[slice, slice, slice], NDArray[np.bool_], Affine] | None:
        """A mask's tight box, its crop and the crop's affine."""
        box = index_box(mask)
        if box is None:
            return None
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.array([box[2].start, box[1].start, box[0].start], float)
        return box, mask[box], affine


def describe_instances(maps: CaseMaps, midline_mm: float) -> list[Instance]:
    """The instance table: what is in view of each lesion and how it measures."""
    table = []
    kidneys = tuple(label(n) for n in ("kidney_right", "kidney_left"))
    for number, channel in enumerate(maps.channels, 1):
        cropped = maps.crop((maps.lesions & np.uint32(1 << (number - 1))) != 0)
        if cropped is None:
            continue
        box, mask, affine = cropped
        organs = maps.organs[box]
        among = kidneys if channel in ("renal_cyst", "kidney_stone", "hydronephrosis") else LOBES
        home = measure.dominant_label(mask, organs, among)
        axes = measure.axial_axes(mask, affine)
        center = measure.centroid_ras(mask, affine)
        assert center is not None
        side: Side = "left" if center[0] < midline_mm else "right"
        structure = None
        if home is not None:
            structure = ontology().by_label(home).name
            side = "left" if structure.endswith("_left") else "right"
        table.append(
            {
                "id": number,
                "lesion": channel,
                "structure": structure,
                "side": side,
                "size_mm": round(axes.long_mm, 2),
                "short_axis_mm": round(axes.short_mm, 2),
                "volume_ml": round(int(mask.sum()) * maps.voxel_ml, 4),
                "mean_hu": round(float(maps.hu[box][mask].mean()), 1),
                "center_ras_mm": [round(x, 2) for x in center],
            }
        )
    return table


def midline_ras(maps: CaseMaps) -> float:
    """Right coordinate of the spine, which parts left from right where no organ does."""
    for names in (("spinal_cord",), ("vertebrae",)):
        where = np.nonzero(maps.organ(*names))
        if len(where[0]):
            return float(maps.affine[0, 0] * where[2].mean() + maps.affine[0, 3])
    return float(maps.affine[0, 0] * (maps.organs.shape[2] - 1) / 2 + maps.affine[0, 3])


def assessed(finding: Finding, seen: Mapping[str, float]) -> bool:
    """Whether enough of every structure that a finding needs is in view; `seen` is the share of each, before any lesion."""
    for name in finding.requires:
        needed = NEEDED_LOBE_SHARE if name in LUNG_LOBES else NEEDED_SHARE.get(name, 0.8)
        if seen.get(name, 0.0) < needed:
            return False
    if finding.measure.quantity == "cardiothoracic_ratio":
        return min(seen.get(name, 0.0) for name in LUNG_LOBES) >= WHOLE_LUNGS_SHARE
    if finding.measure.quantity == "liver_minus_spleen_hu":
        return seen.get("spleen", 0.0) >= 0.4
    return True


def measure_finding(finding: Finding, maps: CaseMaps, instances: list[Instance], vertebra: Mapping[str, Any] | None) -> FindingRecord:
    """The record of one assessed finding."""
    own = [x for x in instances if x["lesion"] == finding.lesion]
    quantity = finding.measure.quantity
    if quantity == "aortic_diameter_mm":
        return _aorta(finding, maps, own)
    if quantity == "height_loss_fraction":
        return _vertebra(finding, own, vertebra)
    if finding.lesion is None:
        return _organ(finding, maps)
    return _lesions(finding, maps, own)


def _lesions(finding: Finding, maps: CaseMaps, own: list[Instance]) -> FindingRecord:
    own = [x for x in own if ontology().counts_for(finding, x["size_mm"])]
    quantity = finding.measure.quantity
    size: dict[str, Callable[[Instance], float]] = {
        "longest_axial_diameter_mm": lambda x: x["size_mm"],
        "short_axis_mm": lambda x: x["short_axis_mm"],
    }
    if not own:
        return FindingRecord(name=finding.name, state="absent", value=0.0)
    if quantity in size:
        key = size[quantity]
        value = max(key(x) for x in own)
        largest = max(own, key=key)
        least = finding.measure.absent_below or 0.0
        counted = [x for x in own if key(x) >= least]
        size_mm: float | None = round(value, 1)
    else:
        volume = sum(x["volume_ml"] for x in own)
        if quantity == "lung_fraction":
            lungs = int(maps.organ(*LUNG_LOBES).sum()) * maps.voxel_ml
            if lungs <= 0:
                return FindingRecord(name=finding.name, state="not_assessed")
            value = volume / lungs
        else:
            value = volume
        largest = max(own, key=lambda x: x["volume_ml"])
        counted, size_mm = own, None
    state = finding.state_of(value)
    if state == "absent":
        return FindingRecord(name=finding.name, state="absent", value=round(value, 4))
    return FindingRecord(
        name=finding.name,
        state=state,
        side=_side(counted, by_count=finding.countable) if finding.sided else None,
        site=largest["structure"] if finding.sites and largest["structure"] in finding.sites else None,
        size_mm=size_mm if finding.sized else None,
        count=len(counted) if finding.countable else None,
        density_hu=largest["mean_hu"],
        severity=finding.severity_of(value) if state == "present" else None,
        volume_ml=round(sum(x["volume_ml"] for x in counted), 3),
        value=round(value, 4),
        instance_ids=tuple(x["id"] for x in counted),
    )


def _side(instances: list[Instance], *, by_count: bool) -> Side:
    weight = {side: sum(1.0 if by_count else x["volume_ml"] for x in instances if x["side"] == side) for side in ("left", "right")}
    if min(weight.values()) > 0 and min(weight.values()) >= (0.0 if by_count else BOTH_SIDES_SHARE) * sum(weight.values()):
        return "both"
    return "left" if weight["left"] > weight["right"] else "right"


def _organ(finding: Finding, maps: CaseMaps) -> FindingRecord:
    quantity = finding.measure.quantity
    value: float | None
    if quantity == "cardiothoracic_ratio":
        # The chest is as wide as its pleural cavities: fluid and free air count, though they are not lung.
        lungs = maps.organ(*LUNG_LOBES) | maps.pleural
        value = measure.cardiothoracic_ratio(maps.organ("heart"), lungs, maps.affine)
    elif quantity == "liver_minus_spleen_hu":
        value = measure.liver_minus_spleen_hu(maps.hu, maps.organ("liver"), maps.organ("spleen"))
    elif quantity == "craniocaudal_length_mm":
        value = measure.craniocaudal_length_mm(maps.organ("spleen"), maps.affine) or None
    else:
        raise ValueError(f"no measurement for {quantity!r}")
    state = finding.state_of(value)
    return FindingRecord(
        name=finding.name,
        state=state,
        value=None if value is None else round(value, 4),
        severity=finding.severity_of(value) if state == "present" else None,
    )


def _aorta(finding: Finding, maps: CaseMaps, own: list[Instance]) -> FindingRecord:
    result = aortic_diameter(maps)
    if result is None:
        return FindingRecord(name=finding.name, state="not_assessed")
    state = finding.state_of(result.diameter_mm)
    value = round(result.diameter_mm, 2)
    if state == "absent":
        return FindingRecord(name=finding.name, state="absent", value=value)
    return FindingRecord(
        name=finding.name,
        state=state,
        site=result.site,
        size_mm=round(value, 1),
        severity=finding.severity_of(value) if state == "present" else None,
        value=value,
        volume_ml=round(sum(x["volume_ml"] for x in own), 3) if own else None,
        density_hu=own[0]["mean_hu"] if own else None,
        instance_ids=tuple(x["id"] for x in own),
    )


def aortic_diameter(maps: CaseMaps) -> measure.AorticDiameter | None:
    """The aorta's largest diameter, with the lungs as the guide to its stretches."""
    cropped = maps.crop(maps.organ("aorta"))
    if cropped is None:
        return None
    lungs = maps.organ(*LUNG_LOBES)
    return measure.aortic_diameter_mm(maps.organ("aorta"), maps.affine, lungs_kji=lungs if lungs.any() else None)


def _vertebra(finding: Finding, own: list[Instance], vertebra: Mapping[str, Any] | None) -> FindingRecord:
    if vertebra is None:
        return FindingRecord(name=finding.name, state="not_assessed")
    value = float(vertebra["height_loss_fraction"])
    state: State = finding.state_of(value)
    if state == "absent":
        return FindingRecord(name=finding.name, state="absent", value=value)
    return FindingRecord(
        name=finding.name,
        state=state,
        site=str(vertebra["level"]),
        count=1,
        severity=finding.severity_of(value) if state == "present" else None,
        value=value,
        volume_ml=round(sum(x["volume_ml"] for x in own), 3) if own else None,
        density_hu=own[0]["mean_hu"] if own else None,
        instance_ids=tuple(x["id"] for x in own),
    )


def read_truth(
    maps: CaseMaps, seen: Mapping[str, float], vertebra: Mapping[str, Any] | None, liver_fat_readable: bool
) -> tuple[list[Instance], list[FindingRecord]]:
    """Instance table and the records of all findings, in the ontology's order."""
    instances = describe_instances(maps, midline_ras(maps))
    records = []
    for finding in ontology().findings:
        readable = liver_fat_readable or finding.name != "hepatic_steatosis"
        if assessed(finding, seen) and readable:
            records.append(measure_finding(finding, maps, instances, vertebra))
        else:
            records.append(FindingRecord(name=finding.name, state="not_assessed"))
    return instances, records
