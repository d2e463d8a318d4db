"""Heights of the vertebrae from disc to disc, on the scan's own grid: no label tells one vertebra from the next.

Along the spinal cord, the space in front of it is bright and filled in a vertebral body's middle less so than at its end plates, and
hardly filled by vertebra at a disc. The peaks of both together are the discs. A vertebra's height is the way from one disc's middle to the
next, at three depths of the body; a loss is what it lacks of the lower of its neighbours' heights.

Measured on slices of at most `THICKEST_MM`. On the synthetic cohort's 4 mm the largest loss of a scan tells compressed from whole
spines with an AUROC of 0.72 only (18 and 36 scans, true masks), so there is no measurement there. On the sample scan (2.5 mm, reference
mask) 12 discs lie within 2 mm of the gaps between its vertebrae from T3 to L3, and none lacks more than 1 % of its neighbours' height;
with one of six vertebrae squeezed by 20 to 50 % of its body the largest loss was that vertebra's in 24 of 24 trials, 0.03 to 0.46: a
body's loss counts less from disc to disc, and least beside a lower neighbour. With the demo model's own mask (4 mm) the discs of the same
scan are told apart from L3 to T6, the heights are within 2 mm of the former, and the largest loss was in the right place in 12 of 24
trials. So heights are told and decide nothing, nor are they held against the model.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.case.geometry import Geometry, affine_of, axial_view
from VelvetMedLib.case.schema import Vertebra
from VelvetMedLib.shapes import ArrayKJI, Triple

Floats = NDArray[np.float64]

THICKEST_MM, WIDEST_PIXEL_MM = 3.0, 2.0
FEWEST_DISCS = 4
PLAUSIBLE_MM = (8.0, 45.0)
"""Outside of these a disc was missed or seen twice."""
HIGHER_THAN_BELOW = 1.2
"""Vertebrae grow lower upwards. One so much higher than both below it (one of which may be compressed) is two of them."""
_DEPTHS_MM = {"posterior": (8.0, 15.0), "middle": (15.0, 23.0), "anterior": (23.0, 31.0)}
"""In front of the cord's middle: the canal ends at about 8 mm, and a thoracic body is 25 mm deep."""
_HALF_WIDTH_MM = 12.0
_SMOOTH_CORD_MM, _TREND_MM = 12.0, 18.0
_SMOOTH_MM = (4.0, 2.0)
"""Of brightness, in which two end plates and the disc between them are to be one peak, and of what is no bone."""
_INSIDE = 0.5
"""Share of bone from which the space in front of the cord is spine: above and below of it nothing is measured."""
_LEAST_APART_MM, _PROMINENCE = 10.0, 0.35
_TILT_MM = 5.0
"""How far a disc's front or back may lie above or below its middle."""


class Heights(NamedTuple):
    """Vertebrae between two discs, from below; without any, the reason."""

    vertebrae: tuple[Vertebra, ...]
    reason: str | None


def vertebral_heights(hu_kji: ArrayKJI, vertebrae_kji: ArrayKJI, cord_kji: ArrayKJI, geometry: Geometry) -> Heights:
    """Heights of all vertebrae that lie between two discs. Masks of all vertebrae together and of the spinal cord."""
    try:
        order, (step_r, step_a, step_s) = axial_view(geometry)
    except ValueError:
        return Heights((), "vertebral heights are not measured on an oblique scan")
    if step_s > THICKEST_MM or max(step_r, step_a) > WIDEST_PIXEL_MM:
        return Heights((), f"vertebral heights need slices of {THICKEST_MM:g} mm or less; these are {step_s:.2g} mm")
    signs = _signs(geometry)
    hu, bone, cord = (_upright(a, order, signs) for a in (hu_kji, vertebrae_kji, cord_kji))
    line = _cord_line(cord, step_s)
    if line is None:
        return Heights((), "the spinal cord, along which vertebrae are measured, is not in view")
    first, line_ar = line
    levels = first + np.arange(len(line_ar))
    z_mm = np.arange(0.0, (len(levels) - 1) * step_s + 0.5)
    whole = (_DEPTHS_MM["posterior"][0], _DEPTHS_MM["anterior"][1])
    rows = {depth: _rows(hu, bone, levels, line_ar, (step_s, step_a, step_r), span) for depth, span in {**_DEPTHS_MM, "all": whole}.items()}
    signal = {depth: _signal(both, step_s, z_mm) for depth, both in rows.items()}
    filled = np.flatnonzero(rows["all"][1] <= 1.0 - _INSIDE) * step_s
    discs = [disc for disc in _peaks(signal["all"]) if filled.size and filled[0] < disc < filled[-1]]
    if len(discs) < FEWEST_DISCS:
        return Heights((), "too few discs could be told apart to measure vertebral heights")
    line_mm = np.stack(
        [np.interp(z_mm, np.arange(len(line_ar)) * step_s, line_ar[:, n] * step) for n, step in enumerate((step_a, step_r))], 1
    )
    points = {depth: _points(discs, signal[depth], line_mm, sum(span) / 2) for depth, span in _DEPTHS_MM.items()}
    heights = {depth: np.linalg.norm(np.diff(at, axis=0), axis=1) for depth, at in points.items()}
    middles = (points["middle"][1:] + points["middle"][:-1]) / 2
    centers = [_ras(m, first, (step_s, step_a, step_r), hu.shape, order, signs, geometry) for m in middles]
    sound = _sound(np.stack(list(heights.values())))
    found = []
    for n in np.flatnonzero(sound):
        beside = [heights["middle"][m] for m in (n - 1, n + 1) if 0 <= m < len(sound) and sound[m]]
        loss = round(max(1.0 - float(heights["middle"][n] / min(beside)), 0.0), 3) if len(beside) == 2 else None
        sizes = {f"{depth}_mm": round(float(heights[depth][n]), 1) for depth in _DEPTHS_MM}
        found.append(Vertebra(center_ras_mm=centers[n], loss_fraction=loss, **sizes))
    return Heights(tuple(found), None)


def _sound(heights_mm: Floats) -> NDArray[np.bool_]:
    """Which vertebrae, from below, can be that high. Above the first that is too high for those below it discs were missed.

    heights_mm: [depths, vertebrae].
    """
    sound: NDArray[np.bool_] = np.all((heights_mm >= PLAUSIBLE_MM[0]) & (heights_mm <= PLAUSIBLE_MM[1]), axis=0)
    mean = heights_mm.mean(0)
    for n in range(1, len(mean)):
        if mean[n] > HIGHER_THAN_BELOW * mean[max(n - 2, 0) : n].max():
            sound[n:] = False
            break
    return sound


def most_lost(vertebrae: tuple[Vertebra, ...]) -> Vertebra | None:
    """The vertebra that lacks most of its neighbours' height."""
    return max((v for v in vertebrae if v.loss_fraction is not None), key=lambda v: v.loss_fraction or 0.0, default=None)


def _signs(geometry: Geometry) -> tuple[int, int, int]:
    """Whether S, A and R grow with their array index: 1 or -1."""
    matrix = affine_of(geometry)[:3, :3]
    r, a, s = (int(np.sign(row[int(np.abs(row).argmax())])) for row in matrix)
    return s, a, r


def _upright(array_kji: ArrayKJI, order: tuple[int, int, int], signs: tuple[int, int, int]) -> ArrayKJI:
    """A view indexed (S, A, R), all growing."""
    turned = np.asarray(array_kji).transpose(order)
    return turned[tuple(slice(None, None, sign) for sign in signs)]


def _ras(
    point_mm: Floats,
    first: int,
    steps: tuple[float, float, float],
    shape: tuple[int, ...],
    order: tuple[int, int, int],
    signs: tuple[int, int, int],
    geometry: Geometry,
) -> Triple:
    """RAS mm of a point (S, A, R) in mm of the upright view."""
    index = point_mm / np.array(steps) + np.array([first, 0, 0])
    index = np.where(np.array(signs) > 0, index, np.array(shape) - 1 - index)
    kji = np.zeros(3)
    kji[list(order)] = index
    r, a, s, _ = affine_of(geometry) @ np.array([kji[2], kji[1], kji[0], 1.0])
    return float(r), float(a), float(s)


def _cord_line(cord: ArrayKJI, step_s: float) -> tuple[int, Floats] | None:
    """First slice with cord, and from there to the last its middle (A, R) in voxels, smoothed."""
    levels = np.flatnonzero(cord.any(axis=(1, 2)))
    if len(levels) < 2:
        return None
    middles = np.array([np.argwhere(cord[k]).mean(0) for k in levels])
    wanted = np.arange(levels[0], levels[-1] + 1)
    line = np.stack([_smooth(np.interp(wanted, levels, middles[:, n]), _SMOOTH_CORD_MM / step_s) for n in range(2)], 1)
    return int(levels[0]), line


def _rows(
    hu: ArrayKJI,
    bone: ArrayKJI,
    levels: NDArray[np.int64],
    line_ar: Floats,
    steps: tuple[float, float, float],
    span_mm: tuple[float, float],
) -> Floats:
    """[2, slices]: mean brightness between two distances in front of the cord, and the share of it that is no bone."""
    rows = np.zeros((2, len(levels)))
    for n, (level, (a, r)) in enumerate(zip(levels, line_ar, strict=True)):
        low, high = (round(a + mm / steps[1]) for mm in span_mm)
        left, right = round(r - _HALF_WIDTH_MM / steps[2]), round(r + _HALF_WIDTH_MM / steps[2])
        box = (level, slice(max(low, 0), max(high, 0) + 1), slice(max(left, 0), max(right, 0) + 1))
        if hu[box].size:
            rows[:, n] = np.clip(hu[box], 0, 500).mean(), 1.0 - (np.asarray(bone[box]) > 0).mean()
    return rows


def _signal(rows: Floats, step_s: float, z_mm: Floats) -> Floats:
    """High at discs: both rows per mm without their trends, each over its own spread."""
    total = np.zeros(len(z_mm))
    for row, sigma in zip(rows, _SMOOTH_MM, strict=True):
        fine = _smooth(np.interp(z_mm, np.arange(len(row)) * step_s, row), sigma)
        fine -= _smooth(fine, _TREND_MM)
        total += fine / max(float(fine.std()), 1e-6)
    return total / max(float(total.std()), 1e-6)


def _smooth(values: Floats, sigma: float) -> Floats:
    reach = max(int(3 * sigma), 1)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-6)) ** 2)
    return np.convolve(np.pad(values, reach, mode="edge"), weights / weights.sum(), "valid")


def _peaks(signal: Floats) -> list[int]:
    """Places of the peaks that stand apart from one another and out of the dips between them, from below."""
    inner = np.flatnonzero((signal[1:-1] >= signal[:-2]) & (signal[1:-1] > signal[2:])) + 1
    kept: list[int] = []
    for place in sorted(inner.tolist(), key=lambda p: -signal[p]):
        if signal[place] > 0 and all(abs(place - other) >= _LEAST_APART_MM for other in kept):
            kept.append(place)
    kept.sort()
    n = 0
    while n < len(kept) - 1:
        low, high = kept[n], kept[n + 1]
        if min(signal[low], signal[high]) - signal[low : high + 1].min() < _PROMINENCE:
            kept.remove(low if signal[low] < signal[high] else high)
            n = max(n - 1, 0)
        else:
            n += 1
    return kept


def _points(discs: list[int], signal: Floats, line_mm: Floats, depth_mm: float) -> Floats:
    """(S, A, R) in mm of each disc at a depth in front of the cord: the highest place near the disc's, to a part of a mm."""
    points = []
    for disc in discs:
        low, high = max(disc - int(_TILT_MM), 1), min(disc + int(_TILT_MM), len(signal) - 2)
        top = low + int(signal[low : high + 1].argmax())
        before, at, after = signal[top - 1 : top + 2]
        bend = before - 2 * at + after
        place = top + (0.5 * (before - after) / bend if bend < 0 else 0.0)
        points.append((place, line_mm[top, 0] + depth_mm, line_mm[top, 1]))
    return np.array(points)
