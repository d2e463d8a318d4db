"""Is this a CT volume we can handle? Dimensions, numbers, Hounsfield units, geometry: each fault has its own sentence."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from VelvetMedLib.ct.geometry import Grid, straighten
from VelvetMedLib.ct.resample import resample_array
from VelvetMedLib.ct.volume import AIR_HU, Volume
from VelvetMedLib.errors import ScanError
from VelvetMedLib.shapes import Affine, ArrayKJI

MIN_VOXELS = 8
FEW_VOXELS = 32
MIN_EXTENT_MM = 24.0
MAX_VOXELS = 2**31
SPACING_MM = (0.02, 50.0)
A_CT = "a three-dimensional CT volume in Hounsfield units"


def refuse(what: str, *, found: str, expected: str = A_CT, next_step: str) -> NoReturn:
    """Raise ScanError with its four parts."""
    raise ScanError(what, found=found, expected=expected, next_step=next_step)


def refuse_components(count: int) -> None:
    """Refuse colour and vector images by the number of values per voxel."""
    if count != 1:
        kind = "colour" if count in (3, 4) else "vector"
        refuse(
            f"The scan is a {kind} image, not a CT volume.",
            found=f"{count} values in each voxel",
            expected="one Hounsfield value in each voxel",
            next_step="Choose the original CT series; screenshots, fused and colour-coded images cannot be analysed.",
        )


def refuse_dimensions(shape: tuple[int, ...]) -> None:
    """Refuse anything that is not a 3D box of usable size. `shape` is in (k, j, i) order, or as many axes as there are."""
    refuse_not_a_box(shape)
    text = " x ".join(str(n) for n in reversed(shape))
    if min(shape) == 1:
        refuse(
            "The scan is a single slice.",
            found=f"{text} voxels",
            expected="a volume of many slices",
            next_step="Give the whole series; one slice is not enough for a three-dimensional analysis.",
        )
    if min(shape) < MIN_VOXELS:
        refuse(
            "The scan is too thin along one axis.",
            found=f"{text} voxels",
            expected=f"at least {MIN_VOXELS} voxels along every axis",
            next_step="Give a scan that covers more of the body, or the full series instead of a sub-range.",
        )


def refuse_not_a_box(shape: tuple[int, ...]) -> None:
    """Refuse what is not three-dimensional, or larger than memory can be asked for; all that a label map must meet."""
    text = " x ".join(str(n) for n in reversed(shape))
    if len(shape) < 3:
        refuse(
            "The scan is a single two-dimensional picture.",
            found=f"an image of {text} pixels",
            next_step="Give the whole series of slices, not one slice or a radiograph.",
        )
    if len(shape) > 3:
        refuse(
            "The scan has more than three dimensions, such as several time points or phases.",
            found=f"an image of {text} voxels",
            next_step="Export one phase or time point as its own volume and give that.",
        )
    if int(np.prod(shape, dtype=np.int64)) > MAX_VOXELS:
        refuse(
            "The scan is larger than this program handles.",
            found=f"{text} voxels",
            expected=f"at most {MAX_VOXELS:,} voxels in all",
            next_step="Check that the file is not damaged, or crop or downsample it first.",
        )


def refuse_geometry(grid: Grid) -> None:
    """Refuse a matrix that cannot place voxels in the body: not finite, flat, or spacing beyond reason."""
    matrix = grid.ijk_to_ras
    axes = matrix[:3, :3]
    broken = not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-6)
    if broken or abs(np.linalg.det(axes)) < 1e-3 * float(np.prod(np.linalg.norm(axes, axis=0))) or not np.linalg.norm(axes, axis=0).all():
        refuse(
            "The scan's position and orientation are not usable.",
            found="a matrix with numbers that are not finite, or with axes that fall together",
            expected="three independent voxel axes in millimetres",
            next_step="Convert the scan again from its DICOM series.",
        )
    low, high = SPACING_MM
    if min(grid.spacing_mm) < low or max(grid.spacing_mm) > high:
        refuse(
            "The distance between voxels is not believable for a CT.",
            found=f"{_mm(grid.spacing_mm)} mm along the three axes",
            expected=f"between {low} and {high:g} mm; millimetres, not metres or micrometres",
            next_step="Check the units of the file, or convert the scan again from its DICOM series.",
        )
    extent = [n * s for n, s in zip(reversed(grid.shape_kji), grid.spacing_mm, strict=True)]
    if min(extent) < MIN_EXTENT_MM:
        refuse(
            "The scan covers too little of the body.",
            found=f"a block of {_mm(extent)} mm",
            expected=f"at least {MIN_EXTENT_MM:g} mm along every axis",
            next_step="Give a scan that covers more of the body.",
        )


def thin_warning(grid: Grid) -> list[str]:
    """A sentence when an axis has few voxels, or nothing."""
    if min(grid.shape_kji) >= FEW_VOXELS:
        return []
    text = " x ".join(str(n) for n in reversed(grid.shape_kji))
    return [f"The scan has only {min(grid.shape_kji)} voxels along one axis ({text}): findings may be missed."]


def straight_header(grid: Grid) -> tuple[Grid, bool, list[str]]:
    """The rectangular grid that `checked_volume` gives for this one, whether voxels must be resampled onto it, and the notice."""
    result = straighten(grid)
    if result.needs_resampling:
        notice = (
            "The voxel axes are not at right angles (tilted gantry or sheared matrix): "
            f"the scan was resampled onto a straight grid; corners were {result.off_by_mm:.1f} mm off."
        )
        return result.grid, True, [notice]
    if result.off_by_mm > 0.05:
        notice = f"The voxel axes were not exactly at right angles and were repaired; no voxel moved more than {result.off_by_mm:.2f} mm."
        return result.grid, False, [notice]
    return result.grid, False, []


def checked_volume(
    array_kji: Any,
    ijk_to_ras: Affine,
    *,
    provenance: dict[str, Any],
    warnings: tuple[str, ...] = (),
    own: bool = False,
) -> Volume:
    """The Volume of an array in HU after every check; the one door through which all voxels pass.

    own: the array was made for this call and may be changed in place. Raises ScanError.
    """
    array = np.asarray(array_kji)
    if array.dtype.names is not None or array.dtype.kind == "c":
        refuse_components(len(array.dtype.names) if array.dtype.names else 2)
    if array.dtype.kind not in "iuf":
        refuse(
            "The voxels are not plain numbers.",
            found=f"values of type {array.dtype}",
            expected="whole or decimal Hounsfield values",
            next_step="Save the scan as 16-bit integers or 32-bit decimals.",
        )
    if array.ndim == 4 and array.shape[-1] in (3, 4) and array.dtype == np.uint8:
        refuse_components(array.shape[-1])
    refuse_dimensions(array.shape)
    grid = Grid(array.shape, _matrix(ijk_to_ras))
    refuse_geometry(grid)
    notes = [*warnings, *thin_warning(grid)]
    low, high = _refuse_not_finite(array)
    notes += plausibility(array, low, high)
    voxels = _stored(array, low, high, own)
    clipped = np.count_nonzero(voxels < AIR_HU) if low < AIR_HU else 0
    if clipped:
        np.maximum(voxels, AIR_HU, out=voxels)
        share = 100.0 * clipped / voxels.size
        filling = f"{share:.3g} % of the voxels lay below {AIR_HU} HU (filling outside the scanner's circle)"
        notes.append(f"{filling} and were set to {AIR_HU} HU.")
    voxels, grid, sentences = _straight(voxels, grid)
    return Volume(voxels, grid.ijk_to_ras, "HU", dict(provenance), tuple(dict.fromkeys([*notes, *sentences])))


def plausibility(array: ArrayKJI, low: float, high: float) -> list[str]:
    """Refuse values that cannot be HU; return warnings for values that can, but are odd. `low` and `high` are the extremes."""
    asked = "Give the original CT in Hounsfield units (air about -1000, water 0), not an MR, a label map or a normalised copy."
    found = f"values from {low:.6g} to {high:.6g}"
    if low == high:
        refuse(
            "Every voxel of the scan has the same value.",
            found=f"{low:.6g} everywhere",
            next_step="Check the export of the scan; nothing can be read from it.",
        )
    if high - low <= 100:
        refuse(
            "The values of the scan are not Hounsfield units: they look rescaled.",
            found=found,
            expected="a range of many hundred HU",
            next_step=asked,
        )
    if low >= 0 and high <= 255:
        refuse(
            "The values of the scan are not Hounsfield units: they look like 8-bit grey levels or labels.",
            found=found,
            expected="air near -1000 HU and tissue near 0 to 100 HU",
            next_step=asked,
        )
    if low > -50:
        refuse(
            "The values of the scan are not Hounsfield units: it may be an MR, or a CT whose intercept of about -1024 was lost.",
            found=f"{found}, no voxel of fat, lung or air",
            expected="air near -1000 HU and tissue near 0 to 100 HU",
            next_step=asked,
        )
    if high < -300:
        refuse(
            "The scan shows no body: every voxel is air.",
            found=found,
            expected="tissue near 0 to 100 HU",
            next_step="Choose another series; this one may be an air calibration or an empty field of view.",
        )
    notes = []
    stride = max(1, round((array.size / 2e6) ** (1 / 3)))
    sample = array[::stride, ::stride, ::stride]
    tissue = sample[(sample > -200) & (sample < 300)]
    if tissue.size < 0.01 * sample.size:
        notes.append("Hardly any voxel lies in the range of soft tissue (-200 to 300 HU): this may not be a CT in Hounsfield units.")
    if np.count_nonzero(sample > 3071) > 0.05 * sample.size:
        notes.append("More than 5 % of the voxels exceed 3071 HU: this may not be a CT in Hounsfield units.")
    if low > -900 and np.count_nonzero(sample <= low) > 0.01 * sample.size:
        notes.append(f"The values end abruptly at {low:.6g} HU: the scan seems windowed, and air and lung cannot be told apart.")
    elif low > -300:
        notes.append(f"The lowest value is {low:.6g} HU: the scan shows no air at all, which is unusual for a CT; check that it is one.")
    return notes


def _refuse_not_finite(array: ArrayKJI) -> tuple[float, float]:
    low, high = float(array.min()), float(array.max())
    if np.isfinite(low) and np.isfinite(high):
        return low, high
    nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    refuse(
        "Some voxels of the scan are not numbers.",
        found=f"{nan} voxels that are NaN and {infinite} that are infinite, of {array.size}",
        expected="a finite Hounsfield value in every voxel",
        next_step="Set them to -1024 where they lie outside the scanner's circle; elsewhere convert the scan again from its DICOM series.",
    )


def _stored(array: ArrayKJI, low: float, high: float, own: bool) -> ArrayKJI:
    """int16 for whole numbers, float32 else; a copy unless `own`. Values below -32768 are clipped, above 32767 refused."""
    if high > 32767:
        refuse(
            "The values of the scan are not Hounsfield units.",
            found=f"values up to {high:.6g}",
            expected="at most 32767 HU, even for metal",
            next_step="Check how the scan was exported; its rescale slope or intercept may be wrong.",
        )
    target = np.float32 if array.dtype.kind == "f" else np.int16
    if array.dtype == target and array.flags.c_contiguous:
        return array if own and array.flags.writeable else array.copy()
    if low < -32768:
        array = np.maximum(array, -32768)
    return np.ascontiguousarray(array).astype(target)


def _straight(voxels: ArrayKJI, grid: Grid) -> tuple[ArrayKJI, Grid, list[str]]:
    straight, needs_resampling, sentences = straight_header(grid)
    if needs_resampling:
        moved = resample_array(voxels, grid, straight, outside=float(AIR_HU), antialias=False)
        voxels = np.rint(moved).astype(np.int16) if voxels.dtype == np.int16 else moved
    return voxels, straight, sentences


def _matrix(ijk_to_ras: Affine) -> Affine:
    matrix = np.asarray(ijk_to_ras, dtype=np.float64)
    if matrix.shape != (4, 4):
        refuse(
            "The scan's position and orientation are not usable.",
            found=f"a matrix of shape {matrix.shape}",
            expected="a 4x4 matrix from voxel indices (i, j, k) to RAS millimetres",
            next_step="Give the affine of the scan.",
        )
    return matrix


def _mm(values: Any) -> str:
    return " x ".join(f"{v:.4g}" for v in values)
