"""A CT series in a DICOM folder: list what is there, read one as a Volume, or only its header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from VelvetMedLib.ct import checks
from VelvetMedLib.ct.dicom_files import Folder, Slice, UnreadableFile, read_folder, read_slice
from VelvetMedLib.ct.dicom_pixels import read_slices, same_picture
from VelvetMedLib.ct.dicom_series import SeriesInfo, choose, group_series
from VelvetMedLib.ct.dicom_stack import Stack, stack
from VelvetMedLib.ct.volume import Header, Volume
from VelvetMedLib.errors import ScanError


def list_series(path: Path | str) -> tuple[SeriesInfo, ...]:
    """Every series below a folder, usable or not, in order of series number. Headers only. Raises ScanError without such a folder."""
    path = Path(path)
    if not path.is_dir():
        checks.refuse(
            "There is no such folder to list.",
            found="a file" if path.exists() else "no folder of the given name",
            expected="a folder of DICOM files",
            next_step="Give the folder that holds the study.",
        )
    return group_series(read_folder(path).slices)


def read_dicom(path: Path, *, series: str | int | None = None) -> Volume:
    """A CT series as a Volume in HU. `path`: a folder, or one file, which stands for the series it belongs to. Raises ScanError."""
    pile, notes, chosen = _stacked(path, series, compare=True)
    voxels, said = read_slices(pile.slices)
    first = pile.slices[0]
    provenance: dict[str, Any] = {"source": "dicom", "modality": "CT", "n_slices": len(pile.slices), "orientation": chosen.orientation}
    if first.thickness_mm:
        provenance["slice_thickness_mm"] = first.thickness_mm
    if first.kvp:
        provenance["tube_voltage_kv"] = first.kvp
    if first.patient_position:
        provenance["patient_position"] = first.patient_position
    warnings = (*notes, *pile.warnings, *said)
    return checks.checked_volume(voxels, pile.grid.ijk_to_ras, provenance=provenance, warnings=warnings, own=True)


def read_dicom_header(path: Path, *, series: str | int | None = None) -> Header:
    """The same without voxels: the grid that `read_dicom` will give. Duplicate slices are taken as equal."""
    pile, notes, _ = _stacked(path, series, compare=False)
    checks.refuse_geometry(pile.grid)
    grid, _, straightened = checks.straight_header(pile.grid)
    warnings = (*notes, *pile.warnings, *checks.thin_warning(pile.grid), *straightened)
    return Header(grid.shape_kji, grid.ijk_to_ras, "CT", "dicom", warnings)


def _stacked(path: Path, series: str | int | None, *, compare: bool) -> tuple[Stack, list[str], SeriesInfo]:
    folder, wanted = _folder_of(path, series)
    listed = group_series(folder.slices)
    chosen, notes = choose(folder, listed, wanted)
    broken = [f"A DICOM file was left out: {text}." for text in folder.unreadable]
    try:
        pile = stack(chosen.slices, same_picture if compare else None)
    except ScanError as error:
        if not broken:
            raise
        # The gap that a damaged file leaves is explained by the damaged file.
        found = f"{error.found}; besides, {folder.unreadable[0]}"
        raise ScanError(error.what, found=found, expected=error.expected, next_step=error.next_step) from None
    return pile, [*notes, *broken], chosen


def _folder_of(path: Path, series: str | int | None) -> tuple[Folder, str | int | None]:
    if path.is_dir():
        return read_folder(path), series
    try:
        one = read_slice(path)
    except UnreadableFile as trouble:
        one, why = None, str(trouble)
    else:
        why = "is not DICOM"
    if one is None:
        checks.refuse(
            "The DICOM file cannot be read.",
            found=f"the file {why}",
            expected="a complete DICOM file of a CT series, or its folder",
            next_step="Give the folder of the series, or copy the file again.",
        )
    siblings = read_folder(path.parent)
    same = tuple(s for s in siblings.slices if _same_stack(s, one))
    return Folder(same or (one,), siblings.n_files, siblings.n_dicom, siblings.unreadable), series


def _same_stack(a: Slice, b: Slice) -> bool:
    return a.series_uid == b.series_uid and a.trouble == b.trouble
