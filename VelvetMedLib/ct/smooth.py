"""Blur and thin out a volume along its axes in one go: banded matrices, block by block, so that BLAS does the work."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.shapes import Affine, ArrayKJI

_FWHM_SQUARED = 8.0 * math.log(2.0)
"""(full width at half maximum / standard deviation) squared of a Gaussian."""
_BAND = 8
_ONE_THREAD = 200_000
_REACH = 4.0
Band = tuple[slice, slice, NDArray[np.float32]]


def thinned(array_kji: ArrayKJI, growth: NDArray[np.float64], block: NDArray[np.int64]) -> tuple[ArrayKJI, Affine]:
    """(float32 array, matrix from old to new indices) of a volume blurred for voxels that grow by `growth` on i, j, k.

    Every `block`-th voxel is kept (the centres of blocks; the last one may be incomplete). Borders are repeated outwards.
    The blur's variance is (growth^2 - 1) / (8 ln 2) in old voxels: its full width at half maximum makes up the new voxel.
    """
    size = array_kji.shape[::-1]
    variance = (growth**2 - 1.0) / _FWHM_SQUARED
    i, j, k = (None if variance[a] < 1e-3 else bands(size[a], float(variance[a]), int(block[a])) for a in range(3))
    small = [math.ceil(size[a] / block[a]) for a in range(3)]
    plane = np.empty((size[2], small[1], small[0]), dtype=np.float32)
    for at in range(0, size[2], 16):
        # A few slices at a time: the whole scan never lies in memory as decimals.
        slab = array_kji[at : at + 16].astype(np.float32)
        plane[at : at + 16] = _along_j(_along_i(slab, i), j)
    out = _along_k(plane, k)
    old_to_small = np.diag([*(1.0 / block), 1.0])
    old_to_small[:3, 3] = -(block - 1) / 2.0 / block
    return out, old_to_small


def bands(size: int, variance: float, block: int) -> list[Band]:
    """The blurring matrix [ceil(size / block), size] cut into (rows, columns, dense part): outside of them it is zero."""
    count = math.ceil(size / block)
    reach = math.ceil(_REACH * math.sqrt(variance)) + block
    parts: list[Band] = []
    for start in range(0, count, _BAND):
        rows = np.arange(start, min(start + _BAND, count))
        centres = (block - 1) / 2 + block * rows
        first, last = max(0, math.floor(centres[0]) - reach), min(size, math.ceil(centres[-1]) + reach + 1)
        matrix = np.zeros((rows.size, last - first))
        for row, centre in enumerate(centres):
            places = np.arange(math.floor(centre) - reach, math.ceil(centre) + reach + 1)
            weights = kernel(places - centre, variance)
            np.add.at(matrix[row], np.clip(places, 0, size - 1) - first, weights / weights.sum())
        parts.append((slice(start, start + rows.size), slice(first, last), matrix.astype(np.float32)))
    return parts


def kernel(offsets: NDArray[np.float64], variance: float) -> NDArray[np.float64]:
    """A Gaussian at `offsets` from its centre, not normalised.

    Narrow ones (only met with whole offsets) are Lindeberg's discrete Gaussian, exp(-t) I_n(t), whose variance is exact where
    samples of the continuous one would show a single spike (T. Lindeberg, IEEE PAMI 12:234, 1990).
    """
    if variance >= 0.5:
        return np.exp(-(offsets**2) / (2 * variance))
    half = variance / 2
    return np.array([sum(half ** (2 * m + n) / (math.factorial(m) * math.factorial(m + n)) for m in range(8)) for n in _whole(offsets)])


def _whole(offsets: NDArray[np.float64]) -> list[int]:
    return [round(abs(float(x))) for x in offsets]


def _along_i(array: ArrayKJI, parts: list[Band] | None) -> ArrayKJI:
    if parts is None:
        return array
    flat = array.reshape(-1, array.shape[2])
    out = np.empty((flat.shape[0], parts[-1][0].stop), dtype=np.float32)
    for rows, columns, matrix in parts:
        for lines in _portions(flat.shape[0], matrix):
            out[lines, rows] = flat[lines, columns] @ matrix.T
    return out.reshape(*array.shape[:2], -1)


def _along_j(array: ArrayKJI, parts: list[Band] | None) -> ArrayKJI:
    if parts is None:
        return array
    out = np.empty((array.shape[0], parts[-1][0].stop, array.shape[2]), dtype=np.float32)
    for rows, columns, matrix in parts:
        for lines in _portions(array.shape[2], matrix):
            out[:, rows, lines] = matrix @ array[:, columns, lines]
    return out


def _along_k(array: ArrayKJI, parts: list[Band] | None) -> ArrayKJI:
    if parts is None:
        return array
    flat: Any = array.reshape(array.shape[0], -1)
    out = np.empty((parts[-1][0].stop, flat.shape[1]), dtype=np.float32)
    for rows, columns, matrix in parts:
        for lines in _portions(flat.shape[1], matrix):
            out[rows, lines] = matrix @ flat[columns, lines]
    return out.reshape(-1, *array.shape[1:])


def _portions(n_lines: int, matrix: NDArray[np.float32]) -> list[slice]:
    """Lines cut so that one product stays below the size at which OpenBLAS starts threads.

    Its threads wait for each other in a busy loop: on a loaded machine that turned a quarter of a second into a minute.
    """
    step = max(1, _ONE_THREAD // matrix.size)
    return [slice(at, at + step) for at in range(0, n_lines, step)]
