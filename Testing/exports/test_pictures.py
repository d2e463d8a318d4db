"""Still pictures: the right plane, the right way round, a valid PNG."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from VelvetMedLib.exports.pictures import data_uri, picture, png


def _pixels(data: bytes) -> np.ndarray:
    """A plain decoder for what `png` writes: one IDAT, no filters."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    at, packed = 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I", data[at : at + 4])[0], data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0]
        packed += body if kind == b"IDAT" else b""
        at += 12 + length
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * 3)
    assert (rows[:, 0] == 0).all()
    return rows[:, 1:].reshape(height, width, 3)


@pytest.fixture
def marked():
    """A dark box of 10 x 12 x 14 voxels of 2 mm with one bright voxel to the right, in front and on top."""
    voxels = np.full((14, 12, 10), -160, np.int16)
    voxels[13, 11, 9] = 240
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    return voxels, affine, (18.0, 22.0, 26.0)


@pytest.mark.parametrize(
    ("plane", "shape", "corner"), [("axial", (12, 10), (0, 0)), ("coronal", (14, 10), (0, 0)), ("sagittal", (14, 12), (0, 0))]
)
def test_the_patients_right_is_left_anterior_and_superior_are_up_and_the_nose_points_left(marked, plane, shape, corner):
    voxels, affine, place = marked
    pixels = _pixels(picture(voxels, None, affine, {}, plane=plane, at_ras_mm=place))
    assert pixels.shape == (*shape, 3)
    assert np.argwhere(pixels[..., 0] == 255).tolist() == [list(corner)]


def test_a_point_outside_the_scan_shows_the_nearest_plane(marked):
    voxels, affine, _ = marked
    assert _pixels(picture(voxels, None, affine, {}, plane="axial", at_ras_mm=(0, 0, 9999.0)))[0, 0, 0] == 255


def test_segments_are_blended_in_their_colour_and_others_are_left_grey(marked):
    voxels, affine, _ = marked
    labels = np.zeros(voxels.shape, np.uint8)
    labels[0, 0, 0], labels[0, 0, 1] = 7, 9
    pixels = _pixels(picture(voxels, labels, affine, {7: (200, 100, 0)}, plane="axial", at_ras_mm=(0, 0, 0)))
    assert pixels[-1, -1].tolist() == [80, 40, 0]
    assert pixels[-1, -2].tolist() == [0, 0, 0]


def test_a_picture_survives_being_written_as_an_address():
    small = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert np.array_equal(_pixels(png(small)), small)
    assert data_uri(png(small)).startswith("data:image/png;base64,iVBOR")
