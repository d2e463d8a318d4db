"""Writing NIfTI-1: atomic, reproducible byte for byte, with left and right as every reader expects them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.ct.geometry import Grid
from VelvetMedLib.files import replacing
from VelvetMedLib.shapes import Affine, ArrayKJI

_WRITTEN = {np.dtype(t): code for code, t in ((2, "u1"), (256, "i1"), (4, "i2"), (512, "u2"), (8, "i4"), (768, "u4"), (16, "f4"))}


def header_bytes(dtype: np.dtype[Any], shape_kji: tuple[int, int, int], ijk_to_ras: Affine) -> bytes:
    """A NIfTI-1 header of 352 bytes, little endian: sform and qform in scanner coordinates, research sentence in `descrip`."""
    axes = ijk_to_ras[:3, :3]
    steps = np.linalg.norm(axes, axis=0)
    units = axes / steps
    qfac = 1.0 if np.linalg.det(units) > 0 else -1.0
    square = bool(np.allclose(units.T @ units, np.eye(3), atol=1e-4))
    bcd = _quaternion(units * np.array([1.0, 1.0, qfac]))
    out = bytearray(352)
    struct.pack_into("<i", out, 0, 348)
    struct.pack_into("<8h", out, 40, 3, shape_kji[2], shape_kji[1], shape_kji[0], 1, 1, 1, 1)
    struct.pack_into("<hh", out, 70, _WRITTEN[dtype], dtype.itemsize * 8)
    struct.pack_into("<8f", out, 76, qfac, *steps, 0, 0, 0, 0)
    struct.pack_into("<3f", out, 108, 352.0, 1.0, 0.0)
    out[123] = 2
    sentence = RESEARCH_USE_ONLY.encode("ascii")[:79]
    out[148 : 148 + len(sentence)] = sentence
    # A sheared matrix has no quaternion: then only the sform speaks.
    struct.pack_into("<hh", out, 252, 1 if square else 0, 1)
    struct.pack_into("<6f", out, 256, *bcd, *ijk_to_ras[:3, 3])
    struct.pack_into("<12f", out, 280, *ijk_to_ras[:3].ravel())
    out[344:348] = b"n+1\0"
    return bytes(out)


def write_nifti(path: Path | str, array_kji: ArrayKJI, ijk_to_ras: Affine | Grid, *, compression: int = 1) -> None:
    """Write a (k, j, i) array as .nii or .nii.gz, atomically and byte for byte reproducible (no name or time in the gzip header).

    bool is stored as uint8 and float64 as float32; other types are 8, 16 and 32-bit integers and float32. ijk_to_ras: 4x4, mm.
    """
    path = Path(path)
    matrix = ijk_to_ras.ijk_to_ras if isinstance(ijk_to_ras, Grid) else np.asarray(ijk_to_ras, dtype=np.float64)
    array = np.asarray(array_kji)
    narrower = {np.dtype(bool): np.uint8, np.dtype(np.float64): np.float32}.get(array.dtype)
    array = array.astype(narrower) if narrower else array
    if array.ndim != 3 or max(array.shape) > 32767:
        raise ValueError(f"a 3D array with at most 32767 voxels per axis can be written, got shape {array.shape}")
    if array.dtype.newbyteorder("=") not in _WRITTEN:
        raise TypeError(f"arrays of type {array.dtype} cannot be written as NIfTI")
    k, j, i = array.shape
    header = header_bytes(array.dtype.newbyteorder("="), (k, j, i), matrix)
    data = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    with replacing(path) as raw:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=compression, mtime=0) as stream:
                stream.write(header)
                stream.write(data.data)
        else:
            raw.write(header)
            raw.write(data.data)


def _quaternion(rotation: Affine) -> tuple[float, float, float]:
    """(b, c, d) of a rotation, with a >= 0: the eigenvector way, which has no bad cases (Bar-Itzhack 2000)."""
    m = rotation
    symmetric = np.array(
        [
            [m[0, 0] + m[1, 1] + m[2, 2], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
            [m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], m[1, 1] - m[0, 0] - m[2, 2], m[1, 2] + m[2, 1]],
            [m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], m[2, 2] - m[0, 0] - m[1, 1]],
        ]
    )
    a, b, c, d = np.linalg.eigh(symmetric)[1][:, -1]
    sign = -1.0 if a < 0 else 1.0
    return float(sign * b), float(sign * c), float(sign * d)
