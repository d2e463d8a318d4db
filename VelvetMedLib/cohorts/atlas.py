"""The label-and-tissue atlas: what the sample scan lends to every synthetic case."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from VelvetMedLib.reports.ontology import VERTEBRAL_LEVELS, ontology
from VelvetMedLib.shapes import Triple

Field = NDArray[np.float32]
"""A vector field [3, k, j, i]; components in (S, A, R) order, in mm."""

HABITUS_STEP = 3
HABITUS_PAD_MM = 108.0
OUTER_TISSUES = ("air", "skin", "fat_subcutaneous")
EXTRA_LEVELS = {27: "L5", 28: "L4"}
"""Levels below the scan, unfolded from L1 and L2."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """Arrays indexed (k, j, i) = (S, A, R), padded by one voxel of air; `origin_sar` is the centre of voxel (0, 0, 0) in mm.

    cells: uint8 index into the cell tables; a cell is a pair (part, tissue).
    cell_hu: median HU of a cell in the scan. residual_hu: the scan's HU minus that.
    habitus: vector from the inner body wall to each point outside it, zero within, on its own coarse grid.
    """

    cells: NDArray[np.uint8]
    residual_hu: NDArray[np.float32]
    spacing_mm: float
    origin_sar: NDArray[np.float32]
    tissues: tuple[str, ...]
    cell_tissue: NDArray[np.uint8]
    cell_part: NDArray[np.uint8]
    cell_structure: NDArray[np.uint8]
    cell_hu: NDArray[np.float32]
    air_cell: int
    habitus: Field
    habitus_origin_sar: NDArray[np.float32]
    habitus_step_mm: float
    centers_sar: dict[str, NDArray[np.float32]]
    """Centre of mass of each structure by name."""
    boxes_sar: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    ends_sar: dict[str, NDArray[np.float32]]
    """Six extreme points [6, 3] of each structure: lowest and highest along S, A and R."""
    body_centers_sar: dict[str, NDArray[np.float32]]
    """Centre of each vertebral body by level name ("T1" … "L5")."""
    body_heights_mm: dict[str, float]
    even_levels: tuple[str, ...]
    """Levels that are about as tall as the mean of their neighbours: only there a loss of height can be read."""
    level_part: dict[str, int]
    painted_out_ras_mm: Triple

    def tissue(self, name: str) -> int:
        """Index of a tissue class."""
        return self.tissues.index(name)

    def cells_of_tissue(self, *names: str) -> NDArray[np.bool_]:
        """Per cell, whether its tissue is one of `names`."""
        return np.isin(self.cell_tissue, [self.tissues.index(n) for n in names])


def _structure_of_part() -> NDArray[np.uint8]:
    table = np.zeros(256, np.uint8)
    for structure in ontology().structures:
        for part in structure.source_ids:
            table[part] = structure.label
    return table


def _habitus(outer: NDArray[np.bool_], origin: NDArray[np.float32], spacing: float) -> tuple[Field, NDArray[np.float32], float]:
    """Vectors from the inner body wall outwards, smooth, on a coarse grid that reaches far beyond the body."""
    step = spacing * HABITUS_STEP
    pad = round(HABITUS_PAD_MM / step)
    first = HABITUS_STEP // 2
    inner = ~outer[first::HABITUS_STEP, first::HABITUS_STEP, first::HABITUS_STEP]
    inner = np.pad(inner, ((0, 0), (pad, pad), (pad, pad)))
    image = sitk.GetImageFromArray(inner.astype(np.uint8))
    image.SetSpacing((step,) * 3)
    image = sitk.BinaryMorphologicalClosing(image, [2, 2, 2])
    distance = sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    smooth = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.Cast(distance, sitk.sitkFloat32), 9.0))
    slope = np.stack(np.gradient(smooth, step)).astype(np.float32)
    slope[0] = 0.0  # fat grows around the trunk, not along it
    slope /= np.maximum(np.sqrt((slope**2).sum(0)), 1e-3)
    start = origin + np.array([first, first, first], np.float32) * spacing - np.array([0, pad, pad], np.float32) * step
    return slope * np.maximum(smooth - 3.0, 0.0), start.astype(np.float32), step


@lru_cache(maxsize=1)
def load_atlas() -> Atlas:
    """The shipped atlas, read once per process."""
    folder = files("VelvetMedLib").joinpath("assets", "atlas")
    table = json.loads(folder.joinpath("atlas.json").read_text(encoding="utf-8"))
    with np.load(io.BytesIO(folder.joinpath("atlas.npz").read_bytes()), allow_pickle=False) as data:
        arrays = {name: data[name] for name in data.files}
    spacing = float(table["spacing_mm"])
    tissues = tuple(table["tissues"])
    cell_tissue, cell_part = arrays["cell_tissue"], arrays["cell_part"]
    air_cell = int(np.flatnonzero((cell_tissue == 0) & (cell_part == 0))[0])
    cells = np.pad(arrays["cells"], 1, constant_values=air_cell)
    # Feet end: the scan must not end in air there, since a case may be cut lower than the atlas by a rotation.
    cells[0] = cells[1]
    cells[-1] = cells[-2]
    residual = np.pad(arrays["residual"], 1, mode="edge").astype(np.float32) * np.float32(table["residual_step_hu"])
    residual[cells == air_cell] = 0.0
    lo_r, lo_a, lo_s = table["origin_ras_mm"]
    origin = np.array([lo_s, lo_a, lo_r], np.float32) - np.float32(spacing)
    cell_structure = _structure_of_part()[cell_part]
    outer_cell = np.isin(cell_tissue, [tissues.index(name) for name in OUTER_TISSUES])
    habitus, habitus_origin, habitus_step = _habitus(outer_cell[cells], origin, spacing)

    structures = cell_structure[cells]
    centers, boxes, ends = {}, {}, {}
    for structure in ontology().structures:
        at = np.argwhere(structures == structure.label)
        if len(at):
            centers[structure.name] = (at.mean(0) * spacing + origin).astype(np.float32)
            extreme = [at[:, axis].argmin() if n == 0 else at[:, axis].argmax() for axis in range(3) for n in range(2)]
            ends[structure.name] = (at[extreme] * spacing + origin).astype(np.float32)
            boxes[structure.name] = tuple((corner * spacing + origin).astype(np.float32) for corner in (at.min(0), at.max(0)))
    parts = cell_part[cells]
    cord = parts == 79
    bodies, heights, levels = {}, {}, {}
    named = {int(i): name.removeprefix("vertebrae_") for i, name in table["parts"].items() if name.startswith("vertebrae_")}
    for part, level in (named | EXTRA_LEVELS).items():
        at = np.argwhere(parts == part)
        if level[0] not in "TL" or len(at) < 200:
            continue
        cord_at = np.argwhere(cord[at[:, 0].min() : at[:, 0].max() + 1])
        front = at[at[:, 1] > cord_at[:, 1].mean() + 2]
        if len(front) < 100:
            continue
        bodies[level] = (front.mean(0) * spacing + origin).astype(np.float32)
        columns = np.unique(front[:, 1:], axis=0, return_counts=True)[1]
        heights[level] = float(np.median(columns[columns * 2 >= columns.max()])) * spacing
        levels[level] = part
    even = []
    for before, level, after in zip(VERTEBRAL_LEVELS, VERTEBRAL_LEVELS[1:], VERTEBRAL_LEVELS[2:], strict=False):
        if {before, level, after} <= set(heights) and heights[level] > 0.93 * (heights[before] + heights[after]) / 2:
            even.append(level)
    r, a, s = table["painted_out"]["center_ras_mm"]
    return Atlas(
        cells=cells, residual_hu=residual, spacing_mm=spacing, origin_sar=origin, tissues=tissues, cell_tissue=cell_tissue,
        cell_part=cell_part, cell_structure=cell_structure, cell_hu=arrays["cell_hu"], air_cell=air_cell,
        habitus=habitus, habitus_origin_sar=habitus_origin, habitus_step_mm=habitus_step, centers_sar=centers,
        boxes_sar=boxes, ends_sar=ends,
        body_centers_sar=bodies, body_heights_mm=heights, even_levels=tuple(even), level_part=levels, painted_out_ras_mm=(r, a, s),
    )  # fmt: skip
