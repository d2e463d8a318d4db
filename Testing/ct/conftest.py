"""Phantoms with known places in space, and DICOM series written slice by slice, for the tests of `ct`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"


@dataclass(frozen=True)
class Phantom:
    """Air, an ellipsoid body, and a bright ball in the patient's right, anterior, superior part; all known in RAS mm."""

    voxels_kji: NDArray[np.int16]
    ijk_to_ras: NDArray[np.float64]
    ball_ras_mm: NDArray[np.float64]
    ball_radius_mm: float


def phantom_hu(points_ras: NDArray[np.float64]) -> NDArray[np.int16]:
    """HU of the phantom at points [..., 3] in RAS mm: the slow, obvious definition that every grid samples."""
    body = ((points_ras / np.array([60.0, 45.0, 70.0])) ** 2).sum(axis=-1) < 1
    ball = np.linalg.norm(points_ras - BALL_RAS, axis=-1) < BALL_RADIUS
    return np.where(ball, 600, np.where(body, 40, -1000)).astype(np.int16)


BALL_RAS = np.array([25.0, 12.0, 30.0])
BALL_RADIUS = 12.0


def sample_phantom(shape_kji: tuple[int, int, int], ijk_to_ras: NDArray[np.float64]) -> NDArray[np.int16]:
    """The phantom's HU at every voxel centre of a grid."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in shape_kji), indexing="ij")
    ijk = np.stack([i, j, k, np.ones_like(i)], axis=-1).astype(float)
    return phantom_hu((ijk @ ijk_to_ras.T)[..., :3])


def centred(axes: NDArray[np.float64], shape_kji: tuple[int, int, int]) -> NDArray[np.float64]:
    """A 4x4 matrix with these axes (columns, mm) whose grid is centred on the origin."""
    matrix = np.eye(4)
    matrix[:3, :3] = axes
    matrix[:3, 3] = -axes @ ((np.array(shape_kji[::-1]) - 1) / 2)
    return matrix


@pytest.fixture
def phantom() -> Phantom:
    """The phantom at 3 x 3 x 4 mm on an axis-aligned RAS grid."""
    shape = (40, 36, 48)
    matrix = centred(np.diag([3.0, 3.0, 4.0]), shape)
    return Phantom(sample_phantom(shape, matrix), matrix, BALL_RAS, BALL_RADIUS)


@pytest.fixture
def at() -> Callable[..., NDArray[np.int16]]:
    """`sample_phantom` for tests that make their own grids."""
    return sample_phantom


@pytest.fixture
def on_centre() -> Callable[..., NDArray[np.float64]]:
    """`centred` for tests that make their own grids."""
    return centred


SeriesWriter = Callable[..., list[Path]]


@pytest.fixture
def write_series(tmp_path: Path) -> SeriesWriter:
    """Write a synthetic CT series of the phantom: `write_series(n=40, edit=f, positions=..., ...) -> files`.

    `edit(dataset, k)` may change a slice before it is saved, or return False to leave it out. Files are named against the
    order of positions, so that nobody can rely on names.
    """

    def write(
        folder: Path | None = None,
        *,
        n: int = 40,
        spacing: float = 3.0,
        pixel: tuple[float, float] = (3.0, 2.5),
        shape: tuple[int, int] = (32, 48),
        orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
        shear: tuple[float, float, float] = (0, 0, 0),
        positions: Any = None,
        stored: str = "signed",
        series: int = 1,
        edit: Callable[[Any, int], Any] | None = None,
        prefix: str = "im",
        syntax: str = "1.2.840.10008.1.2.1",
    ) -> list[Path]:
        import pydicom
        from pydicom.dataset import FileDataset, FileMetaDataset
        from pydicom.uid import UID

        folder = tmp_path / "study" if folder is None else folder
        folder.mkdir(parents=True, exist_ok=True)
        row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
        normal = np.cross(row, column)
        along = (np.arange(n) - (n - 1) / 2) * spacing if positions is None else np.asarray(positions, float)
        centre = -(row * pixel[1] * (shape[1] - 1) + column * pixel[0] * (shape[0] - 1)) / 2
        files = []
        for k, t in enumerate(along):
            lps = centre + normal * t + np.array(shear) * t
            j, i = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
            points = lps + i[..., None] * row * pixel[1] + j[..., None] * column * pixel[0]
            hu = phantom_hu(points * np.array([-1.0, -1.0, 1.0]))
            values = hu.astype(np.int16) if stored == "signed" else (hu.astype(np.int32) + 1024).astype(np.uint16)
            meta = FileMetaDataset()
            meta.MediaStorageSOPClassUID = UID(CT_IMAGE_STORAGE)
            meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{series}.{k + 1}")
            meta.TransferSyntaxUID = UID(syntax)
            ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
            ds.SOPClassUID, ds.SOPInstanceUID = CT_IMAGE_STORAGE, f"1.2.3.{series}.{k + 1}"
            ds.SeriesInstanceUID, ds.FrameOfReferenceUID = f"1.2.3.{series}", "1.2.3.99"
            ds.Modality, ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = "CT", series, k + 1, 1
            ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
            ds.Rows, ds.Columns = shape
            ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
            ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
            ds.PixelRepresentation = 1 if stored == "signed" else 0
            ds.ImagePositionPatient = [f"{x:.6g}" for x in lps]
            ds.ImageOrientationPatient = [f"{x:.8g}" for x in orientation]
            ds.PixelSpacing = [f"{p:g}" for p in pixel]
            ds.SliceThickness = f"{spacing:g}"
            ds.RescaleSlope, ds.RescaleIntercept = "1", "0" if stored == "signed" else "-1024"
            ds.PixelData = values.tobytes()
            ds["PixelData"].VR = "OW"
            if edit is not None and edit(ds, k) is False:
                continue
            implicit, little = syntax == "1.2.840.10008.1.2", syntax != "1.2.840.10008.1.2.2"
            if not little:
                ds.PixelData = np.frombuffer(ds.PixelData, "<u2").byteswap().tobytes()
                ds["PixelData"].VR = "OW"
            path = folder / f"{prefix}{series}-{n - k:03d}.dcm"
            with pydicom.config.disable_value_validation():
                if ds.file_meta.TransferSyntaxUID == syntax:
                    pydicom.dcmwrite(path, ds, implicit_vr=implicit, little_endian=little)
                else:
                    pydicom.dcmwrite(path, ds)
            files.append(path)
        return files

    return write
