"""From DICOM slices to Hounsfield units: the raw bytes where they lie open, GDCM where they are compressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.ct import checks
from VelvetMedLib.ct.dicom_files import PACKED_SYNTAXES, RAW_SYNTAXES, Slice
from VelvetMedLib.ct.scaling import scaled
from VelvetMedLib.ct.volume import AIR_HU
from VelvetMedLib.shapes import ArrayKJI

_BELIEVABLE_PADDING_HU = -900


def read_slices(slices: Sequence[Slice]) -> tuple[ArrayKJI, list[str]]:
    """([k, j, i] in HU, notices) of slices in stacking order. int16 unless a rescale is fractional or a value does not fit."""
    _refuse_unreadable_syntax(slices)
    notes = _rescale_notes(slices)
    out: Any = np.empty((len(slices), slices[0].rows, slices[0].columns), dtype=np.int16)
    left_alone = 0
    for k, one in enumerate(slices):
        hu, padding = slice_hu(one)
        if padding is not None:
            if _is_filling(padding, one):
                hu[padding] = AIR_HU
            elif padding.any():
                left_alone += 1
        if not np.can_cast(hu.dtype, out.dtype):
            out = out.astype(np.float32 if "f" in hu.dtype.kind + out.dtype.kind else np.int32)
        out[k] = hu
    if left_alone:
        notes.append(f"The padding value of {left_alone} slices lies among tissue values and was not treated as filling.")
    lowest = int(out.min())
    if lowest > -50 and all(s.slope is None for s in slices):
        checks.refuse(
            "The slices lack the rescale slope and intercept.",
            found=f"stored values from {lowest} to {int(out.max())} and no way to turn them into Hounsfield units",
            expected="RescaleSlope and RescaleIntercept in every slice",
            next_step="Export the series again from the archive with its original headers.",
        )
    return out, notes


def slice_hu(one: Slice) -> tuple[ArrayKJI, NDArray[np.bool_] | None]:
    """([j, i] in HU, mask of padding voxels or None): the short way for uncompressed 16-bit slices, the long way for all others."""
    slope, intercept = _rescale(one)
    if one.syntax in RAW_SYNTAXES and one.bits_allocated in (8, 16):
        stored = raw_stored(one)
        hu = scaled(stored, slope, intercept)
        return (hu if hu.flags.writeable else hu.copy()), _padding(stored, one, 1.0, 0.0)
    hu = gdcm_hu(one)
    return hu, _padding(hu, one, slope, intercept)


def raw_stored(one: Slice) -> ArrayKJI:
    """Stored values [j, i] of an uncompressed slice, read from their place in the file; unused bits (old overlays) cleared."""
    wanted = one.rows * one.columns * (one.bits_allocated // 8)
    if one.pixel_offset is None or one.pixel_length < wanted:
        _short_picture(one)
    with one.path.open("rb") as raw:
        raw.seek(one.pixel_offset or 0)
        data = raw.read(wanted)
    if len(data) < wanted:
        _short_picture(one)
    order = ">" if one.syntax.endswith(".2.2") and one.bits_allocated == 16 else "<"
    kind = ("i" if one.signed else "u") + str(one.bits_allocated // 8)
    stored = np.frombuffer(data, dtype=np.dtype(order + kind)).reshape(one.rows, one.columns)
    if not stored.dtype.isnative:
        stored = stored.astype(stored.dtype.newbyteorder("="))
    if one.bits_stored < one.bits_allocated:
        # Up to the sign bit and back: clears what lies above, drops what lies below, and spreads the sign.
        stored = (stored << (one.bits_allocated - 1 - one.high_bit)) >> (one.bits_allocated - one.bits_stored)
    return stored


def gdcm_hu(one: Slice) -> ArrayKJI:
    """[j, i] in HU of one slice, decoded and rescaled by GDCM inside SimpleITK: the long way, for every transfer syntax it knows."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(one.path))
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError:
        checks.refuse(
            "A slice cannot be decoded.",
            found=f"file {one.place} (in order of name): damaged or incomplete {PACKED_SYNTAXES.get(one.syntax, 'uncompressed')} picture",
            expected="complete slices",
            next_step="Copy or export the series again.",
        )
    if array.size != one.rows * one.columns:
        checks.refuse_components(array.size // max(1, one.rows * one.columns))
    array = array.reshape(one.rows, one.columns)
    whole = array.dtype.kind in "iu" or bool((array == np.rint(array)).all())
    return array.astype(np.int32 if np.abs(array).max() > 32767 else np.int16) if whole else array.astype(np.float32)


def same_picture(a: Slice, b: Slice) -> bool:
    """True when two slices hold the same voxels in HU."""
    return bool(np.array_equal(slice_hu(a)[0], slice_hu(b)[0]))


def _rescale(one: Slice) -> tuple[float, float]:
    return (1.0 if one.slope is None else one.slope), (0.0 if one.intercept is None else one.intercept)


def _padding(values: ArrayKJI, one: Slice, slope: float, intercept: float) -> NDArray[np.bool_] | None:
    """Voxels that hold the padding value, or lie between it and the range limit. `values` = stored * slope + intercept."""
    if one.padding is None:
        return None
    ends = [_as_stored(p, one) * slope + intercept for p in (one.padding, one.padding if one.padding_limit is None else one.padding_limit)]
    return (values == ends[0]) if ends[0] == ends[1] else (values >= min(ends)) & (values <= max(ends))


def _as_stored(value: int, one: Slice) -> int:
    # Writers give the padding of signed pictures as an unsigned number (63536 for -2000), and the other way round.
    span = 1 << one.bits_allocated
    value %= span
    return value - span if one.signed and value >= span // 2 else value


def _is_filling(padding: NDArray[np.bool_], one: Slice) -> bool:
    slope, intercept = _rescale(one)
    if one.padding is not None and _as_stored(one.padding, one) * slope + intercept <= _BELIEVABLE_PADDING_HU:
        return True
    # Filling surrounds the reconstruction circle, so it holds a corner; a value that only occurs inside the body is tissue.
    return bool(padding[0, 0] or padding[0, -1] or padding[-1, 0] or padding[-1, -1])


def _rescale_notes(slices: Sequence[Slice]) -> list[str]:
    lacking = [s for s in slices if s.slope is None or s.intercept is None]
    if lacking and len(lacking) < len(slices):
        checks.refuse(
            "Some slices lack the rescale slope or intercept.",
            found=f"{len(lacking)} of {len(slices)} slices without them",
            expected="RescaleSlope and RescaleIntercept in every slice",
            next_step="Export the series again from the archive with its original headers.",
        )
    notes = []
    if lacking:
        notes.append("The slices have no rescale slope and intercept: stored values were taken as Hounsfield units.")
    if any(s.slope == 0.0 for s in slices):
        checks.refuse(
            "The rescale slope of a slice is zero.",
            found="RescaleSlope 0",
            expected="a slope that turns stored values into Hounsfield units",
            next_step="Export the series again from the archive with its original headers.",
        )
    if len({(s.slope, s.intercept) for s in slices}) > 1:
        notes.append("Rescale slope or intercept differ between slices; each slice was scaled by its own.")
    if any(s.rescale_type not in ("", "HU") for s in slices):
        notes.append("The scanner does not state its values in Hounsfield units (RescaleType): densities may be wrong.")
    if any(s.photometric == "MONOCHROME1" for s in slices):
        notes.append("The slices are marked for inverted display (MONOCHROME1); their Hounsfield values are used as they are.")
    if any(s.lossy for s in slices):
        notes.append("The slices were compressed with loss: fine texture and densities may be altered.")
    return notes


def _refuse_unreadable_syntax(slices: Sequence[Slice]) -> None:
    for one in slices:
        if one.syntax not in RAW_SYNTAXES and one.syntax not in PACKED_SYNTAXES:
            import pydicom

            name = pydicom.uid.UID(one.syntax).name if one.syntax in pydicom.uid.UID_dictionary else "an unknown transfer syntax"
            checks.refuse(
                "The slices are compressed in a way that is not supported.",
                found=name,
                expected="uncompressed, RLE, JPEG, JPEG-LS or JPEG 2000 slices",
                next_step="Export the series uncompressed (explicit VR little endian).",
            )


def _short_picture(one: Slice) -> NoReturn:
    checks.refuse(
        "A slice is incomplete.",
        found=f"file {one.place} (in order of name): {one.pixel_length:,} bytes of picture",
        expected=f"{one.rows * one.columns * one.bits_allocated // 8:,} bytes for {one.columns} x {one.rows} voxels",
        next_step="Copy or export the series again; the transfer was probably cut off.",
    )
