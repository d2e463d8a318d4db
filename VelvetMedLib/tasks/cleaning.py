"""Cleaning of what the fine sweep found, on the fine grid: rules that are stated, the same for every scan, and can be switched off.

A cell that loses its label gets the next most probable one, to which the same rule applies. The rules run in the order of `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from VelvetMedLib.case import measure
from VelvetMedLib.ct import Grid
from VelvetMedLib.reports import LUNG_LOBES, ontology
from VelvetMedLib.shapes import LabelsKJI
from VelvetMedLib.tasks.class_maps import ClassMaps, filled_box
from VelvetMedLib.tasks.tokens import components, threshold_bytes

SIDE_MARGIN_MM = 20.0
LEAST_ISLAND_ML = 0.3
LESION_REACH_MM = 12.0
MOST_TURNS = 4
"""Of taking what is wrong from one class and giving it to the next. A map of nothing but specks would go through every class."""
RULES: Mapping[str, str] = {
    "sides": f"Of an organ that has a side, a part whose centre lies more than {SIDE_MARGIN_MM:g} mm beyond the spine is not that organ.",
    "islands": "An organ that is one piece in everybody keeps its largest part; every other structure loses parts under "
    f"{LEAST_ISLAND_ML:g} ml unless they are its largest.",
    "holes": "Cells of no structure that one structure encloses on all sides become that structure's.",
    "strays": f"A lesion more than {LESION_REACH_MM:g} mm from every structure in or at which its kind occurs is dropped.",
}
"""By name, what each rule says."""
SOLID = (
    "spleen", "kidney_right", "kidney_left", "liver", "stomach", "pancreas", "adrenal_gland_right", "adrenal_gland_left",
    "lung_upper_lobe_left", "lung_lower_lobe_left", "lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right",
    "heart", "trachea", "sternum", "spinal_cord", "superior_vena_cava",
)  # fmt: skip
"""One piece in everybody."""
SIDED = ("kidney_right", "kidney_left", "adrenal_gland_right", "adrenal_gland_left", *LUNG_LOBES)
"""On their side in everybody: with mirrored organs, too, the left kidney and lung are those on the left."""
_CHEST = (*LUNG_LOBES, "heart", "ribs")
_KIDNEYS = ("kidney_right", "kidney_left")
HOMES: Mapping[str, tuple[str, ...]] = {
    "lung_nodule": LUNG_LOBES, "ground_glass_opacity": LUNG_LOBES, "emphysema": LUNG_LOBES,
    # A lung without air, or squeezed by what lies around it, may be labelled as no lobe: heart and ribs remain.
    "consolidation": _CHEST, "atelectasis": _CHEST, "pleural_effusion": _CHEST, "pneumothorax": _CHEST,
    "pericardial_effusion": ("heart",), "coronary_calcification": ("heart",),
    "lymphadenopathy": (
        "trachea", "heart", "aorta", "esophagus", "superior_vena_cava", "brachiocephalic_vein", "supra_aortic_arteries", "thyroid_gland",
    ),
    "hiatal_hernia": ("stomach", "esophagus", "heart", "aorta"),
    "liver_lesion": ("liver",),
    "renal_cyst": _KIDNEYS, "kidney_stone": _KIDNEYS, "hydronephrosis": _KIDNEYS,
    "vertebral_compression": ("vertebrae",),
    "aortic_dilatation": ("aorta",),
}  # fmt: skip
"""Structures in or at which a lesion of each kind occurs."""


def clean(
    maps: ClassMaps, lesions_cxyz: NDArray[np.uint8], grid: Grid, thresholds: Sequence[float]
) -> tuple[NDArray[np.uint8], dict[str, float]]:
    """Labels [X, Y, Z] by all rules and the ml that each rule changed; `maps` and `lesions_cxyz` are changed in place."""
    labels = maps.labels_xyz()
    cells = {
        "sides": _relabel(maps, labels, lambda among: _on_the_wrong_side(labels, grid, among)),
        "islands": _relabel(maps, labels, lambda among: _islands(labels, grid, among)),
        "holes": _fill(maps, labels),
        "strays": _drop_strays(lesions_cxyz, labels, grid, thresholds),
    }
    return labels, {rule: round(count * grid.voxel_volume_ml, 3) for rule, count in cells.items()}


def spine_r_mm(organs_kji: LabelsKJI, grid: Grid) -> float | None:
    """R coordinate of the spinal cord's centre, without one of the vertebrae's; None where neither is seen."""
    for name in ("spinal_cord", "vertebrae"):
        mask = organs_kji == ontology().structure(name).label
        if np.count_nonzero(mask) >= 20:
            centre = measure.centroid_ras(mask, grid)
            assert centre is not None
            return centre[0]
    return None


def _on_the_wrong_side(labels: NDArray[np.uint8], grid: Grid, among: Collection[int]) -> NDArray[np.bool_]:
    wrong = np.zeros(labels.shape, bool)
    spine = spine_r_mm(labels.transpose(2, 1, 0), grid)
    if spine is None:
        return wrong
    step, origin = grid.ijk_to_ras[0, 0], grid.ijk_to_ras[0, 3]
    for structure in (s for s in map(ontology().structure, SIDED) if s.label in among):
        for box, part in components(labels == structure.label):
            r_mm = origin + step * (box[0].start + part.sum((1, 2)) @ np.arange(part.shape[0]) / part.sum())
            if (r_mm - spine if structure.side == "left" else spine - r_mm) > SIDE_MARGIN_MM:
                wrong[box] |= part
    return wrong


def _islands(labels: NDArray[np.uint8], grid: Grid, among: Collection[int]) -> NDArray[np.bool_]:
    islands = np.zeros(labels.shape, bool)
    least = LEAST_ISLAND_ML / grid.voxel_volume_ml
    for structure in (s for s in ontology().structures if s.label in among):
        hit = labels == structure.label
        # As many parts as can be large enough, so that none of these is taken for an island.
        parts = components(hit, most=1 if structure.name in SOLID else 1 + int(np.count_nonzero(hit) / least))
        for rank, (box, part) in enumerate(parts):
            if rank == 0 or part.sum() >= least:
                hit[box] &= ~part
        islands |= hit
    return islands


def _relabel(maps: ClassMaps, labels: NDArray[np.uint8], wrong_among: Callable[[Collection[int]], NDArray[np.bool_]]) -> int:
    """Take the labels that a rule finds wrong among some: the next most probable class follows, until the rule finds nothing there.

    Returns how many cells changed. What is still wrong after `MOST_TURNS` becomes background, which leaves nothing for another turn.
    """
    changed = np.zeros(labels.shape, bool)
    among: set[int] = set(np.unique(labels).tolist())
    turns = 0
    while among and (wrong := wrong_among(among)).any():
        turns += 1
        cells = np.nonzero(wrong)
        had = labels[cells]
        for label in np.unique(had) if turns <= MOST_TURNS else (s.label for s in ontology().structures):
            taken = tuple(axis[had == label] for axis in cells) if turns <= MOST_TURNS else cells
            maps.put(int(label), taken, 0)  # type: ignore[arg-type]
        labels[cells] = maps.labels_at(cells)  # type: ignore[arg-type]
        changed |= wrong
        among = set(np.unique(labels[cells]).tolist())
    return int(np.count_nonzero(changed))


def _fill(maps: ClassMaps, labels: NDArray[np.uint8]) -> int:
    filled = 0
    for structure in ontology().structures:
        hit = labels == structure.label
        box = filled_box(hit)
        if box is None:
            continue
        whole = sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(hit[box].astype(np.uint8)))) > 0
        holes = np.nonzero(whole & (labels[box] == 0))
        x, y, z = (axis + side.start for axis, side in zip(holes, box, strict=True))
        # The two probabilities change places; what encloses a cell has its whole box around it.
        inside, outside = maps.at(structure.label, (x, y, z)), maps.at(0, (x, y, z))
        maps.put(structure.label, (x, y, z), outside)
        maps.put(0, (x, y, z), inside)
        labels[x, y, z] = structure.label
        filled += len(x)
    return filled


def _drop_strays(lesions_cxyz: NDArray[np.uint8], labels: NDArray[np.uint8], grid: Grid, thresholds: Sequence[float]) -> int:
    reach = np.ceil(LESION_REACH_MM / np.diag(grid.ijk_to_ras)[:3] - 1e-6).astype(int)
    near: dict[tuple[str, ...], NDArray[np.bool_]] = {}
    dropped = 0
    for lesion, lowest in zip(ontology().lesions, threshold_bytes(thresholds), strict=True):
        hit = lesions_cxyz[lesion.channel] >= lowest
        if not hit.any():
            continue
        homes = HOMES[lesion.name]
        if homes not in near:
            near[homes] = _widened(np.isin(labels, [ontology().structure(name).label for name in homes]), reach)
        parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(hit.astype(np.uint8)), True))
        at_home = np.bincount(parts[near[homes]], minlength=int(parts.max()) + 1) > 0
        stray = hit & ~at_home[parts]
        lesions_cxyz[lesion.channel][stray] = 0
        dropped += int(np.count_nonzero(stray))
    return dropped


def _widened(mask: NDArray[np.bool_], cells: NDArray[np.int_]) -> NDArray[np.bool_]:
    """A mask and all within a box of so many cells to every side."""
    wide = mask.copy()
    for axis, count in enumerate(cells):
        view = np.moveaxis(wide, axis, 0)
        for _ in range(count):
            before = view.copy()
            view[1:] |= before[:-1]
            view[:-1] |= before[1:]
    return wide
