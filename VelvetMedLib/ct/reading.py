"""One way in for every scan: what a path holds is told by its bytes, not by its name."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from VelvetMedLib.ct import checks, nifti, nrrd
from VelvetMedLib.ct.dicom import read_dicom, read_dicom_header
from VelvetMedLib.ct.dicom_files import is_dicom
from VelvetMedLib.ct.geometry import Grid
from VelvetMedLib.ct.volume import Header, Volume
from VelvetMedLib.errors import UsageError
from VelvetMedLib.shapes import Affine, ArrayKJI, LabelsKJI


def read(path: Path | str, *, series: str | int | None = None) -> Volume:
    """A checked CT volume from a DICOM folder (or one of its files), a NIfTI file or an NRRD file.

    series: which DICOM series to read: its place in `list_series` (from 1) or its SeriesInstanceUID; left out, the largest axial CT.
    Raises ScanError with a sentence of its own for each fault.
    """
    path = Path(path)
    with _in_words():
        return _read(path, series)


def _read(path: Path, series: str | int | None) -> Volume:
    kind = _kind(path, series)
    if kind == "dicom":
        return read_dicom(path, series=series)
    if kind == "nrrd":
        array, grid = nrrd.read_nrrd(path)
        return checks.checked_volume(array, grid.ijk_to_ras, provenance={"source": "nrrd"}, own=True)
    array, header = nifti.read_nifti(path)
    return checks.checked_volume(array, header.ijk_to_ras, provenance={"source": "nifti"}, warnings=header.warnings, own=True)


def read_header(path: Path | str, *, series: str | int | None = None) -> Header:
    """Shape, affine and notices of a scan without reading voxels: the grid that `read` gives. Raises ScanError."""
    with _in_words():
        return _read_header(Path(path), series)


def _read_header(path: Path, series: str | int | None) -> Header:
    kind = _kind(path, series)
    if kind == "dicom":
        return read_dicom_header(path, series=series)
    if kind == "nrrd":
        grid, notes = nrrd.read_nrrd_header(path), ()
    else:
        header = nifti.read_nifti_header(path)
        checks.refuse_dimensions(header.shape_kji)
        grid, notes = Grid(header.shape_kji, header.ijk_to_ras), header.warnings  # type: ignore[arg-type, assignment]
    checks.refuse_geometry(grid)
    straight, _, said = checks.straight_header(grid)
    return Header(straight.shape_kji, straight.ijk_to_ras, None, kind, (*notes, *checks.thin_warning(grid), *said))


def read_labels(path: Path | str) -> tuple[LabelsKJI, Grid]:
    """(label map [k, j, i] in its smallest unsigned type, grid) of a NIfTI or NRRD file. No CT check is made. Raises ScanError."""
    with _in_words():
        return _read_labels(Path(path))


def _read_labels(path: Path) -> tuple[LabelsKJI, Grid]:
    kind = _kind(path, None)
    if kind == "dicom":
        checks.refuse(
            "The label map is not a NIfTI or NRRD file.",
            found="DICOM",
            expected="a .nii, .nii.gz or .nrrd file of whole numbers",
            next_step="Convert the DICOM segmentation to NIfTI first.",
        )
    if kind == "nrrd":
        array, grid = nrrd.read_nrrd(path, labels=True)
    else:
        array, header = nifti.read_nifti(path, labels=True)
        grid = Grid(array.shape, header.ijk_to_ras)
    if array.dtype.kind not in "uib" and not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        _not_labels("values with decimals")
    if array.min() < 0:
        _not_labels(f"values down to {array.min():g}")
    highest = int(array.max())
    if highest >= 2**32:
        _not_labels(f"values up to {highest}")
    smallest = np.uint8 if highest < 2**8 else np.uint16 if highest < 2**16 else np.uint32
    return array.astype(smallest, copy=False), grid


def from_array(array_kji: ArrayKJI, ijk_to_ras: Affine | Grid, *, provenance: dict[str, Any] | None = None) -> Volume:
    """A checked Volume of an array in HU indexed (k, j, i) and its 4x4 matrix to RAS mm; the array is copied. Raises ScanError."""
    matrix = ijk_to_ras.ijk_to_ras if isinstance(ijk_to_ras, Grid) else ijk_to_ras
    return checks.checked_volume(array_kji, matrix, provenance={"source": "array", **(provenance or {})})


@contextmanager
def _in_words() -> Iterator[None]:
    """What the system says about a file (its message quotes the path) or about memory, turned into a ScanError."""
    try:
        yield
    except OSError as error:
        checks.refuse(
            "The scan could not be opened.",
            found=f"the system's answer: {error.strerror or type(error).__name__}",
            expected="a file or folder that may be read",
            next_step="Check the permissions and the disk, or copy the scan to another place.",
        )
    except MemoryError:
        checks.refuse(
            "There is not enough memory to read the scan.",
            found="a scan larger than the free memory",
            next_step="Close other programs, or crop or downsample the scan first.",
        )


def _not_labels(found: str) -> NoReturn:
    checks.refuse(
        "The file is not a label map.",
        found=found,
        expected="whole numbers from 0",
        next_step="Give the mask or segmentation, not the scan or a probability map.",
    )


def _kind(path: Path, series: str | int | None) -> str:
    if path.is_dir():
        return "dicom"
    if not path.is_file():
        checks.refuse(
            "The scan was not found.",
            found="no file or folder of the given name",
            expected="a DICOM folder, a NIfTI file or an NRRD file",
            next_step="Check the name for typing errors and that the disk is connected.",
        )
    start = _start(path)
    kind = "dicom" if is_dicom(start) else "nrrd" if start.startswith(b"NRRD00") else "nifti" if _like_nifti(path, start) else None
    if kind is None:
        archive = start.startswith(b"PK")
        checks.refuse(
            "The file is not a scan that this program can read.",
            found="an empty file" if not start else "a ZIP archive" if archive else "a file of another or damaged format",
            expected="a DICOM folder, a NIfTI file (.nii, .nii.gz) or an NRRD file (.nrrd)",
            next_step="Unpack it and give the folder inside." if archive else "Convert the scan to NIfTI, or give its DICOM folder.",
        )
    if series is not None and kind != "dicom":
        raise UsageError(
            "A series can only be chosen in a DICOM folder.",
            found=f"a {'NIfTI' if kind == 'nifti' else 'NRRD'} file, which holds one volume",
            expected="a DICOM folder",
            next_step="Leave the choice of series out.",
        )
    return kind


def _start(path: Path) -> bytes:
    try:
        with nifti.opened(path) as stream:
            return stream.read(540)
    except (OSError, EOFError, zlib.error, gzip.BadGzipFile):
        with path.open("rb") as raw:
            return raw.read(2)


def _like_nifti(path: Path, start: bytes) -> bool:
    # A .nii.gz that cannot be unpacked is a damaged NIfTI, and that is the sentence its owner needs.
    return nifti.sniff(start) or (bool(start) and path.name.lower().endswith((".nii", ".nii.gz")))
