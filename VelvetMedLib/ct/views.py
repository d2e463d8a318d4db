"""The two views a bundle asks for, both taken from one Volume: `fine` (fixed millimetres) and `global` (the body in one look).

Arrays are (x, y, z) ordered, RAS: x to the right, y to anterior, z to superior. Training and product make their views
here, so that a network never meets another arithmetic than the one it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.ct.body import body_box
from VelvetMedLib.ct.geometry import Grid, ras_grid
from VelvetMedLib.ct.resample import resample
from VelvetMedLib.ct.volume import Volume
from VelvetMedLib.shapes import Affine, IntTriple, Triple

OUTSIDE_HU = -1024.0
BODY_MARGIN_MM = 12.0
BoxRAS = tuple[NDArray[np.float64], NDArray[np.float64]]
Windows = Sequence[tuple[float, float]]
DEFAULT_FINE_SPACING_MM: Triple = (4.0, 4.0, 4.0)
DEFAULT_FINE_WINDOWS: Windows = ((-1000.0, 1000.0), (-160.0, 240.0))
DEFAULT_GLOBAL_WINDOW = (-1000.0, 1000.0)
DEFAULT_GLOBAL_SHAPE: IntTriple = (64, 64, 64)


@dataclass(frozen=True)
class FineView:
    """The body region of a scan at the bundle's fixed spacing.

    hu_xyz: float32. grid: the axis-aligned RAS grid. body_box_ras: low and high corner in mm.
    in_view: bool [X+2, Y+2, Z+2], True where a cell (with a rim of one cell around the grid) lies inside the scan.
    """

    hu_xyz: NDArray[np.float32]
    grid: Grid
    body_box_ras: BoxRAS
    in_view: NDArray[np.bool_]


@dataclass(frozen=True)
class GlobalView:
    """The body box squeezed into one small volume. voxels_xyz: float32 in 0..1. ijk_to_ras: cell centres to mm."""

    voxels_xyz: NDArray[np.float32]
    view_spacing_mm: Triple
    ijk_to_ras: Affine


def scaled(hu: NDArray[np.generic], window: tuple[float, float]) -> NDArray[np.float32]:
    """HU clipped to a window and mapped to 0..1, so that zero padding in a network means "below the window"."""
    low, high = window
    result = np.clip(hu, low, high).astype(np.float32)
    result -= np.float32(low)
    result *= np.float32(1.0 / (high - low))
    return result


def windowed(hu_xyz: NDArray[np.generic], windows: Windows = DEFAULT_FINE_WINDOWS) -> NDArray[np.float32]:
    """The input channels of the fine network, [len(windows), X, Y, Z], each in 0..1."""
    return np.stack([scaled(hu_xyz, window) for window in windows])


def inside_scan(volume_grid: Grid, grid: Grid) -> NDArray[np.bool_]:
    """Which cells of `grid`, with one cell more on every side, have their centre inside the scan. [X+2, Y+2, Z+2]."""
    shape_ijk = grid.shape_kji[::-1]
    to_scan = np.linalg.inv(volume_grid.ijk_to_ras) @ grid.ijk_to_ras
    axes = [np.arange(-1, n + 1, dtype=np.float32) for n in shape_ijk]
    inside = np.ones([n + 2 for n in shape_ijk], bool)
    for row, count in zip(to_scan[:3].astype(np.float32), volume_grid.shape_kji[::-1], strict=True):
        place = row[0] * axes[0][:, None, None] + row[1] * axes[1][None, :, None] + (row[2] * axes[2] + row[3])[None, None, :]
        inside &= (place > -0.501) & (place < count - 0.499)
    return inside


def fine_view(volume: Volume, spacing_mm: Triple = DEFAULT_FINE_SPACING_MM) -> FineView:
    """Resample the part of the scan that holds the body to an axis-aligned RAS grid at `spacing_mm` (x, y, z).

    The grid is cut out of the grid of the whole scan by whole cells, so that a volume which already lies on such
    a grid keeps its voxels exactly.
    """
    box = body_box(volume)
    low, high = np.asarray(box[0], np.float64), np.asarray(box[1], np.float64)
    whole = ras_grid(volume.grid, spacing_mm)
    to_index = np.linalg.inv(whole.ijk_to_ras)
    size = np.array(whole.shape_kji[::-1])
    first = np.floor(to_index[:3, :3] @ (low - BODY_MARGIN_MM) + to_index[:3, 3] + 0.5).astype(int)
    last = np.ceil(to_index[:3, :3] @ (high + BODY_MARGIN_MM) + to_index[:3, 3] - 0.5).astype(int)
    first, last = np.clip(first, 0, size - 1), np.clip(last, 0, size - 1)
    affine = whole.ijk_to_ras.copy()
    affine[:3, 3] = whole.ijk_to_ras[:3, :3] @ first + whole.ijk_to_ras[:3, 3]
    counts = (last - first + 1)[::-1]
    grid = Grid((int(counts[0]), int(counts[1]), int(counts[2])), affine)
    resampled = volume if grid.equals(volume.grid) else resample(volume, grid, outside_hu=OUTSIDE_HU)
    hu = np.ascontiguousarray(resampled.voxels_kji.transpose(2, 1, 0), np.float32)
    return FineView(hu, grid, (low, high), inside_scan(volume.grid, grid))


def _averaging_matrix(cells: int, low: float, high: float, count: int) -> NDArray[np.float32]:
    """[cells, count + 1]: share of each source cell in each target cell; the last column is what lies outside the source.

    The target cells divide low..high, in source index units where source cell n covers n-0.5..n+0.5.
    """
    edges = np.linspace(low, high, cells + 1)
    start, stop = edges[:-1, None], edges[1:, None]
    source = np.arange(count)[None, :]
    overlap = np.clip(np.minimum(stop, source + 0.5) - np.maximum(start, source - 0.5), 0.0, None)
    share = overlap / (stop - start)
    return np.concatenate([share, 1.0 - share.sum(1, keepdims=True)], 1).astype(np.float32)


def squeeze_box(
    hu_xyz: NDArray[np.generic],
    ijk_to_ras: Affine,
    box_ras: BoxRAS,
    *,
    shape: IntTriple = DEFAULT_GLOBAL_SHAPE,
    window: tuple[float, float] = DEFAULT_GLOBAL_WINDOW,
) -> GlobalView:
    """Average a box of an axis-aligned RAS volume over `shape` equal cells (exact area averaging).

    HU are clipped to the window first, so that metal and padding cannot leak into their neighbours.
    """
    spacing = np.diag(ijk_to_ras)[:3]
    if not np.allclose(ijk_to_ras[:3, :3], np.diag(spacing)) or np.any(spacing <= 0):
        raise ValueError("squeeze_box needs an axis-aligned RAS volume")
    low_mm, high_mm = np.asarray(box_ras[0], np.float64), np.asarray(box_ras[1], np.float64)
    high_mm = np.maximum(high_mm, low_mm + 1.0)
    low, high = (low_mm - ijk_to_ras[:3, 3]) / spacing, (high_mm - ijk_to_ras[:3, 3]) / spacing
    values = scaled(hu_xyz, window)
    outside = float(scaled(np.array([OUTSIDE_HU]), window)[0])
    for axis in range(3):
        matrix = _averaging_matrix(shape[axis], float(low[axis]), float(high[axis]), values.shape[axis])
        moved = np.moveaxis(values, axis, -1)
        values = np.moveaxis(moved @ matrix[:, :-1].T + outside * matrix[:, -1], -1, axis)
    cell = (high_mm - low_mm) / np.array(shape)
    affine = np.diag([*cell, 1.0])
    affine[:3, 3] = low_mm + cell / 2
    view_spacing = (float(cell[0]), float(cell[1]), float(cell[2]))
    return GlobalView(np.ascontiguousarray(values, np.float32), view_spacing, affine)


def global_view(
    fine: FineView, *, shape: IntTriple = DEFAULT_GLOBAL_SHAPE, window: tuple[float, float] = DEFAULT_GLOBAL_WINDOW
) -> GlobalView:
    """The body box of a fine view, squeezed. Taken from the fine voxels: nothing of the scan is read twice."""
    return squeeze_box(fine.hu_xyz, fine.grid.ijk_to_ras, fine.body_box_ras, shape=shape, window=window)
