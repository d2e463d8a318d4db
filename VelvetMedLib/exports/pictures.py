"""Still pictures of a scan with its segments, as PNG bytes: thumbnails, and what a page shows where WebGL 2 is missing."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.shapes import Affine, ArrayKJI, LabelsKJI, Triple

SOFT_TISSUE_HU = (-160.0, 240.0)
OVERLAY_OPACITY = 0.4
PLANES = ("axial", "coronal", "sagittal")


def picture(
    voxels_kji: ArrayKJI,
    labels_kji: LabelsKJI | None,
    ijk_to_ras: Affine,
    colors: Mapping[int, tuple[int, int, int]],
    *,
    plane: str,
    at_ras_mm: Triple,
    window_hu: tuple[float, float] = SOFT_TISSUE_HU,
) -> bytes:
    """One plane through a point as PNG bytes, seen as radiologists do: the patient's right is on the left of the picture.

    The grid must be axis-aligned RAS (i to the right, j to anterior, k to superior) and isotropic, as the pages' grid is.
    """
    ijk = np.linalg.inv(ijk_to_ras) @ np.append(np.asarray(at_ras_mm, dtype=np.float64), 1.0)
    i, j, k = (int(np.clip(round(float(index)), 0, size - 1)) for index, size in zip(ijk[:3], voxels_kji.shape[::-1], strict=True))
    cut: tuple[Any, Any, Any] = {"axial": np.s_[k, ::-1, ::-1], "coronal": np.s_[::-1, j, ::-1], "sagittal": np.s_[::-1, ::-1, i]}[plane]
    low, high = window_hu
    gray = np.clip((voxels_kji[cut].astype(np.float32) - low) / (high - low), 0.0, 1.0) * 255.0
    rgb = np.repeat(gray[..., None], 3, axis=2)
    if labels_kji is not None:
        labels = labels_kji[cut]
        table = np.zeros((256, 4), dtype=np.float32)
        for label, color in colors.items():
            table[label] = (*color, OVERLAY_OPACITY)
        overlay = table[labels]
        rgb = rgb * (1.0 - overlay[..., 3:]) + overlay[..., :3] * overlay[..., 3:]
    return png(np.rint(rgb).astype(np.uint8))


def png(rgb: NDArray[np.uint8]) -> bytes:
    """An [height, width, 3] picture as a PNG file, the same bytes every time."""
    height, width, _ = rgb.shape
    rows = np.zeros((height, 1 + width * 3), dtype=np.uint8)
    rows[:, 1:] = rgb.reshape(height, width * 3)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + _chunk(b"IEND", b"")


def data_uri(png_bytes: bytes) -> str:
    """The picture as an address that needs no file and no network."""
    return "data:image/png;base64," + base64.b64encode(png_bytes).decode("ascii")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
