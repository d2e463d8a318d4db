"""Resampling between any two grids, in physical space: linear for HU, nearest for labels, smoothed first when shrinking."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk

from VelvetMedLib.ct.geometry import AXIS_LETTERS, Grid
from VelvetMedLib.ct.smooth import thinned
from VelvetMedLib.ct.volume import AIR_HU, Volume
from VelvetMedLib.shapes import Affine, ArrayKJI, LabelsKJI

_MARGIN_BLOCKS = 12
"""Blocks are a quarter to a half of a new voxel, so the blur reaches four standard deviations, 7 blocks at most."""


def resample(volume: Volume, grid: Grid, *, outside_hu: float = AIR_HU, antialias: bool = True) -> Volume:
    """The volume on another grid, trilinear; what the volume does not cover becomes `outside_hu`.

    With `antialias`, an axis on which voxels grow by a factor f > 1 is first smoothed so that the blur's full width at half maximum
    equals the new voxel (variance (f^2 - 1) / (8 ln 2) in old voxels; Cardoso et al., MICCAI 2015, scale factor point spread
    function); blurred, only every floor(f / 2)-th voxel is kept for the interpolation.
    An int16 volume stays int16 (rounded), float32 stays float32.
    """
    voxels = resample_array(volume.voxels_kji, volume.grid, grid, outside=float(outside_hu), antialias=antialias)
    if volume.voxels_kji.dtype == np.int16:
        voxels = np.rint(voxels, out=voxels).astype(np.int16)
    return Volume(voxels, grid.ijk_to_ras, volume.unit, dict(volume.provenance), volume.warnings)


def resample_array(array_kji: ArrayKJI, from_grid: Grid, to_grid: Grid, *, outside: float, antialias: bool = True) -> ArrayKJI:
    """Trilinear resampling of a scalar array; returns float32 [k, j, i] on `to_grid`. See `resample`."""
    _same_shape(array_kji, from_grid)
    index_to_index = from_grid.ras_to_ijk @ to_grid.ijk_to_ras
    if antialias and _growth(index_to_index).max() > 1.0 + 1e-6:
        # Blocks are counted from one end of an axis. Counting from the same end of the patient, however the scan is stored,
        # is what makes a DICOM series and its NIfTI copy come out alike.
        array_kji, matrix = as_ras(array_kji, from_grid)
        index_to_index = np.linalg.inv(matrix) @ to_grid.ijk_to_ras
        growth = _growth(index_to_index)
        block = _blocks(growth, array_kji)
        array_kji, index_to_index = _needed(array_kji, index_to_index, to_grid, block, margin=_MARGIN_BLOCKS)
        small, old_to_small = thinned(array_kji, growth, block)
        image, index_to_index = _index_image(small), old_to_small @ index_to_index
    else:
        array_kji, index_to_index = _needed(array_kji, index_to_index, to_grid, np.ones(3, dtype=int), margin=2)
        image = _index_image(array_kji)
    return _sample(image, index_to_index, to_grid, sitk.sitkLinear, outside, sitk.sitkFloat32)


def resample_labels(labels_kji: LabelsKJI, from_grid: Grid, to_grid: Grid) -> LabelsKJI:
    """Nearest-neighbour resampling of a label map; 0 outside. The integer type is kept."""
    _same_shape(labels_kji, from_grid)
    if labels_kji.dtype.kind not in "uib":
        raise TypeError(f"labels must be integers, got {labels_kji.dtype}")
    stored = labels_kji.view(np.uint8) if labels_kji.dtype == np.bool_ else labels_kji
    stored, index_to_index = _needed(stored, from_grid.ras_to_ijk @ to_grid.ijk_to_ras, to_grid, np.ones(3, dtype=int), margin=2)
    image = _index_image(stored)
    out = _sample(image, index_to_index, to_grid, sitk.sitkNearestNeighbor, 0.0, image.GetPixelID())
    return out.view(labels_kji.dtype) if labels_kji.dtype == np.bool_ else out


def as_ras(array_kji: ArrayKJI, grid: Grid) -> tuple[ArrayKJI, Affine]:
    """The same voxels with axes permuted and flipped so that i, j, k run nearest to right, anterior, superior; and their matrix."""
    codes = grid.axis_codes
    axes = [next(a for a in range(3) if codes[a] in pair) for pair in AXIS_LETTERS]
    flipped = [codes[a] == pair[0] for a, pair in zip(axes, AXIS_LETTERS, strict=True)]
    turned = array_kji.transpose([2 - a for a in reversed(axes)])
    new_to_old = np.zeros((4, 4))
    new_to_old[3, 3] = 1.0
    for new, (old, flip) in enumerate(zip(axes, flipped, strict=True)):
        new_to_old[old, new] = -1.0 if flip else 1.0
        new_to_old[old, 3] = grid.shape_kji[2 - old] - 1.0 if flip else 0.0
    step = [-1 if flip else 1 for flip in reversed(flipped)]
    return turned[:: step[0], :: step[1], :: step[2]], grid.ijk_to_ras @ new_to_old


def _growth(index_to_index: Affine) -> np.ndarray[Any, Any]:
    """How many old voxels one new voxel spans along each old axis, at least 1."""
    return np.maximum(np.linalg.norm(index_to_index[:3, :3], axis=1), 1.0)


def _blocks(growth: np.ndarray[Any, Any], array_kji: ArrayKJI) -> np.ndarray[Any, Any]:
    # Half the new voxel: with steps as long as it, linear interpolation between kept voxels would flatten peaks by place.
    return np.clip(np.floor(growth / 2 + 1e-6).astype(int), 1, array_kji.shape[::-1])


def _needed(
    array_kji: ArrayKJI, index_to_index: Affine, grid: Grid, block: np.ndarray[Any, Any], *, margin: int
) -> tuple[ArrayKJI, Affine]:
    """The part of the array that `grid` can reach, with a margin, cut between blocks; and the matrix into that part."""
    reached = (np.c_[Grid(grid.shape_kji, np.eye(4)).corners_ras(), np.ones(8)] @ index_to_index.T)[:, :3]
    size = np.array(array_kji.shape[::-1])
    first = (np.floor(reached.min(axis=0) / block).astype(int) - margin) * block
    last = (np.ceil(reached.max(axis=0) / block).astype(int) + 1 + margin) * block
    # A grid that lies wholly outside still gets a sliver to be outside of.
    first = np.clip(first, 0, (size - 1) // block * block)
    last = np.clip(last, first + 1, size)
    part = array_kji[first[2] : last[2], first[1] : last[1], first[0] : last[0]]
    into_part = np.eye(4)
    into_part[:3, 3] = -first
    return part, into_part @ index_to_index


def _same_shape(array_kji: ArrayKJI, grid: Grid) -> None:
    if array_kji.shape != grid.shape_kji:
        raise ValueError(f"array of shape {array_kji.shape} does not lie on a grid of shape {grid.shape_kji}")


def _index_image(array_kji: ArrayKJI) -> sitk.Image:
    # Left at ITK's default geometry: index space. The one matrix of the transform then carries all geometry, sheared axes included.
    return sitk.GetImageFromArray(np.ascontiguousarray(array_kji))


def _sample(image: sitk.Image, index_to_index: Affine, grid: Grid, interpolator: int, outside: float, pixel_type: int) -> Any:
    transform = sitk.AffineTransform(3)
    transform.SetMatrix([float(x) for x in index_to_index[:3, :3].ravel()])
    transform.SetTranslation([float(x) for x in index_to_index[:3, 3]])
    size = [int(n) for n in reversed(grid.shape_kji)]
    unit = np.eye(3).ravel().tolist()
    out = sitk.Resample(image, size, transform, interpolator, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), unit, outside, pixel_type)
    return sitk.GetArrayFromImage(out)
