"""Findings of size and shape: heart, aorta, spleen and vertebral bodies change locally; liver fat changes density.

Everyone gets a draw: normal bodies from the normal range, affected ones from a range that begins below the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.cohorts.anatomy import COARSE_MM, Body
from VelvetMedLib.cohorts.atlas import Atlas, Field
from VelvetMedLib.cohorts.canvas import Floats, log_uniform
from VelvetMedLib.reports.ontology import LUNG_LOBES, VERTEBRAL_LEVELS

# Points on the axis of the atlas's aorta (S, A, R in mm).
AORTIC_POINTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "ascending_aorta": ((-125.0, 26.0, 2.0), (-156.0, 25.0, -11.0)),
    "aortic_arch": ((-91.0, -14.0, -15.0),),
    "descending_thoracic_aorta": ((-140.0, -59.0, -22.0), (-170.0, -57.0, -24.0), (-200.0, -43.0, -24.0)),
    "abdominal_aorta": ((-285.0, -6.0, -31.0), (-320.0, 7.0, -34.0)),
}


ATLAS_DIAMETER_MM = {"ascending_aorta": 33.0, "aortic_arch": 24.0, "descending_thoracic_aorta": 22.0, "abdominal_aorta": 16.0}
ORDINARY_DIAMETER_MM = {"ascending_aorta": 25.5, "aortic_arch": 26.0, "descending_thoracic_aorta": 24.0, "abdominal_aorta": 20.0}


@dataclass(frozen=True, kw_only=True)
class Dilation:
    """An ellipsoid that holds an organ is scaled as a whole; what lies around makes room over some distance, and is not enlarged.

    half_mm: half axes (S, A, R) after the change. source_share: half axes before, as shares of those after.
    """

    center_sar: tuple[float, float, float]
    half_mm: tuple[float, float, float]
    source_share: tuple[float, float, float]

    @property
    def decay_mm(self) -> float:
        """Wide enough that surroundings are squeezed but never folded."""
        pushed = max(abs(1.0 - share) * half for share, half in zip(self.source_share, self.half_mm, strict=True))
        return max(30.0, 1.4 * pushed)

    @property
    def reach_mm(self) -> tuple[float, float, float]:
        """How far from the centre anything moves."""
        mean = sum(self.half_mm) / 3.0
        far = 1.0 + 3.5 * self.decay_mm / mean
        return self.half_mm[0] * far, self.half_mm[1] * far, self.half_mm[2] * far

    def apply(self, points: Field) -> None:
        """Moves source points in place."""
        delta = [points[axis] - np.float32(self.center_sar[axis]) for axis in range(3)]
        rho = np.sqrt(sum((d * np.float32(1.0 / half)) ** 2 for d, half in zip(delta, self.half_mm, strict=True)))
        outside = np.maximum(rho, 1.0)
        mean = np.float32(sum(self.half_mm) / 3.0 / self.decay_mm)
        weight = np.exp((1.0 - outside) * mean) / outside
        for axis, share in enumerate(self.source_share):
            points[axis] += delta[axis] * weight * np.float32(share - 1.0)


@dataclass(frozen=True, kw_only=True)
class Compression:
    """One vertebral body loses height; everything above comes down with it, and the loss is made up over 90 mm."""

    center_sar: tuple[float, float, float]
    height_mm: float
    loss: float
    radius_mm: float = 34.0

    def apply(self, points: Field) -> None:
        """Moves source points in place (S only)."""
        s, a, r = (points[axis] - np.float32(self.center_sar[axis]) for axis in range(3))
        share = np.exp(np.float32(-0.5 / self.radius_mm**2) * (a**2 + r**2)) * np.float32(self.loss)
        height = np.float32(self.height_mm)
        bottom = s + height / 2  # mm above the lower end plate
        squeezed = np.clip(bottom, 0, height * (1 - share)) * (share / (1 - share))
        above = np.maximum(bottom - height * (1 - share), 0)
        points[0] += squeezed * np.clip(1 - above / np.float32(90.0), 0, 1)


Change: TypeAlias = Dilation | Compression
"""A local change of one finding."""


@dataclass(frozen=True, kw_only=True)
class ShapePlan:
    """Local changes for one case, applied on its own grid, and what they aim at."""

    growths: tuple[Change, ...]
    level: str | None
    liver_minus_spleen_hu: float


def _in_view(body: Body, point: tuple[float, float, float] | Floats, low: Floats, high: Floats, margin: float) -> bool:
    at = body.forward(np.asarray(point, np.float32))
    return bool((at > low + margin).all() and (at < high - margin).all())


def _scale_at(body: Body, point: tuple[float, float, float] | Floats, axes: tuple[int, ...]) -> float:
    """How much longer the case is than the atlas around an atlas point, along some axes (geometric mean)."""
    distance = sum((body.source[axis] - np.float32(point[axis])) ** 2 for axis in range(3))
    at = np.array(np.unravel_index(int(distance.argmin()), distance.shape))
    at = np.clip(at, 1, np.array(distance.shape) - 2)
    slopes = []
    for axis in axes:
        before, after = at.copy(), at.copy()
        before[axis] -= 1
        after[axis] += 1
        change = _distance_in_atlas(body.source, before, after)
        slopes.append(2 * COARSE_MM / max(change, 1.0))
    return float(np.prod(slopes) ** (1 / len(slopes)))


def _distance_in_atlas(source: Field, before: np.ndarray, after: np.ndarray) -> float:
    """Distance in the atlas between two coarse points of the case."""
    delta = source[:, after[0], after[1], after[2]] - source[:, before[0], before[1], before[2]]
    return float(np.sqrt((delta**2).sum()))


def _extent(atlas: Atlas, body: Body, names: tuple[str, ...], axis: int) -> float:
    """Extent of structures along an axis of the case in mm, from where their extreme points went."""
    ends = [body.forward(atlas.ends_sar[name][2 * axis + n])[axis] for name in names for n in range(2)]
    return float(max(ends) - min(ends))


def heart_growth(atlas: Atlas, body: Body, rng: np.random.Generator, affected: bool) -> Dilation:
    """The heart brought to a drawn share of the chest's width: 0.48 to 0.74, else 0.35 to 0.475."""
    wanted = float(rng.uniform(0.49, 0.74)) if affected else float(rng.uniform(0.35, 0.475))
    now = _extent(atlas, body, ("heart",), 2) / _extent(atlas, body, LUNG_LOBES, 2)
    factor = float(np.clip(wanted / now, 0.65, 2.0))
    center = atlas.centers_sar["heart"]
    factors = (1.0 + 0.7 * (factor - 1.0), 1.0 + 0.85 * (factor - 1.0), factor)
    return _dilation(center, (52.0, 54.0, 64.0), factors)


def _dilation(
    center: NDArray[Any] | tuple[float, float, float], half_mm: tuple[float, float, float], factors: tuple[float, ...]
) -> Dilation:
    """Scales the ellipsoid of half axes `half_mm` (of the atlas) by a factor along each axis."""
    s, a, r = (float(x) for x in center)
    return Dilation(
        center_sar=(s, a, r),
        half_mm=(half_mm[0] * factors[0], half_mm[1] * factors[1], half_mm[2] * factors[2]),
        source_share=(1 / factors[0], 1 / factors[1], 1 / factors[2]),
    )


def aortic_growths(body: Body, rng: np.random.Generator, affected: bool, low: Floats, high: Floats) -> list[Dilation]:
    """Every stretch of the aorta brought to a normal diameter; one in view, if drawn, to 38 to 72 mm.

    `body` is changed along: each stretch is measured after the changes before it.
    """
    wanted = log_uniform(rng, 38.0, 72.0)
    normal = rng.uniform(0.85, 1.12, len(AORTIC_POINTS))
    order = [int(n) for n in rng.permutation(len(AORTIC_POINTS))]
    pick = rng.uniform()
    sites = list(AORTIC_POINTS)
    seen = {site: [p for p in points if _in_view(body, p, low, high, 14.0)] for site, points in AORTIC_POINTS.items()}
    chosen = next((sites[n] for n in order if seen[sites[n]]), None) if affected else None
    growths: list[Dilation] = []
    for n, site in enumerate(sites):
        points = AORTIC_POINTS[site]
        if site == chosen:
            points = (seen[site][int(pick * len(seen[site]))],)
        for point in points:
            diameter = wanted if site == chosen else ORDINARY_DIAMETER_MM[site] * float(normal[n])
            now = ATLAS_DIAMETER_MM[site] * _scale_at(body, point, (1, 2))
            factor = float(np.clip(diameter / now, 0.5, 5.0))
            half = ATLAS_DIAMETER_MM[site] / 2 * 1.1
            growths.append(_dilation(point, (34.0 / factor**0.5, half, half), (factor**0.5, factor, factor)))
            growths[-1].apply(body.source)
    return growths


def spleen_growth(atlas: Atlas, body: Body, rng: np.random.Generator, affected: bool) -> Dilation:
    """The spleen brought to a drawn length: 114 to 195 mm, else 70 to 110 mm."""
    wanted = float(rng.uniform(114.0, 195.0)) if affected else float(rng.uniform(70.0, 110.0))
    now = _extent(atlas, body, ("spleen",), 0)
    factor = float(np.clip(wanted / now, 0.6, 4.0))
    low, high = atlas.boxes_sar["spleen"]
    half = tuple(float(x) * 1.05 for x in (high - low) / 2)
    # Longer before wider: a large spleen grows down and forward, and pushes organs aside.
    return _dilation((low + high) / 2, (half[0], half[1], half[2]), (factor, 1.0 + 0.3 * (factor - 1.0), 1.0 + 0.12 * (factor - 1.0)))


def compression(
    atlas: Atlas, body: Body, rng: np.random.Generator, affected: bool, low: Floats, high: Floats
) -> tuple[Compression | None, str | None]:
    """One level in view with both neighbours, losing 18 to 64 % of its height, else about nothing."""
    loss = float(rng.uniform(0.18, 0.64)) if affected else float(rng.uniform(-0.02, 0.04))
    pick = rng.uniform()
    levels = [x for x in VERTEBRAL_LEVELS if x in atlas.body_centers_sar]
    seen = [x for x in levels if _in_view(body, atlas.body_centers_sar[x], low, high, 6.0)]
    inner = [
        x
        for x in seen
        if x in atlas.even_levels
        and x not in ("T1", "T2", "T3")
        and levels[levels.index(x) - 1] in seen
        and levels[levels.index(x) + 1] in seen
    ]
    if not inner:
        return None, None
    level = inner[int(pick * len(inner))]
    s, a, r = (float(x) for x in atlas.body_centers_sar[level])
    return Compression(center_sar=(s, a, r), height_mm=atlas.body_heights_mm[level] + 3.0, loss=loss), level


def draw_shapes(
    atlas: Atlas, body: Body, affected: dict[str, bool], streams: dict[str, np.random.Generator], low: Floats, high: Floats
) -> ShapePlan:
    """All local changes of one case; `low` and `high` are the corners of what is scanned."""
    body = Body(source=body.source.copy(), origin_sar=body.origin_sar, inverse_linear=body.inverse_linear, facts=body.facts)
    growths: list[Change] = [
        heart_growth(atlas, body, streams["cardiomegaly"], affected["cardiomegaly"]),
        spleen_growth(atlas, body, streams["splenomegaly"], affected["splenomegaly"]),
    ]
    for growth in growths:
        growth.apply(body.source)
    growths += aortic_growths(body, streams["aortic_dilatation"], affected["aortic_dilatation"], low, high)
    squeezed, level = compression(atlas, body, streams["vertebral_compression"], affected["vertebral_compression"], low, high)
    if squeezed is not None:
        growths.append(squeezed)
    fat = streams["hepatic_steatosis"]
    difference = float(fat.uniform(-60.0, -3.0)) if affected["hepatic_steatosis"] else float(fat.uniform(-4.0, 16.0))
    return ShapePlan(growths=tuple(growths), level=level, liver_minus_spleen_hu=difference)


def apply_locally(change: Change, points: Field) -> None:
    """Applies a change only where it reaches: a block of the grid around its centre."""
    if isinstance(change, Dilation):
        reach = change.reach_mm
        low = [c - x for c, x in zip(change.center_sar, reach, strict=True)]
        high = [c + x for c, x in zip(change.center_sar, reach, strict=True)]
    else:
        s, a, r = change.center_sar
        wide = 3.0 * change.radius_mm
        low, high = [s - change.height_mm, a - wide, r - wide], [s + change.height_mm + 100.0, a + wide, r + wide]
    box: list[slice] = []
    for axis in range(3):
        others = tuple(n for n in range(3) if n != axis)
        value = points[axis]
        lines = np.flatnonzero((value.max(axis=others) >= low[axis]) & (value.min(axis=others) <= high[axis]))
        if len(lines) == 0:
            return
        box.append(slice(int(lines[0]), int(lines[-1]) + 1))
    block = np.ascontiguousarray(points[:, box[0], box[1], box[2]])
    change.apply(block)
    points[:, box[0], box[1], box[2]] = block
