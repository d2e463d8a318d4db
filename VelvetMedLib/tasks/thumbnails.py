"""Small grey pictures of encoded scans, for lists of similar cases: one coronal plane from the fine view, patient's right on the left."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.ct.crops import CropView
from VelvetMedLib.shapes import Triple
from VelvetMedLib.tasks.encoding import FinePart
from VelvetMedLib.tasks.views import FineView

SIDE = 96
WINDOW_HU = (-1000.0, 500.0)
"""Lungs and soft tissue in one picture."""


def thumbnail(fine: FinePart, at_ras_mm: Triple | None = None) -> NDArray[np.uint8]:
    """A coronal plane through a point, or through the body's middle, as grey values [SIDE, SIDE]; the whole body fits in."""
    return _coronal(fine, at_ras_mm)


def view_thumbnail(view: FineView) -> NDArray[np.uint8]:
    """The same through the body's middle, of a scan that no fine network has read."""
    return _coronal(view, None)


def _coronal(cells: FinePart | FineView, at_ras_mm: Triple | None) -> NDArray[np.uint8]:
    low, high = (np.asarray(corner, np.float64) for corner in cells.body_box_ras)
    point = (low + high) / 2 if at_ras_mm is None else np.asarray(at_ras_mm, np.float64)
    y = int(np.clip(np.rint((cells.grid.ras_to_ijk @ np.append(point, 1.0))[1]), 0, cells.hu_xyz.shape[1] - 1))
    plane = cells.hu_xyz[::-1, y, ::-1].T.astype(np.float32)
    return _picture(plane, (cells.grid.spacing_mm[2], cells.grid.spacing_mm[0]), WINDOW_HU)


def crop_thumbnail(crop: CropView) -> NDArray[np.uint8]:
    """The coronal plane through the middle of what the scan fills of a crop, in the crop's own window."""
    (x0, x1), (y0, y1), (z0, z1) = crop.covered
    plane = crop.voxels_xyz[x0:x1, (y0 + y1) // 2, z0:z1][::-1, ::-1].T
    return _picture(plane, (crop.grid.spacing_mm[2], crop.grid.spacing_mm[0]), (-1.0, 0.5))


def _picture(plane: NDArray[np.float32], spacing_mm: tuple[float, float], window: tuple[float, float]) -> NDArray[np.uint8]:
    """A plane [rows, columns] in grey, as large as fits, in the middle of [SIDE, SIDE]."""
    grey = np.clip((plane - window[0]) / (window[1] - window[0]), 0.0, 1.0) * 255.0
    height_mm, width_mm = (n * step for n, step in zip(plane.shape, spacing_mm, strict=True))
    scale = SIDE / max(height_mm, width_mm)
    rows, columns = (max(1, round(length * scale)) for length in (height_mm, width_mm))
    picture = np.zeros((SIDE, SIDE), np.uint8)
    top, left = (SIDE - rows) // 2, (SIDE - columns) // 2
    picture[top : top + rows, left : left + columns] = np.rint(_stretched(grey, rows, columns))
    return picture


def _stretched(grey: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """Bilinear, cell centres on cell centres."""
    for axis, count in ((0, rows), (1, columns)):
        size = grey.shape[axis]
        place = np.clip((np.arange(count) + 0.5) * size / count - 0.5, 0, size - 1)
        first = np.minimum(place.astype(int), max(size - 2, 0))
        share = (place - first).astype(np.float32)
        shape = [-1 if a == axis else 1 for a in range(2)]
        weight = share.reshape(shape)
        grey = np.take(grey, first, axis) * (1 - weight) + np.take(grey, np.minimum(first + 1, size - 1), axis) * weight
    return grey


def grey_png(grey: NDArray[np.uint8]) -> bytes:
    """Grey values [height, width] as a PNG file."""
    height, width = grey.shape
    rows = np.zeros((height, width + 1), np.uint8)
    rows[:, 1:] = grey
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
