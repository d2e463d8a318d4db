"""Diameters in the axial plane: long and short axis as a radiologist would lay the callipers. Needs an axis-aligned grid."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.case.geometry import Geometry, axial_view, index_box
from VelvetMedLib.shapes import ArrayKJI


class AxialAxes(NamedTuple):
    """Callipers on one axial slice: longest diameter and the width perpendicular to it, in mm."""

    long_mm: float
    short_mm: float


def axial_axes(mask_kji: ArrayKJI, geometry: Geometry) -> AxialAxes:
    """Long axis over all axial slices, and the short axis perpendicular to it on that slice; zeros for an empty mask.

    A diameter runs from outer voxel edge to outer voxel edge: the distance of the outermost voxel centres plus one
    voxel in that direction. Raises ValueError on an oblique grid.
    """
    order, (step_r, step_a, _) = axial_view(geometry)
    box = index_box(mask_kji)
    if box is None:
        return AxialAxes(0.0, 0.0)
    slices = np.asarray(mask_kji[box], dtype=bool).transpose(order)
    best = AxialAxes(0.0, 0.0)
    bounds = np.array([_bound_mm(plane, step_r, step_a) for plane in slices])
    for s in np.argsort(-bounds, kind="stable"):
        if bounds[s] <= best.long_mm:
            break
        axes = _plane_axes(slices[s], step_r, step_a)
        if axes.long_mm > best.long_mm:
            best = axes
    return best


def longest_axial_diameter_mm(mask_kji: ArrayKJI, geometry: Geometry) -> float:
    """Longest diameter over all axial slices in mm (RECIST's long axis); 0 for an empty mask."""
    return axial_axes(mask_kji, geometry).long_mm


def short_axis_mm(mask_kji: ArrayKJI, geometry: Geometry) -> float:
    """Width perpendicular to the longest axial diameter, on the same slice, in mm (how lymph nodes are measured)."""
    return axial_axes(mask_kji, geometry).short_mm


def _bound_mm(plane: NDArray[np.bool_], step_r: float, step_a: float) -> float:
    """No diameter in the plane exceeds the diagonal of its box."""
    a = np.flatnonzero(plane.any(axis=1))
    r = np.flatnonzero(plane.any(axis=0))
    if a.size == 0:
        return 0.0
    return float(np.hypot((a[-1] - a[0] + 1) * step_a, (r[-1] - r[0] + 1) * step_r))


def _plane_axes(plane: NDArray[np.bool_], step_r: float, step_a: float) -> AxialAxes:
    """plane: mask indexed (A, R)."""
    a = np.flatnonzero(plane.any(axis=1))
    lines = plane[a]
    first = lines.argmax(axis=1)
    last = plane.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)
    # Only row ends can be the ends of a longest diameter or of a widest projection.
    points = np.concatenate([np.stack([first * step_r, a * step_a], 1), np.stack([last * step_r, a * step_a], 1)])
    difference = points[:, None] - points[None]
    squared = (difference**2).sum(-1)
    at = int(squared.argmax())
    length = float(np.sqrt(squared.flat[at]))
    if length == 0.0:
        return AxialAxes(max(step_r, step_a), min(step_r, step_a))
    direction = difference.reshape(-1, 2)[at] / length
    across = np.array([-direction[1], direction[0]])
    width = float(np.ptp(points @ across))
    steps = np.array([step_r, step_a])
    return AxialAxes(length + float(np.linalg.norm(direction * steps)), width + float(np.linalg.norm(across * steps)))
