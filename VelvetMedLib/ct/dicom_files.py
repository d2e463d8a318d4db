"""DICOM headers: every file of a folder looked at once, voxels left on disk, and nothing that names the patient kept."""

from __future__ import annotations

import mmap
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.ct import checks

MAX_FILES = 100_000
RAW_SYNTAXES = {
    "1.2.840.10008.1.2": "implicit VR little endian",
    "1.2.840.10008.1.2.1": "explicit VR little endian",
    "1.2.840.10008.1.2.2": "explicit VR big endian",
}
PACKED_SYNTAXES = {
    "1.2.840.10008.1.2.1.99": "deflated",
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.51": "JPEG extended",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless, first-order prediction",
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.5": "RLE lossless",
}
_CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
_ENHANCED_CLASSES = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
_CAPTURE_CLASS = "1.2.840.10008.5.1.4.1.1.7"
# Words that may be repeated to the user or kept: from closed lists, for a field could hold anything, a name included.
_MODALITIES = frozenset(
    (
        "CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "RF", "XA", "OT", "SC", "SR", "SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTIMAGE",
        "REG", "PR", "KO", "ES", "XC", "OP", "OPT", "DOC", "IO", "PX", "ECG", "SM", "GM", "BMD",
    )
)  # fmt: skip
_PATIENT_POSITIONS = frozenset(("HFS", "HFP", "HFDR", "HFDL", "FFS", "FFP", "FFDR", "FFDL"))
# The only fields read. Names, identifiers, dates and free text are never asked for; UIDs serve grouping and go nowhere else.
_FIELDS = (
    "SOPClassUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SeriesNumber", "AcquisitionNumber", "TemporalPositionIdentifier",
    "Modality", "ImageType", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit", "SliceThickness", "KVP", "PatientPosition",
    "LossyImageCompression",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Slice:
    """One DICOM file as far as it matters. Positions and directions are DICOM's own (LPS, mm)."""

    place: int
    path: Path = field(repr=False)
    series_uid: str = field(repr=False)
    frame_uid: str = field(repr=False)
    syntax: str
    pixel_offset: int | None
    pixel_length: int
    implicit_vr: bool
    sop_class: str
    series_number: int
    acquisition: int | None
    temporal: int | None
    modality: str
    image_type: tuple[str, ...]
    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    position: NDArray[np.float64] | None
    orientation: NDArray[np.float64] | None
    pixel_spacing: NDArray[np.float64] | None
    slope: float | None
    intercept: float | None
    rescale_type: str
    padding: int | None
    padding_limit: int | None
    thickness_mm: float | None
    kvp: float | None
    patient_position: str
    lossy: bool

    @property
    def trouble(self) -> str | None:
        """Why this file cannot be a slice of a CT volume, as a short kind; None when it can."""
        if self.rows == 0 or self.columns == 0:
            return "no picture"
        if self.modality != "CT":
            return "not CT"
        if self.sop_class.startswith(_CAPTURE_CLASS):
            return "secondary capture"
        if self.samples != 1 or not self.photometric.startswith("MONOCHROME"):
            return "colour"
        if "LOCALIZER" in self.image_type:
            return "localiser"
        if self.frames > 1 or self.sop_class in _ENHANCED_CLASSES:
            return "multi-frame"
        if self.position is None or self.orientation is None or self.pixel_spacing is None:
            return "no geometry"
        return None

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector square to the slice (LPS): row direction x column direction."""
        assert self.orientation is not None
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def along_mm(self) -> float:
        """Place along the normal in mm; for axial slices this is the table position z."""
        assert self.position is not None
        return float(self.position @ self.normal)


@dataclass(frozen=True)
class Folder:
    """What was found: readable DICOM files, how many files there were, and sentences about those that could not be read."""

    slices: tuple[Slice, ...]
    n_files: int
    n_dicom: int
    unreadable: tuple[str, ...]


def is_dicom(start: bytes) -> bool:
    """True for a DICOM preamble, or for the older bare form that starts with group 0002 or 0008."""
    bare = (b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00", b"\x02\x00\x00\x00")
    return start[128:132] == b"DICM" or (len(start) >= 8 and start.startswith(bare))


def read_folder(folder: Path) -> Folder:
    """Every DICOM header below `folder`, in order of file name. A file that cannot be read is named by its place in the list."""
    paths = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        paths += [Path(parent) / name for name in sorted(names)]
        if len(paths) > MAX_FILES:
            checks.refuse(
                "The folder holds too many files.",
                found=f"more than {MAX_FILES:,} files",
                expected="the folder of one study",
                next_step="Give the folder of a single study or series.",
            )
    slices: list[Slice] = []
    unreadable: list[str] = []
    n_dicom = 0
    for place, path in enumerate(paths, start=1):
        try:
            one = read_slice(path, place)
        except UnreadableFile as trouble:
            n_dicom += 1
            unreadable.append(f"file {place} of {len(paths)} (in order of name) {trouble}")
            continue
        if one is not None:
            n_dicom += 1
            slices.append(one)
    return Folder(tuple(slices), len(paths), n_dicom, tuple(unreadable))


class UnreadableFile(Exception):
    """A DICOM file that is damaged; its text completes "file 3 of 9 ..."."""


def read_slice(path: Path, place: int = 1) -> Slice | None:
    """The header of one file, or None when it is not DICOM (or only a directory of others)."""
    try:
        with path.open("rb") as raw:
            if not is_dicom(raw.read(132)):
                return None
            # Mapped, not read: only the pages of the header are touched, and no declared length can ask for more than the file holds.
            with mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(data, path, place)
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"cannot be opened ({type(error).__name__})") from None


def _parse(data: mmap.mmap, path: Path, place: int) -> Slice | None:
    import pydicom

    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")  # pydicom's warnings quote the values they complain about
            dataset = pydicom.dcmread(cast("BinaryIO", data), stop_before_pixels=True, specific_tags=list(_FIELDS), force=True)
            found = {name: getattr(dataset, name, None) for name in _FIELDS}
            meta = getattr(dataset, "file_meta", None)
            implicit = bool(dataset.original_encoding[0])
            big = dataset.original_encoding[1] is False
    except Exception as error:  # a hostile header may raise anything; the file is set aside and named
        raise UnreadableFile(f"has a damaged header ({type(error).__name__})") from None
    syntax = str(getattr(meta, "TransferSyntaxUID", "") or "")
    if str(getattr(meta, "MediaStorageSOPClassUID", "")) == _DIRECTORY_CLASS:
        return None
    if _CT_CLASS in (str(getattr(meta, "MediaStorageSOPClassUID", "")), str(found["SOPClassUID"])) and not found["Rows"]:
        raise UnreadableFile("is cut short: the header is incomplete")
    if not syntax:
        syntax = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.2" if big else "1.2.840.10008.1.2.1"
    try:
        rows, columns = _integer(found["Rows"]) or 0, _integer(found["Columns"]) or 0
        allocated = _integer(found["BitsAllocated"]) or 16
        stored = _integer(found["BitsStored"]) or allocated
        offset, length = _pixel_data(data, implicit, syntax) if rows and columns else (None, 0)
        high = _integer(found["HighBit"])
        return Slice(
            place=place, path=path, series_uid=str(found["SeriesInstanceUID"] or ""), frame_uid=str(found["FrameOfReferenceUID"] or ""),
            syntax=syntax, pixel_offset=offset, pixel_length=length, implicit_vr=implicit, sop_class=str(found["SOPClassUID"] or ""),
            series_number=_integer(found["SeriesNumber"]) or 0, acquisition=_integer(found["AcquisitionNumber"]),
            temporal=_integer(found["TemporalPositionIdentifier"]), modality=_listed(found["Modality"], _MODALITIES) or "unknown",
            image_type=tuple(_word(w) for w in _many(found["ImageType"])), rows=rows, columns=columns,
            frames=_integer(found["NumberOfFrames"]) or 1, samples=_integer(found["SamplesPerPixel"]) or 1,
            photometric=_word(found["PhotometricInterpretation"]) or "MONOCHROME2", bits_allocated=allocated, bits_stored=stored,
            high_bit=stored - 1 if high is None else high, signed=_integer(found["PixelRepresentation"]) == 1,
            position=_vector(found["ImagePositionPatient"], 3), orientation=_directions(found["ImageOrientationPatient"]),
            pixel_spacing=_positive(_vector(found["PixelSpacing"], 2)), slope=_decimal(found["RescaleSlope"]),
            intercept=_decimal(found["RescaleIntercept"]), rescale_type=_word(found["RescaleType"]),
            padding=_integer(found["PixelPaddingValue"]), padding_limit=_integer(found["PixelPaddingRangeLimit"]),
            thickness_mm=_decimal(found["SliceThickness"]), kvp=_decimal(found["KVP"]),
            patient_position=_listed(found["PatientPosition"], _PATIENT_POSITIONS), lossy=_word(found["LossyImageCompression"]) == "01",
        )  # fmt: skip
    except (TypeError, ValueError, OverflowError) as error:
        raise UnreadableFile(f"has a damaged header ({type(error).__name__})") from None


def _pixel_data(data: mmap.mmap, implicit: bool, syntax: str) -> tuple[int | None, int]:
    """(offset of the first pixel byte, declared length) of an uncompressed picture; (None, 0) for a compressed one."""
    if syntax not in RAW_SYNTAXES:
        return None, 0
    at = data.tell()
    big = syntax.endswith(".2.2")
    if data[at : at + 4] != (b"\x7f\xe0\x00\x10" if big else b"\xe0\x7f\x10\x00"):
        raise UnreadableFile("ends before its picture")
    head = 8 if implicit else 12
    length = int.from_bytes(data[at + head - 4 : at + head], "big" if big else "little")
    if at + head + length > len(data):
        raise UnreadableFile("is cut short: the picture is incomplete")
    return at + head, length


def _many(value: Any) -> list[Any]:
    if value is None or isinstance(value, str | bytes):
        return [] if value is None else [value]
    return list(value) if hasattr(value, "__iter__") else [value]


def _one(value: Any) -> Any:
    values = _many(value)
    return values[0] if values and values[0] not in ("", None) else None


def _integer(value: Any) -> int | None:
    one = _one(value)
    if isinstance(one, bytes):
        one = int.from_bytes(one[:2], "little")
    return None if one is None else int(one)


def _decimal(value: Any) -> float | None:
    one = _one(value)
    return None if one is None or not np.isfinite(float(one)) else float(one)


def _vector(value: Any, length: int) -> NDArray[np.float64] | None:
    values = _many(value)
    if len(values) != length:
        return None
    vector = np.array([float(v) for v in values])
    return vector if np.isfinite(vector).all() else None


def _positive(vector: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    return vector if vector is not None and (vector > 0).all() else None


def _directions(value: Any) -> NDArray[np.float64] | None:
    vector = _vector(value, 6)
    if vector is None:
        return None
    row, column = vector[:3], vector[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if min(lengths) < 0.9 or max(lengths) > 1.1 or abs(row @ column) > 0.01:
        return None
    # Headers carry six decimals: make the pair exactly square again.
    row = row / lengths[0]
    column = column - (column @ row) * row
    return np.concatenate([row, column / np.linalg.norm(column)])


def _word(value: Any) -> str:
    """A code string, for comparisons only."""
    return str(_one(value) or "").strip().upper()


def _listed(value: Any, known: frozenset[str]) -> str:
    text = _word(value)
    return text if text in known else ""
