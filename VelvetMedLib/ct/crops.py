"""A cube of fixed millimetres around the middle of a scan, in the scan's own directions: the view of encoders that take one crop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.ct.geometry import Grid
from VelvetMedLib.ct.resample import as_ras, resample_array
from VelvetMedLib.ct.volume import Volume
from VelvetMedLib.shapes import IntTriple


@dataclass(frozen=True, eq=False)
class CropView:
    """voxels_xyz: float32 in -1..1, indexed (x, y, z), the axes nearest to right, anterior, superior. grid: where the voxels lie.

    An oblique scan stays oblique: the axes keep the scan's own directions. covered: for each axis (first, end) of the cells that
    the scan fills; the rest is padding.
    """

    voxels_xyz: NDArray[np.float32]
    grid: Grid
    covered: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def centre_crop(volume: Volume, spacing_mm: float, shape_voxels: IntTriple, hu_window: tuple[float, float]) -> CropView:
    """COLIPRI's published pre-processing (methods.md 3.2): turn to RAS, resample to isotropic `spacing_mm`, window, crop or pad.

    Resampling is linear without smoothing, onto a grid with the middle of the scan's, floor(extent / spacing) voxels a side, at
    least one. HU are clipped to the window and mapped to -1..1. What is cut off or added is split evenly, the odd voxel at the
    start; added voxels have the lowest value of the whole resampled scan.
    """
    turned, matrix = as_ras(volume.voxels_kji, volume.grid)
    shape_kji: IntTriple = (turned.shape[0], turned.shape[1], turned.shape[2])
    scan = Grid(shape_kji, matrix)
    even = _isotropic(scan, spacing_mm)
    hu = resample_array(turned, scan, even, outside=float(turned.min()), antialias=False).transpose(2, 1, 0)
    low, high = hu_window
    values = np.clip(hu, low, high).astype(np.float32)
    values -= np.float32((low + high) / 2)
    values *= np.float32(2.0 / (high - low))
    lowest = float(values.min())
    missing = np.array(shape_voxels) - values.shape
    before = np.ceil(missing.clip(min=0) / 2).astype(int)
    cut = np.ceil((-missing).clip(min=0) / 2).astype(int)
    kept = np.minimum(values.shape, shape_voxels)
    out = np.full(shape_voxels, lowest, np.float32)
    out[tuple(slice(b, b + n) for b, n in zip(before, kept, strict=True))] = values[
        tuple(slice(c, c + n) for c, n in zip(cut, kept, strict=True))
    ]
    affine = even.ijk_to_ras.copy()
    affine[:3, 3] += affine[:3, :3] @ (cut - before)
    x, y, z = ((int(b), int(b + n)) for b, n in zip(before, kept, strict=True))
    return CropView(out, Grid((shape_voxels[2], shape_voxels[1], shape_voxels[0]), affine), (x, y, z))


def _isotropic(scan: Grid, spacing_mm: float) -> Grid:
    """The grid of one spacing with the scan's middle and directions that reaches no further than the scan."""
    count = np.array(scan.shape_kji[::-1])
    old = np.array(scan.spacing_mm)
    new = np.maximum(np.floor(count * old / spacing_mm + 1e-9), 1).astype(int)
    affine = scan.ijk_to_ras.copy()
    middle = affine[:3, :3] @ ((count - 1) / 2) + affine[:3, 3]
    affine[:3, :3] *= spacing_mm / old
    affine[:3, 3] = middle - affine[:3, :3] @ ((new - 1) / 2)
    return Grid((int(new[2]), int(new[1]), int(new[0])), affine)


def cell_grid(view: Grid, side: int) -> Grid:
    """The grid whose cells each cover `side`^3 voxels of a view; its sides must be multiples of `side`."""
    k, j, i = (n // side for n in view.shape_kji)
    affine = view.ijk_to_ras.copy()
    affine[:3, 3] += affine[:3, :3] @ np.full(3, (side - 1) / 2)
    affine[:3, :3] *= side
    return Grid((k, j, i), affine)
