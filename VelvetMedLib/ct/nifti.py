"""NIfTI-1 and NIfTI-2 files, read here byte by byte: headers that other readers refuse or misread get a sentence or a repair.

Format: the NIfTI-1 standard (nifti1.h, 2003) and NIfTI-2 (2011). One file only (.nii, .nii.gz), either byte order.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from VelvetMedLib.ct import checks
from VelvetMedLib.ct.geometry import Grid
from VelvetMedLib.ct.scaling import scaled
from VelvetMedLib.shapes import Affine, ArrayKJI

_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_COLOURS = {128: 3, 2304: 4, 32: 2, 1792: 2, 2048: 2}
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_CONFLICT_MM = 1.0


@dataclass(frozen=True)
class NiftiHeader:
    """The fields of a NIfTI header that matter here; `ijk_to_ras` is settled between sform and qform."""

    shape_kji: tuple[int, ...]
    ijk_to_ras: Affine
    dtype: np.dtype[Any]
    vox_offset: int
    slope: float
    intercept: float
    warnings: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """Size of the voxel data, computed without overflow."""
        return math.prod(self.shape_kji) * self.dtype.itemsize


def sniff(start: bytes) -> bool:
    """True when the first 540 bytes (after gunzip) are a NIfTI header of one of the two versions."""
    return len(start) >= 348 and (start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] in (b"n+2\0", b"ni2\0"))


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, gunzipped when it is gzip whatever its name says."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if packed:
            with gzip.GzipFile(fileobj=raw, mode="rb") as stream:
                yield stream  # type: ignore[misc]
        else:
            yield raw


def read_nifti_header(path: Path) -> NiftiHeader:
    """The header alone; at most 540 bytes are unpacked. Raises ScanError."""
    try:
        with opened(path) as stream:
            start = stream.read(540)
    except (OSError, EOFError, zlib.error) as error:
        _damaged(error)
    return parse_header(start)


def read_nifti(path: Path, *, labels: bool = False) -> tuple[ArrayKJI, NiftiHeader]:
    """(stored values scaled by slope and intercept [k, j, i], header). Integers stay integers where the scaling allows it.

    A scan's shape and position are checked before voxels are read; a label map only has to be three-dimensional.
    """
    try:
        with opened(path) as stream:
            header = parse_header(stream.read(540))
            if labels:
                checks.refuse_not_a_box(header.shape_kji)
            else:
                checks.refuse_dimensions(header.shape_kji)
                checks.refuse_geometry(Grid(header.shape_kji, header.ijk_to_ras))  # type: ignore[arg-type]
            stream.seek(header.vox_offset)
            data = bytearray(header.n_bytes) if _fits(path, header) else bytearray()
            view = memoryview(data)
            filled = 0
            while filled < len(data) and (n := stream.readinto(view[filled : filled + 2**24])):  # type: ignore[attr-defined]
                filled += n
    except (OSError, EOFError, zlib.error) as error:
        _damaged(error)
    if filled < header.n_bytes or not data:
        _short(filled, header.n_bytes)
    array: ArrayKJI = np.frombuffer(data, dtype=header.dtype).reshape(header.shape_kji)
    array = array.astype(header.dtype.newbyteorder("="), copy=False)
    return scaled(array, header.slope, header.intercept), header


def parse_header(start: bytes) -> NiftiHeader:
    """Read the fields out of the first bytes of the file; settle scaling, units and position. Raises ScanError."""
    if not sniff(start):
        checks.refuse(
            "The file is not a NIfTI volume.",
            found=f"a file that starts with {len(start)} bytes of something else",
            expected="a NIfTI-1 or NIfTI-2 header",
            next_step="Check that the file is complete and not renamed; convert the scan again from its DICOM series.",
        )
    two = start[4:8] in (b"n+2\0", b"ni2\0")
    if (start[4:8] if two else start[344:348]) in (b"ni1\0", b"ni2\0"):
        checks.refuse(
            "The scan is one half of a two-file NIfTI pair.",
            found="a .hdr/.img pair",
            expected="one .nii or .nii.gz file",
            next_step="Convert the pair to one .nii.gz file.",
        )
    size = 540 if two else 348
    if len(start) < size:
        _short(len(start), size)
    order = next((o for o in "<>" if struct.unpack_from(o + "i", start)[0] == size), None)
    if order is None:
        _damaged(ValueError("header size"))
    f = _fields(start, order, two)
    axes = int(f["dim"][0])
    dims = [int(n) for n in f["dim"][1 : axes + 1]] if 1 <= axes <= 7 else []
    if not dims or min(dims) < 1:
        _damaged(ValueError("dimensions"))
    if f["datatype"] in _COLOURS:
        checks.refuse_components(_COLOURS[f["datatype"]])
    if f["datatype"] not in _TYPES:
        checks.refuse(
            "The voxels of the NIfTI file are of a type that is not supported.",
            found=f"NIfTI data type {f['datatype']}",
            expected="8 to 64-bit integers, or 32 or 64-bit decimals",
            next_step="Save the scan as 16-bit integers.",
        )
    while len(dims) > 3 and dims[-1] == 1:
        dims.pop()
    if len(dims) == 5 and dims[3] == 1:
        # The fifth axis holds the parts of each voxel's vector, such as red, green and blue, where there is no time.
        checks.refuse_components(dims[4])
    notes: list[str] = []
    slope, intercept = f["scl_slope"], f["scl_inter"]
    if not math.isfinite(slope) or slope == 0.0 or not math.isfinite(intercept):
        if not (slope == 0.0 and intercept == 0.0) and not (math.isnan(slope) and math.isnan(intercept)):
            notes.append("The file's scale factors are not usable (slope 0 or not a number): stored values were taken as Hounsfield units.")
        slope, intercept = 1.0, 0.0
    matrix = _settle_position(f, tuple(dims), notes) if len(dims) == 3 else np.eye(4)
    offset = int(f["vox_offset"]) if math.isfinite(f["vox_offset"]) else 0
    dtype = np.dtype(order + _TYPES[f["datatype"]])
    return NiftiHeader(tuple(reversed(dims)), matrix, dtype, max(offset, size), slope, intercept, tuple(notes))


def _fields(start: bytes, order: str, two: bool) -> dict[str, Any]:
    def at(fmt: str, offset: int) -> tuple[Any, ...]:
        return struct.unpack_from(order + fmt, start, offset)

    def meant(fmt: str, offset: int) -> tuple[float, ...]:
        # 0.7 mm is stored as 0.699999988: the shortest decimal of the same 32 bits is what the writer had.
        return tuple(float(str(np.float32(x))) for x in at(fmt, offset))

    if two:
        return {
            "datatype": at("h", 12)[0], "dim": at("8q", 16), "pixdim": at("8d", 104), "vox_offset": float(at("q", 168)[0]),
            "scl_slope": at("d", 176)[0], "scl_inter": at("d", 184)[0], "qform_code": at("i", 344)[0], "sform_code": at("i", 348)[0],
            "quatern": at("3d", 352), "qoffset": at("3d", 376), "srow": at("12d", 400), "units": at("i", 500)[0],
        }  # fmt: skip
    return {
        "datatype": at("h", 70)[0], "dim": at("8h", 40), "pixdim": meant("8f", 76), "vox_offset": at("f", 108)[0],
        "scl_slope": at("f", 112)[0], "scl_inter": at("f", 116)[0], "qform_code": at("h", 252)[0], "sform_code": at("h", 254)[0],
        "quatern": at("3f", 256), "qoffset": meant("3f", 268), "srow": meant("12f", 280), "units": at("B", 123)[0],
    }  # fmt: skip


def _settle_position(f: dict[str, Any], dims: tuple[int, ...], notes: list[str]) -> Affine:
    """One matrix out of sform and qform: sform first, as the standard's common readers do; a mirror conflict is refused."""
    forms: dict[str, Affine] = {}
    if f["sform_code"] > 0:
        forms["sform"] = np.vstack([np.array(f["srow"]).reshape(3, 4), [0, 0, 0, 1]])
    if f["qform_code"] > 0:
        forms["qform"] = quaternion_matrix(f["quatern"], f["qoffset"], f["pixdim"])
    usable = {name: m for name, m in forms.items() if np.isfinite(m).all() and abs(np.linalg.det(m[:3, :3])) > 1e-9}
    if not usable:
        checks.refuse(
            "The NIfTI file does not say how the scan lies in the patient.",
            found="neither a usable sform nor a usable qform" if forms else "sform and qform both marked as unknown",
            expected="a position and orientation, without which left and right cannot be told",
            next_step="Convert the scan again from its DICOM series, or set the sform in a tool where you can check the side.",
        )
    if len(usable) < len(forms):
        notes.append(f"The file's {next(iter(set(forms) - set(usable)))} is not usable; the {next(iter(usable))} was used.")
    if len(usable) == 2:
        shape = (dims[2], dims[1], dims[0])
        s, q = Grid(shape, usable["sform"]), Grid(shape, usable["qform"])
        off = float(np.linalg.norm(s.corners_ras() - q.corners_ras(), axis=1).max())
        if np.linalg.det(s.ijk_to_ras[:3, :3]) * np.linalg.det(q.ijk_to_ras[:3, :3]) < 0:
            checks.refuse(
                "The NIfTI file contradicts itself about left and right.",
                found="an sform and a qform that are mirror images of each other",
                expected="two descriptions of one position",
                next_step="Convert the scan again from its DICOM series; do not trust either side of this file.",
            )
        if off > _CONFLICT_MM:
            notes.append(f"The file's sform and qform differ by up to {off:.1f} mm; the sform was used.")
    matrix = usable.get("sform", usable.get("qform"))
    assert matrix is not None
    scale = _MM_PER_UNIT.get(f["units"] & 7, 1.0)
    if scale != 1.0:
        matrix = np.diag([scale, scale, scale, 1.0]) @ matrix
        notes.append(f"The file gives positions in {'metres' if scale > 1 else 'micrometres'}; they were turned into millimetres.")
    return matrix


def quaternion_matrix(bcd: tuple[float, ...], offset: tuple[float, ...], pixdim: tuple[float, ...]) -> Affine:
    """The qform's 4x4 matrix (nifti1.h, method 2): rotation of the unit quaternion, steps, and qfac on the third axis."""
    b, c, d = (float(x) for x in bcd)
    rest = 1.0 - (b * b + c * c + d * d)
    if rest < 1e-7:
        norm = math.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, b / norm, c / norm, d / norm
    else:
        a = math.sqrt(rest)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    matrix = np.eye(4)
    steps = np.abs(np.array(pixdim[1:4], dtype=np.float64))
    steps[2] *= -1.0 if pixdim[0] < 0 else 1.0
    matrix[:3, :3] = rotation * steps
    matrix[:3, 3] = offset
    return matrix


def _fits(path: Path, header: NiftiHeader) -> bool:
    # Compare what the header declares with what the file can hold before any memory is asked for (gzip packs at most 1032:1).
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    return header.n_bytes <= path.stat().st_size * (1032 if packed else 1)


def _damaged(error: Exception) -> NoReturn:
    checks.refuse(
        "The file is damaged and cannot be read.",
        found=f"a fault while reading ({type(error).__name__})",
        expected="a complete NIfTI file",
        next_step="Copy or convert the scan again.",
    )


def _short(found: int, expected: int) -> NoReturn:
    checks.refuse(
        "The file ends too early.",
        found=f"{found:,} bytes where the header promises {expected:,}",
        expected="a complete file",
        next_step="Copy the file again; the transfer was probably cut off.",
    )
