"""Long and short axis of a lesion as end points in RAS mm: what a reader would draw on one slice. numpy and SimpleITK only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

if TYPE_CHECKING:
    from VelvetMedLib.shapes import Affine, ArrayKJI, Triple

NEAREST_MM = 60.0


@dataclass(frozen=True, kw_only=True)
class Callipers:
    """Two lines across each other on one slice, from outer voxel edge to outer voxel edge."""

    long_ras_mm: tuple[Triple, Triple]
    short_ras_mm: tuple[Triple, Triple]

    @property
    def long_mm(self) -> float:
        return float(np.linalg.norm(np.subtract(*self.long_ras_mm)))

    @property
    def short_mm(self) -> float:
        return float(np.linalg.norm(np.subtract(*self.short_ras_mm)))


def component_at(mask_kji: ArrayKJI, ijk_to_ras: Affine, point_ras_mm: Triple) -> ArrayKJI:
    """The connected part of a mask that holds a point or, if none does, lies nearest to it; empty when all are far away."""
    mask = np.asarray(mask_kji, dtype=bool)
    box = _box(mask)
    part = np.zeros(mask.shape, bool)
    if box is None:
        return part
    numbered = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(mask[box].astype(np.uint8)), True))
    indices = np.argwhere(numbered > 0)
    first = [axis.start for axis in box]
    ras = (indices + first)[:, ::-1] @ ijk_to_ras[:3, :3].T + ijk_to_ras[:3, 3]
    squared = ((ras - np.asarray(point_ras_mm)) ** 2).sum(1)
    nearest = int(squared.argmin())
    if squared[nearest] <= NEAREST_MM**2:
        part[box] = numbered == numbered[tuple(indices[nearest])]
    return part


def callipers(mask_kji: ArrayKJI, ijk_to_ras: Affine) -> Callipers | None:
    """The longest diameter over all slices and the width perpendicular to it on that slice; None for an empty mask.

    Slices are those of the volume that lie most nearly axial, so that the lines lie in what the reader sees, also on a tilted
    scan. Lengths are those of `case.measure.axial_axes` on an axis-aligned grid.
    """
    mask = np.asarray(mask_kji, dtype=bool)
    box = _box(mask)
    if box is None:
        return None
    through = int(np.abs(ijk_to_ras[2, :3]).argmax())  # the voxel axis (i, j or k) that runs most nearly along S
    u, v = (axis for axis in range(3) if axis != through)
    steps = np.linalg.norm(ijk_to_ras[:3, :3], axis=0)
    stack = mask[box].transpose(2 - through, 2 - v, 2 - u)
    first = np.array([box[2 - axis].start for axis in range(3)], dtype=float)
    bounds = np.array([_bound_mm(plane, steps[u], steps[v]) for plane in stack])
    best, best_mm, best_slice = None, 0.0, 0
    for index in np.argsort(-bounds, kind="stable"):
        if bounds[index] <= best_mm:
            break
        lines = _lines(stack[index], float(steps[u]), float(steps[v]))
        length = float(np.linalg.norm(lines[0][1] - lines[0][0]))
        if length > best_mm:
            best, best_mm, best_slice = lines, length, int(index)
    if best is None:
        return None

    def world(point_uv_mm: np.ndarray) -> Triple:
        ijk = np.array(first)
        ijk[u] += point_uv_mm[0] / steps[u]
        ijk[v] += point_uv_mm[1] / steps[v]
        ijk[through] += best_slice
        r, a, s = ijk_to_ras[:3, :3] @ ijk + ijk_to_ras[:3, 3]
        return float(r), float(a), float(s)

    (long_a, long_b), (short_a, short_b) = best
    return Callipers(long_ras_mm=(world(long_a), world(long_b)), short_ras_mm=(world(short_a), world(short_b)))


def _box(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    hits = [np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    if not hits[0].size:
        return None
    k, j, i = (slice(int(hit[0]), int(hit[-1]) + 1) for hit in hits)
    return k, j, i


def _bound_mm(plane: np.ndarray, step_u: float, step_v: float) -> float:
    """No diameter in the plane exceeds the diagonal of its box."""
    v, u = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
    return float(np.hypot((v[-1] - v[0] + 1) * step_v, (u[-1] - u[0] + 1) * step_u)) if v.size else 0.0


def _lines(plane: np.ndarray, step_u: float, step_v: float) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Long and short line of a mask indexed (v, u), as points (u, v) in mm from the centre of its first voxel."""
    rows = np.flatnonzero(plane.any(axis=1))
    filled = plane[rows]
    left = filled.argmax(axis=1)
    right = plane.shape[1] - 1 - filled[:, ::-1].argmax(axis=1)
    # Only row ends can be the ends of a longest diameter or of a widest projection.
    points = np.concatenate([np.stack([left * step_u, rows * step_v], 1), np.stack([right * step_u, rows * step_v], 1)])
    squared = ((points[:, None] - points[None]) ** 2).sum(-1)
    one, other = np.unravel_index(int(squared.argmax()), squared.shape)
    length = float(np.sqrt(squared[one, other]))
    along = np.array([1.0, 0.0] if step_u >= step_v else [0.0, 1.0]) if length == 0.0 else (points[one] - points[other]) / length
    across = np.array([-along[1], along[0]])
    steps = np.array([step_u, step_v])
    # A voxel has a size: each line ends at the outer edge, half a voxel beyond the centre.
    half_long, half_short = np.linalg.norm(along * steps) / 2, np.linalg.norm(across * steps) / 2
    width = points @ across
    low, high = int(width.argmin()), int(width.argmax())
    middle = along * float((points[low] @ along + points[high] @ along) / 2)
    return (
        (points[one] + along * half_long, points[other] - along * half_long),
        (middle + across * (width[high] + half_short), middle + across * (width[low] - half_short)),
    )
