"""New bodies from the atlas: pose, smooth deformation, local growth, fat; and the field of view laid over them.

All maps go from the case to the atlas (where does this voxel come from?). Coordinates are (S, A, R) in mm, float32,
first axis of every array; a body is first evaluated on a coarse grid over the whole atlas, then brought to the case's grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.cohorts.atlas import Atlas, Field
from VelvetMedLib.cohorts.options import VIEWS, CohortOptions

COARSE_MM = 10.0
ORGAN_GROWTH = {
    "liver": 70.0, "spleen": 38.0, "kidney_right": 38.0, "kidney_left": 38.0, "stomach": 45.0, "heart": 55.0, "pancreas": 34.0,
    "lung_lower_lobe_left": 60.0, "lung_lower_lobe_right": 60.0, "lung_upper_lobe_left": 60.0, "lung_upper_lobe_right": 60.0,
    "bowel": 80.0, "adrenal_gland_left": 16.0, "adrenal_gland_right": 16.0, "aorta": 30.0, "trachea": 22.0, "thyroid_gland": 18.0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A local growth (gain < 0: the source moves towards the centre) or shrinkage, Gaussian, with per-axis weights."""

    center_sar: tuple[float, float, float]
    gain: float
    radius_mm: float
    axes: tuple[float, float, float] = (1.0, 1.0, 1.0)
    radii_ratio: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def apply(self, points: Field) -> None:
        """Moves source points in place; monotone along every ray for gains between -1 and 2.2."""
        delta = [points[axis] - np.float32(self.center_sar[axis]) for axis in range(3)]
        power = sum((d * np.float32(1.0 / (self.radius_mm * q))) ** 2 for d, q in zip(delta, self.radii_ratio, strict=True))
        weight = np.exp(np.float32(-0.5) * power) * np.float32(self.gain)
        for axis in range(3):
            if self.axes[axis]:
                points[axis] += delta[axis] * weight * np.float32(self.axes[axis])


@dataclass(frozen=True, kw_only=True)
class View:
    """The part of the body that is scanned. center_sar and shape refer to the case's own grid."""

    name: str
    center_sar: tuple[float, float, float]
    shape_kji: tuple[int, int, int]
    circle_radius_mm: float | None
    circle_center_ar: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Body:
    """A coarse source map over the whole deformed atlas: `source` [3, k, j, i] in atlas mm at `origin` + index * `COARSE_MM`."""

    source: Field
    origin_sar: NDArray[np.float32]
    inverse_linear: NDArray[np.float64]
    facts: dict[str, Any]

    def forward(self, point_sar: NDArray[np.float32]) -> NDArray[np.float32]:
        """Where an atlas point lies in the case: nearest coarse point, then two Newton-like steps with the affine part."""
        distance = sum((self.source[axis] - np.float32(point_sar[axis])) ** 2 for axis in range(3))
        at = np.array(np.unravel_index(int(distance.argmin()), distance.shape))
        found = self.origin_sar + at.astype(np.float32) * COARSE_MM
        offset = np.asarray(point_sar, np.float64) - self.source[:, at[0], at[1], at[2]]
        return (found + np.linalg.solve(self.inverse_linear, offset)).astype(np.float32)


def _bspline(points: int, size: int) -> NDArray[np.float32]:
    """Weights [size, points] of a uniform cubic B-spline whose control points span the axis."""
    position = np.linspace(0.0, points - 3.0 - 1e-4, size)
    first = np.floor(position).astype(int)
    t = position - first
    weights = np.zeros((size, points), np.float32)
    basis = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    for offset, values in enumerate(basis):
        weights[np.arange(size), np.minimum(first + offset, points - 1)] += values / 6.0
    return weights


def _smooth_field(rng: np.random.Generator, points: int, amplitude_mm: float, shape: tuple[int, ...]) -> Field:
    control = rng.uniform(-1.6, 1.6, (3, points + 2, points + 2, points + 2)).astype(np.float32) * np.float32(amplitude_mm)
    out = control
    for axis, size in enumerate(shape):
        # einsum without BLAS: the same sums in the same order on every machine and thread count
        out = np.moveaxis(np.einsum("sc,...c->...s", _bspline(points + 2, size), np.moveaxis(out, axis + 1, -1)), -1, axis + 1)
    return np.ascontiguousarray(out)


def sample_linear(volume: NDArray[np.float32], index: Field) -> NDArray[np.float32]:
    """Linear interpolation of a volume at fractional (k, j, i) indices, which are clipped to the volume."""
    shape = volume.shape
    first, weight = [], []
    for axis in range(3):
        clipped = np.clip(index[axis].ravel(), np.float32(0), np.float32(shape[axis] - 1.001))
        whole = clipped.astype(np.int32)
        first.append(whole)
        weight.append(clipped - whole)
    base = (first[0] * shape[1] + first[1]) * shape[2] + first[2]
    flat = volume.ravel()

    def along_i(offset: int) -> NDArray[np.float32]:
        low, high = flat.take(base + offset), flat.take(base + (offset + 1))
        high -= low
        high *= weight[2]
        low += high
        return low

    def along_j(offset: int) -> NDArray[np.float32]:
        low, high = along_i(offset), along_i(offset + shape[2])
        high -= low
        high *= weight[1]
        low += high
        return low

    low, high = along_j(0), along_j(shape[1] * shape[2])
    high -= low
    high *= weight[0]
    low += high
    return low.reshape(index.shape[1:])


def upsample(field: NDArray[np.float32], starts: NDArray[np.float32], step: float, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Linear interpolation of [..., k, j, i] at index starts + n * step along each axis."""
    return upsample_steps(field, starts, (step, step, step), shape)


def upsample_steps(
    field: NDArray[np.float32], starts: NDArray[np.float32], steps: tuple[float, ...], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """As `upsample` with a step of its own for each axis: three cheap one-axis passes."""
    out = field
    for axis in range(3):
        place = axis - 3
        position = np.clip(starts[axis] + np.arange(shape[axis], dtype=np.float32) * np.float32(steps[axis]), 0, field.shape[place] - 1.001)
        whole = position.astype(np.int32)
        weight = (position - whole).astype(np.float32)
        low, high = np.take(out, whole, axis=place), np.take(out, whole + 1, axis=place)
        high -= low
        high *= weight.reshape([-1 if n == axis else 1 for n in range(3)])
        low += high
        out = low
    return out


def _limited_gain(before: list[Growth], growth: Growth) -> float:
    """A growth's gain, cut so that many in one place do not add up to more than halving or doubling."""
    total = 0.0
    for other in before:
        distance2 = sum(((a - b) / other.radius_mm) ** 2 for a, b in zip(growth.center_sar, other.center_sar, strict=True))
        total += other.gain * float(np.exp(-0.5 * distance2))
    return float(np.clip(growth.gain, min(-0.45 - total, 0.0), max(0.5 - total, 0.0)))


def _linear_part(rng: np.random.Generator) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Case-to-atlas 3x3 matrix (S, A, R): rotation within 12 degrees, size within 20 %, each axis within 10 %, shear."""
    angles = np.deg2rad(np.clip(rng.normal(0, 5.5, 3), -12, 12))
    size = np.exp(rng.uniform(np.log(0.8), np.log(1.2)))
    axes = rng.uniform(0.9, 1.1, 3)
    shear = rng.uniform(-0.06, 0.06, 3)
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        a, b = [n for n in range(3) if n != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
    sheared = np.eye(3)
    sheared[0, 1], sheared[0, 2], sheared[1, 2] = shear
    forward = rotation @ sheared @ np.diag(size * axes)
    facts = {"angles_deg": np.rad2deg(angles).round(2).tolist(), "size": round(float(size), 4), "axes": axes.round(4).tolist()}
    return np.linalg.inv(forward).astype(np.float64), facts


def draw_body(atlas: Atlas, rng: np.random.Generator) -> Body:
    """A new body. Order, from the case inwards: affine, fat, random growths, organ growths, two smooth fields."""
    inverse, facts = _linear_part(rng)
    middle = np.array([-250.0, -10.0, -18.0])  # a point of the atlas near the body's axis; it becomes the case's origin
    corners = np.array([[s, a, r] for s in (-560.0, 10.0) for a in (-220.0, 200.0) for r in (-280.0, 250.0)])
    placed = (corners - middle) @ np.linalg.inv(inverse).T
    low = np.floor(placed.min(0) / COARSE_MM) * COARSE_MM
    shape = tuple(int(n) for n in np.ceil((placed.max(0) - low) / COARSE_MM).astype(int) + 1)
    axes = [np.float32(low[n]) + np.arange(shape[n], dtype=np.float32) * np.float32(COARSE_MM) for n in range(3)]
    source = np.empty((3, *shape), np.float32)
    for row in range(3):
        m = inverse[row].astype(np.float32)
        source[row] = (m[0] * axes[0])[:, None, None] + (m[1] * axes[1])[None, :, None] + (m[2] * axes[2])[None, None, :] + middle[row]

    fat = float(np.exp(np.clip(rng.normal(0.25, 0.7), np.log(0.45), np.log(4.5))))
    index = (source - atlas.habitus_origin_sar[:, None, None, None]) / np.float32(atlas.habitus_step_mm)
    for axis in range(3):
        source[axis] += np.float32(1.0 / fat - 1.0) * sample_linear(atlas.habitus[axis], index)

    growths: list[Growth] = []
    belly = float(rng.normal(-0.08, 0.16))
    growths.append(Growth(center_sar=(-350.0, 30.0, -18.0), gain=float(np.clip(belly, -0.4, 0.25)), radius_mm=105.0, axes=(0.0, 1.0, 0.7)))
    chest = float(np.clip(rng.normal(0.0, 0.13), -0.3, 0.3))
    growths.append(Growth(center_sar=(-140.0, -20.0, -5.0), gain=chest, radius_mm=110.0, axes=(0.3, 1.0, 0.6)))
    lo, hi = np.array([-520.0, -110.0, -150.0]), np.array([-20.0, 90.0, 120.0])
    for _ in range(int(rng.integers(6, 15))):
        center = rng.uniform(lo, hi)
        growths.append(
            Growth(
                center_sar=(float(center[0]), float(center[1]), float(center[2])),
                gain=float(rng.uniform(-0.36, 0.4)) * 0.8,
                radius_mm=float(rng.uniform(25, 75)),
            )
        )
    organs = {}
    for name, radius in ORGAN_GROWTH.items():
        gain = float(np.clip(rng.normal(0.0, 0.16), -0.33, 0.4))
        organs[name] = round(gain, 3)
        center = atlas.centers_sar[name] + rng.normal(0, 9, 3)
        growths.append(Growth(center_sar=(float(center[0]), float(center[1]), float(center[2])), gain=gain, radius_mm=radius))
    for n, growth in enumerate(growths):
        limited = replace(growth, gain=_limited_gain(growths[:n], growth))
        growths[n] = limited
        limited.apply(source)
    source += _smooth_field(rng, 5, float(rng.uniform(4, 14)), shape)
    source += _smooth_field(rng, 9, float(rng.uniform(1, 5)), shape)
    facts |= {"fat": round(fat, 3), "belly": round(belly, 3), "growths": len(growths), "organ_gain": organs}
    return Body(source=source, origin_sar=low.astype(np.float32), inverse_linear=inverse, facts=facts)


def draw_view_name(options: CohortOptions, rng: np.random.Generator) -> str:
    """The region that is scanned, the first draw of the stream for views."""
    weights = np.asarray(options.view_weights, float)
    return VIEWS[int(rng.choice(len(VIEWS), p=weights / weights.sum()))]


def draw_view(atlas: Atlas, body: Body, options: CohortOptions, rng: np.random.Generator) -> View:
    """Which part is scanned: named region, extent, cropping in plane, circular field of view, off centre."""
    name = draw_view_name(options, rng)
    step = options.spacing_mm
    most_i, most_j, most_k = options.largest_shape_ijk
    at = {
        key: float(body.forward(np.array([s, -10.0, -10.0], np.float32))[0]) for key, s in (("apex", -28), ("dome", -180), ("base", -288))
    }
    top = {
        "chest_abdomen": at["apex"] + rng.uniform(-15, 45),
        "chest": at["apex"] + rng.uniform(-5, 45),
        "abdomen": at["dome"] + rng.uniform(15, 75),
        "slab": at["apex"] - rng.uniform(0, 330),
    }[name]
    bottom = {
        "chest_abdomen": top - most_k * step,
        "chest": at["base"] - rng.uniform(-15, 70),
        "abdomen": at["base"] - rng.uniform(90, 230),
        "slab": top - rng.uniform(60, 180),
    }[name]
    k = int(np.clip(round((top - bottom) / step), min(16, most_k), most_k))
    middle = body.forward(np.array([-220.0, -12.0, -14.0], np.float32))
    crop = rng.uniform() < 0.25
    i = round(most_i * rng.uniform(0.72, 1.0)) if crop else most_i
    j = round(most_j * rng.uniform(0.78, 1.0)) if crop else most_j
    center_a, center_r = float(middle[1] + rng.normal(0, 9)), float(middle[2] + rng.normal(0, 9))
    circle = None
    if rng.uniform() < 0.5:
        circle = float(min(i, j * 1.25) * step / 2 * rng.uniform(0.92, 1.12))
    return View(
        name=name,
        center_sar=(float(top - k * step / 2), center_a, center_r),
        shape_kji=(max(k, 8), max(j, 16), max(i, 16)),
        circle_radius_mm=circle,
        circle_center_ar=(center_a, center_r),
    )


def source_on_grid(body: Body, first_sar: NDArray[np.float32], steps_mm: tuple[float, float, float], shape_kji: tuple[int, ...]) -> Field:
    """The source map [3, k, j, i] in atlas mm on a grid whose voxel (0, 0, 0) lies at `first_sar`."""
    starts = (first_sar - body.origin_sar) / np.float32(COARSE_MM)
    return upsample_steps(body.source, starts, tuple(step / COARSE_MM for step in steps_mm), shape_kji)


def structures_of(atlas: Atlas, body: Body) -> NDArray[np.uint8]:
    """Structure label at every coarse point: the whole body, however little of it is scanned."""
    index = np.rint((body.source - atlas.origin_sar[:, None, None, None]) / np.float32(atlas.spacing_mm)).astype(np.int32)
    inside = np.ones(index.shape[1:], bool)
    for axis in range(3):
        size = atlas.cells.shape[axis]
        inside &= (index[axis] >= 0) & (index[axis] < size)
        np.clip(index[axis], 0, size - 1, out=index[axis])
    return np.where(inside, atlas.cell_structure[atlas.cells[index[0], index[1], index[2]]], 0).astype(np.uint8)
