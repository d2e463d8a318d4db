"""Where the body is, on a coarse grid over a fine view: how much of a crop is body, and which of its voxels are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from VelvetMedLib.ct.body import BODY_ABOVE_HU
from VelvetMedLib.shapes import IntTriple, Triple

CELL_MM = 5.0


@dataclass(frozen=True)
class BodyCells:
    """cells: bool [x, y, z], each stands for `step` voxels along the axes of a volume of `shape` voxels (the last may stand for fewer)."""

    cells: NDArray[np.bool_]
    step: IntTriple
    shape: IntTriple

    def share(self, start: Sequence[int], size: IntTriple) -> float:
        """Share of the voxels of the box [start, start + size) that are body; what lies outside the volume is not."""
        weights, parts = [], []
        for low, n, step, end in zip(start, size, self.step, self.shape, strict=True):
            voxels = np.arange(max(int(low), 0), min(int(low) + n, end)) // step
            if not len(voxels):
                return 0.0
            parts.append(slice(int(voxels[0]), int(voxels[-1]) + 1))
            weights.append(np.bincount(voxels - voxels[0]).astype(np.float64))
        inside = self.cells[tuple(parts)].astype(np.float64)
        # One axis after the other: the sum over all three at once took most of the time of drawing a crop.
        along_x, along_y, along_z = weights
        return float((inside @ along_z @ along_y @ along_x) / np.prod(size))

    def voxels(self, start: Sequence[int], size: IntTriple) -> NDArray[np.bool_]:
        """bool [size]: which voxels of the box are body."""
        result = np.ones(size, bool)
        index = []
        for axis, (low, n, step, end) in enumerate(zip(start, size, self.step, self.shape, strict=True)):
            place = np.arange(n) + int(low)
            inside = (place >= 0) & (place < end)
            index.append(np.clip(place, 0, end - 1) // step)
            result &= inside.reshape([-1 if a == axis else 1 for a in range(3)])
        return result & self.cells[np.ix_(*index)]


def cell_step(spacing_mm: Triple) -> IntTriple:
    """Voxels of a cell along each axis."""
    a, b, c = (max(1, round(CELL_MM / s)) for s in spacing_mm)
    return (a, b, c)


def body_cells(hu_xyz: NDArray[np.generic], spacing_mm: Triple) -> BodyCells:
    """The largest connected tissue with what it encloses in each axial slice (lungs, bowel gas), on cells of about 5 mm.

    hu_xyz: axes right, anterior, superior, such as a fine view. Tissue and the opening that takes away the table are those of
    `ct.body_box`. Where there is no tissue all is body, so that a caller always finds a place.
    """
    step = cell_step(spacing_mm)
    shape = (int(hu_xyz.shape[0]), int(hu_xyz.shape[1]), int(hu_xyz.shape[2]))
    places = [np.minimum(np.arange(-(-n // s)) * s + s // 2, n - 1) for n, s in zip(shape, step, strict=True)]
    # One axis after the other: of a memory map only what is needed is read at once.
    sampled = np.asarray(hu_xyz[places[0]])[:, places[1]][:, :, places[2]]
    tissue = sitk.GetImageFromArray(np.ascontiguousarray((sampled > BODY_ABOVE_HU).transpose(2, 1, 0), np.uint8))
    opened = sitk.BinaryMorphologicalOpening(tissue, [1, 1, 1])
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(opened), sortByObjectSize=True)
    body = sitk.GetArrayFromImage(parts == 1)
    if not body.any():
        return BodyCells(np.ones(sampled.shape, bool), step, shape)
    filled = np.stack([sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(slice_ji))) for slice_ji in body])
    return BodyCells(np.ascontiguousarray(filled.transpose(2, 1, 0)) > 0, step, shape)
