"""Measurements that belong to one organ: heart and chest width, aortic diameter, lung share, liver fat, vertebral height."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.case.geometry import Geometry, affine_of, axial_view, box_ras, centroid_ras, index_box
from VelvetMedLib.shapes import ArrayKJI, Triple

_LEAST_AORTA_MM2 = 60.0
"""Cross-sections smaller than this (9 mm across) are branches or noise, not the aorta."""
_LEAST_PARTNER_MM2 = 150.0
"""Ascending and descending aorta seen on one slice are each at least 14 mm across."""
_PARTNERS_APART_MM = 20.0
_ELONGATED = 1.35
"""Above this ratio of axes a cross-section is cut lengthwise (the arch) and an ellipse no longer describes it."""
_ROOT_TO_HIATUS_MM = 80.0
"""From the aortic root down to the diaphragm in an adult, where no lungs are given to see the diaphragm by."""


class AorticDiameter(NamedTuple):
    """Largest diameter of the aorta across its course, where it lies, and on which stretch (a site of the ontology)."""

    diameter_mm: float
    center_ras: Triple
    site: str


def cardiothoracic_ratio(heart_kji: ArrayKJI, lungs_kji: ArrayKJI, geometry: Geometry) -> float | None:
    """Widest heart over widest chest (outer edges of the lungs), each on its own axial slice, in mm over mm.

    None where either is missing or the lungs are not on both sides of the heart. Raises ValueError on an oblique grid.
    """
    order, _ = axial_view(geometry)
    heart_center, lungs_box = centroid_ras(heart_kji, geometry), box_ras(lungs_kji, geometry)
    if heart_center is None or lungs_box is None or not lungs_box[0][0] < heart_center[0] < lungs_box[1][0]:
        return None
    # Voxel widths cancel: both are counted along the same R axis.
    return _widest_row(heart_kji, order) / _widest_row(lungs_kji, order)


def _widest_row(mask_kji: ArrayKJI, order: tuple[int, int, int]) -> float:
    """Largest extent along R over the axial slices, in voxels."""
    rows: NDArray[np.bool_] = np.any(np.asarray(mask_kji, dtype=bool).transpose(order), axis=1)
    rows = rows[np.any(rows, axis=1)]
    first = rows.argmax(axis=1)
    last = rows.shape[1] - 1 - rows[:, ::-1].argmax(axis=1)
    return float((last - first + 1).max())


def lung_fraction(part_kji: ArrayKJI, lungs_kji: ArrayKJI) -> float | None:
    """Share of the lungs that a mask takes up, 0 to 1; None without lungs."""
    lungs = np.asarray(lungs_kji, dtype=bool)
    total = int(np.count_nonzero(lungs))
    return None if total == 0 else float(np.count_nonzero(lungs & np.asarray(part_kji, dtype=bool))) / total


def liver_minus_spleen_hu(volume_kji: ArrayKJI, liver_kji: ArrayKJI, spleen_kji: ArrayKJI) -> float | None:
    """Median liver HU minus median spleen HU; medians, so that lesions and vessels do not move it. None if one is missing."""
    liver, spleen = _median_hu(volume_kji, liver_kji), _median_hu(volume_kji, spleen_kji)
    return None if liver is None or spleen is None else liver - spleen


def _median_hu(volume_kji: ArrayKJI, mask_kji: ArrayKJI) -> float | None:
    box = index_box(mask_kji)
    return None if box is None else float(np.median(volume_kji[box][np.asarray(mask_kji[box], dtype=bool)]))


def vertebral_height_mm(vertebra_kji: ArrayKJI, geometry: Geometry) -> float:
    """Height of one vertebra's body: median column height over the front half of the mask; 0 for an empty mask.

    The front half leaves out arch and spinous process. Raises ValueError on an oblique grid.
    """
    order, (_, _, step_s) = axial_view(geometry)
    box = index_box(vertebra_kji)
    if box is None:
        return 0.0
    crop = np.asarray(vertebra_kji[box], dtype=bool).transpose(order)
    # Row 0 of the crop is anterior or posterior according to the sign of the A axis.
    matrix = affine_of(geometry)[:3, :3]
    if matrix[1, int(np.abs(matrix[1]).argmax())] < 0:
        crop = crop[:, ::-1]
    columns = crop.sum(axis=0)[crop.shape[1] // 2 :]
    filled = columns[columns > 0]
    # The rim of the body is low and rounded: columns under half the tallest are rim, not height.
    return float(np.median(filled[filled * 2 >= filled.max()])) * step_s


def height_loss_fraction(vertebra_kji: ArrayKJI, neighbour_kji: list[ArrayKJI], geometry: Geometry) -> float | None:
    """1 - height over the mean height of its neighbours (0 = none lost, never negative); None without a vertebra or neighbour."""
    height = vertebral_height_mm(vertebra_kji, geometry)
    others = [h for h in (vertebral_height_mm(n, geometry) for n in neighbour_kji) if h > 0.0]
    return None if height == 0.0 or not others else max(0.0, 1.0 - height / (sum(others) / len(others)))


class _Section(NamedTuple):
    level: int
    diameter_mm: float
    area_mm2: float
    r_mm: float
    a_mm: float
    s_mm: float


def aortic_diameter_mm(aorta_kji: ArrayKJI, geometry: Geometry, *, lungs_kji: ArrayKJI | None = None) -> AorticDiameter | None:
    """Largest short-axis diameter over all axial cross-sections of the aorta; None for an empty mask.

    A round or oval section is measured by the minor axis of its ellipse (second moments, finer than a voxel); one cut
    lengthwise, as the arch is, by its largest inscribed circle, so that the arch's length is never taken for a width.
    The arch lies above the slices that show ascending and descending aorta side by side (the front one is ascending);
    the abdominal aorta lies below the lung base. Without lungs it begins 80 mm below the root, and without a root in view
    all counts as abdominal. Raises ValueError on an oblique grid.
    """
    sections = _aortic_sections(aorta_kji, geometry)
    if not sections:
        return None
    levels = sorted({s.level for s in sections}, key=lambda level: next(s.s_mm for s in sections if s.level == level))
    pairs = {level: pair for level in levels if (pair := _pair([s for s in sections if s.level == level]))}
    paired_s = [pair[0].s_mm for pair in pairs.values()]
    lungs_box = None if lungs_kji is None else box_ras(lungs_kji, geometry)
    if lungs_box is not None:
        abdomen_below = lungs_box[0][2]
    else:
        abdomen_below = min(paired_s) - _ROOT_TO_HIATUS_MM if paired_s else np.inf
    best = max(sections, key=lambda s: s.diameter_mm)
    if best.level in pairs:
        site = "ascending_aorta" if best.a_mm >= sum(p.a_mm for p in pairs[best.level]) / 2 else "descending_thoracic_aorta"
    elif paired_s and best.s_mm > max(paired_s):
        site = "aortic_arch"
    else:
        site = "abdominal_aorta" if best.s_mm < abdomen_below else "descending_thoracic_aorta"
    return AorticDiameter(best.diameter_mm, (best.r_mm, best.a_mm, best.s_mm), site)


def _pair(sections: list[_Section]) -> tuple[_Section, _Section] | None:
    """Ascending and descending aorta on one slice: the two largest sections, one clearly in front of the other."""
    large = sorted((s for s in sections if s.area_mm2 >= _LEAST_PARTNER_MM2), key=lambda s: -s.area_mm2)[:2]
    if len(large) < 2:
        return None
    front, back = sorted(large, key=lambda s: -s.a_mm)
    return (front, back) if np.hypot(front.a_mm - back.a_mm, front.r_mm - back.r_mm) >= _PARTNERS_APART_MM else None


def _aortic_sections(mask_kji: ArrayKJI, geometry: Geometry) -> list[_Section]:
    """Every connected cross-section on every axial slice with its short-axis diameter and centre."""
    import SimpleITK as sitk

    order, (step_r, step_a, _) = axial_view(geometry)
    box = index_box(mask_kji)
    if box is None:
        return []
    crop = np.pad(np.asarray(mask_kji[box], dtype=np.uint8).transpose(order), 1)
    # An empty slice between any two keeps the parts of different slices apart in one 3D call.
    apart = np.zeros((2 * crop.shape[0], *crop.shape[1:]), dtype=np.uint8)
    apart[::2] = crop
    labels = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(apart), True))[::2]
    s, a, r = np.nonzero(labels)
    label = labels[s, a, r]
    count = int(label.max()) + 1
    voxels = np.maximum(np.bincount(label, minlength=count), 1)

    def mean(values: NDArray[Any]) -> NDArray[Any]:
        return np.bincount(label, weights=values, minlength=count) / voxels

    x, y = r * step_r, a * step_a
    mx, my = mean(x), mean(y)
    # A voxel is a box: its own second moment is part of the section's.
    xx = mean(x * x) - mx**2 + step_r**2 / 12
    yy = mean(y * y) - my**2 + step_a**2 / 12
    xy = mean(x * y) - mx * my
    half_trace, root = (xx + yy) / 2, np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    minor, major = 4.0 * np.sqrt(np.maximum(half_trace - root, 0.0)), 4.0 * np.sqrt(half_trace + root)
    elongated = major > _ELONGATED * minor
    if elongated[1:].any():
        inscribed = _inscribed_mm(crop, step_r, step_a)
        widest = np.zeros(count)
        np.maximum.at(widest, label, inscribed[s, a, r])
        minor = np.where(elongated, np.minimum(minor, widest), minor)
    level = np.zeros(count, dtype=int)
    level[label] = s
    mean_index = np.stack([mean(s.astype(float)), mean(a.astype(float)), mean(r.astype(float))], axis=1) - 1.0
    area = np.bincount(label, minlength=count) * step_r * step_a
    matrix = affine_of(geometry)
    result = []
    for n in range(1, count):
        if area[n] < _LEAST_AORTA_MM2:
            continue
        kji = np.zeros(3)
        kji[list(order)] = mean_index[n]
        kji += [part.start for part in box]
        ras = matrix @ np.array([kji[2], kji[1], kji[0], 1.0])
        result.append(_Section(int(level[n]), float(minor[n]), float(area[n]), float(ras[0]), float(ras[1]), float(ras[2])))
    return result


def _inscribed_mm(slices: NDArray[np.uint8], step_r: float, step_a: float) -> NDArray[np.float64]:
    """Per voxel twice the in-plane distance to the edge, in mm. slices: (S, A, R), padded by one."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(slices)
    # Slices a kilometre apart: the nearest background is always in the same plane.
    image.SetSpacing((step_r, step_a, 1e6))
    distance = sitk.SignedMaurerDistanceMap(image, insideIsPositive=True, squaredDistance=False, useImageSpacing=True)
    # The map is zero on the outermost voxels' centres; the edge lies half a voxel further on each side.
    result: NDArray[np.float64] = 2.0 * sitk.GetArrayFromImage(distance).astype(np.float64) + (step_r + step_a) / 2
    return result
