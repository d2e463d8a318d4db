"""What every measurement stands on: affines of masks, volumes, centres and boxes in RAS mm. Any affine is fine here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.shapes import Affine, ArrayKJI, Triple

BoxRAS: TypeAlias = tuple[Triple, Triple]
"""Lower and upper corner in RAS mm."""
Slices: TypeAlias = tuple[slice, slice, slice]


@runtime_checkable
class HasAffine(Protocol):
    """A grid or a volume (`ct.Grid`, `ct.Volume`)."""

    @property
    def ijk_to_ras(self) -> Affine: ...


Geometry: TypeAlias = Affine | HasAffine
"""Every measurement takes a 4x4 ijk->RAS matrix or an object that carries one."""


def affine_of(geometry: Geometry) -> Affine:
    """The 4x4 matrix. Raises ValueError where it is not an invertible 4x4."""
    matrix = geometry.ijk_to_ras if isinstance(geometry, HasAffine) else geometry
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
        raise ValueError("expected an invertible 4x4 matrix from ijk to RAS millimetres")
    return matrix


def index_box(mask_kji: ArrayKJI) -> Slices | None:
    """Tight (k, j, i) slices around a mask; None where it is empty. Lets all else work on the small crop."""
    mask: NDArray[np.bool_] = np.asarray(mask_kji, dtype=bool)
    if mask.ndim != 3:
        raise ValueError(f"expected a mask with three axes (k, j, i), got {mask.ndim}")
    ji: NDArray[np.bool_] = np.any(mask, axis=0)
    j = np.flatnonzero(np.any(ji, axis=1))
    if j.size == 0:
        return None
    i = np.flatnonzero(np.any(ji, axis=0))
    k = np.flatnonzero(mask.any(axis=(1, 2)))
    return slice(int(k[0]), int(k[-1]) + 1), slice(int(j[0]), int(j[-1]) + 1), slice(int(i[0]), int(i[-1]) + 1)


def volume_ml(mask_kji: ArrayKJI, geometry: Geometry) -> float:
    """Volume of a mask in ml: voxel count times the voxel's volume."""
    return float(np.count_nonzero(mask_kji)) * abs(float(np.linalg.det(affine_of(geometry)[:3, :3]))) / 1000.0


def centroid_ras(mask_kji: ArrayKJI, geometry: Geometry) -> Triple | None:
    """Centre of mass in RAS mm; None for an empty mask."""
    box = index_box(mask_kji)
    if box is None:
        return None
    crop = np.asarray(mask_kji[box], dtype=bool)
    # Marginal counts give the mean index without listing millions of voxels.
    mean = [
        float((np.arange(n) * crop.sum(axis=other)).sum() / crop.sum()) + box[axis].start
        for axis, n, other in ((0, crop.shape[0], (1, 2)), (1, crop.shape[1], (0, 2)), (2, crop.shape[2], (0, 1)))
    ]
    return _triple(affine_of(geometry) @ np.array([mean[2], mean[1], mean[0], 1.0]))


def box_ras(mask_kji: ArrayKJI, geometry: Geometry) -> BoxRAS | None:
    """Smallest RAS-aligned box that holds every voxel of a mask, voxel bodies included; None for an empty mask."""
    box = index_box(mask_kji)
    if box is None:
        return None
    matrix = affine_of(geometry)
    crop = np.asarray(mask_kji[box], dtype=bool)
    # On a line of constant (k, j) a linear function is extreme at the first or the last voxel.
    k, j = np.nonzero(crop.any(axis=2))
    lines = crop[k, j]
    first = lines.argmax(axis=1)
    last = crop.shape[2] - 1 - lines[:, ::-1].argmax(axis=1)
    ends = np.concatenate([np.stack([first, j, k]), np.stack([last, j, k])], axis=1).astype(np.float64)
    ends += np.array([[box[2].start], [box[1].start], [box[0].start]])
    ras = matrix[:3, :3] @ ends + matrix[:3, 3:]
    half_voxel = np.abs(matrix[:3, :3]).sum(axis=1) / 2.0
    return _triple(ras.min(axis=1) - half_voxel), _triple(ras.max(axis=1) + half_voxel)


def craniocaudal_length_mm(mask_kji: ArrayKJI, geometry: Geometry) -> float:
    """Extent along the patient's S axis in mm; 0 for an empty mask."""
    box = box_ras(mask_kji, geometry)
    return 0.0 if box is None else box[1][2] - box[0][2]


def touches_border(mask_kji: ArrayKJI, *, covered_kji: ArrayKJI | None = None) -> bool:
    """True where a mask reaches the edge of what was scanned: the array's faces, or the edge of `covered_kji`.

    covered_kji: voxels that the scan covers, for grids that reach beyond an oblique or cropped scan.
    """
    mask = np.asarray(mask_kji, dtype=bool)
    box = index_box(mask)
    if box is None:
        return False
    if any(s.start == 0 or s.stop == n for s, n in zip(box, mask.shape, strict=True)):
        return True
    if covered_kji is None:
        return False
    wide = tuple(slice(s.start - 1, s.stop + 1) for s in box)
    outside = ~np.asarray(covered_kji[wide], dtype=bool)
    crop = mask[wide]
    return any(bool((crop & np.roll(outside, step, axis)).any()) for axis in range(3) for step in (1, -1))


def axial_view(geometry: Geometry) -> tuple[tuple[int, int, int], Triple]:
    """For a grid whose axes are parallel to R, A and S: the transposition to (S, A, R) order and (R, A, S) spacings in mm.

    Axes may be permuted and flipped; flips do not matter to lengths. Raises ValueError on an oblique grid:
    resample to `ct.ras_grid` first, since an axial plane must be a plane of voxels.
    """
    matrix = affine_of(geometry)[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    cosines = np.abs(matrix / spacing)
    world = cosines.argmax(axis=0)
    if sorted(world) != [0, 1, 2] or float(cosines.max(axis=0).min()) < 1.0 - 1e-4:
        raise ValueError("axial measurements need a grid parallel to the patient's axes: resample to a RAS grid first")
    of_world = [int(np.flatnonzero(world == axis)[0]) for axis in range(3)]
    array_axis = [2 - index for index in of_world]
    return (array_axis[2], array_axis[1], array_axis[0]), _triple(spacing[of_world])


def components(mask_kji: ArrayKJI, *, min_voxels: int = 1) -> tuple[NDArray[np.int32], int]:
    """Connected parts of a mask (26 neighbours): int32 labels 1..n, largest first, and n. Parts below `min_voxels` are 0."""
    import SimpleITK as sitk

    labels: NDArray[np.int32] = np.zeros(np.shape(mask_kji), dtype=np.int32)
    box = index_box(mask_kji)
    if box is None:
        return labels, 0
    image = sitk.GetImageFromArray(np.ascontiguousarray(mask_kji[box], dtype=np.uint8))
    parts = sitk.ConnectedComponent(image, True)
    parts = sitk.RelabelComponent(parts, minimumObjectSize=max(min_voxels, 1), sortByObjectSize=True)
    labels[box] = sitk.GetArrayViewFromImage(parts)
    return labels, int(labels[box].max())


def each_component(mask_kji: ArrayKJI, *, min_voxels: int = 1) -> Iterator[NDArray[np.bool_]]:
    """The same parts one after the other as full-size masks, largest first."""
    labels, count = components(mask_kji, min_voxels=min_voxels)
    for n in range(1, count + 1):
        yield labels == n


def mean_hu(volume_kji: ArrayKJI, mask_kji: ArrayKJI) -> float | None:
    """Mean HU inside a mask on the same grid; None where it is empty."""
    box = index_box(mask_kji)
    if box is None:
        return None
    return float(volume_kji[box][np.asarray(mask_kji[box], dtype=bool)].mean(dtype=np.float64))


def _triple(values: NDArray[Any]) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])
