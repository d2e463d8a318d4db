"""The series in a folder of DICOM files: told apart, listed, and one chosen by rule or by the user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from VelvetMedLib.ct import checks
from VelvetMedLib.ct.dicom_files import Folder, Slice

_KINDS = {
    "no picture": "a report, structure set or other object without pictures",
    "secondary capture": "screenshots (secondary capture)",
    "colour": "colour pictures",
    "localiser": "a localiser (scout view)",
    "multi-frame": "a multi-frame (enhanced) CT object",
    "no geometry": "CT pictures without position, orientation or pixel spacing",
}
_NEXT = {
    "not CT": "Choose a CT series; this program reads nothing else.",
    "localiser": "Choose the CT series that was planned on it.",
    "multi-frame": "Export the series as classic single-slice CT images, or convert it to NIfTI, and give that.",
    "no geometry": "Export the series again from the archive with its original headers.",
}
SAME_DIRECTION = 2e-3
SAME_PIXEL_MM = 1e-3


@dataclass(frozen=True, eq=False)
class SeriesInfo:
    """One stack of slices that belong together. `place` is its number in the list, from 1, and what `series=` takes."""

    place: int
    modality: str
    n_images: int
    rows: int
    columns: int
    orientation: str
    trouble: str | None
    uid: str = field(repr=False)
    slices: tuple[Slice, ...] = field(repr=False)

    @property
    def usable(self) -> bool:
        """True when the series can be read as a CT volume, as far as its kind goes."""
        return self.trouble is None

    def describe(self) -> str:
        """The series in a few words that name nobody, such as "axial CT, 133 slices of 512 x 512"."""
        if self.trouble == "not CT":
            kind = "pictures of unknown modality" if self.modality == "unknown" else self.modality
            return f"{kind}, {self.n_images} image{'s' * (self.n_images != 1)}"
        if self.trouble is not None:
            return f"{_KINDS[self.trouble]}, {self.n_images} file{'s' * (self.n_images != 1)}"
        return f"{self.orientation} CT, {self.n_images} slice{'s' * (self.n_images != 1)} of {self.columns} x {self.rows}"


def group_series(slices: tuple[Slice, ...]) -> tuple[SeriesInfo, ...]:
    """Stacks in order of series number. One DICOM series may hold several: localiser and slices, two directions, repeated passes."""
    groups: list[list[Slice]] = []
    for one in slices:
        home = next((g for g in groups if _belong_together(g[0], one)), None)
        if home is None:
            groups.append(home := [])
        home.append(one)
    groups = [part for group in groups for part in _passes(group)]
    groups.sort(key=_order)
    return tuple(
        SeriesInfo(
            place=place,
            modality=group[0].modality,
            n_images=len(group),
            rows=group[0].rows,
            columns=group[0].columns,
            orientation=_orientation(group[0]) if group[0].trouble is None else "",
            trouble=group[0].trouble,
            uid=group[0].series_uid,
            slices=tuple(group),
        )
        for place, group in enumerate(groups, start=1)
    )


def choose(folder: Folder, series: tuple[SeriesInfo, ...], wanted: str | int | None) -> tuple[SeriesInfo, list[str]]:
    """The series asked for (its place in the list, or its SeriesInstanceUID), else the largest axial CT; and what to tell the user."""
    if not series:
        _nothing(folder)
    if wanted is not None:
        return _asked_for(series, wanted), []
    usable = [s for s in series if s.usable]
    if not usable:
        largest = max(series, key=lambda s: s.n_images)
        _refuse_kind(largest, len(series))
    best = max(usable, key=_rank)
    if len(series) == 1:
        return best, []
    rule = "the largest axial CT series" if best.orientation == "axial" else "the largest CT series, as none is axial"
    others = "; ".join(f"{s.place}: {s.describe()}" for s in series[:12])
    more = "" if len(series) <= 12 else f"; and {len(series) - 12} more"
    return best, [f"The folder holds {len(series)} series ({others}{more}). Series {best.place} was read: {rule}."]


def _order(group: list[Slice]) -> tuple[int, str, bool, int, int, int, int]:
    one = group[0]
    return one.series_number, one.series_uid, one.trouble is not None, -len(group), one.acquisition or 0, one.temporal or 0, one.place


def _rank(series: SeriesInfo) -> tuple[bool, int, bool, int]:
    return series.orientation == "axial", series.n_images, "ORIGINAL" in series.slices[0].image_type, -series.place


def _asked_for(series: tuple[SeriesInfo, ...], wanted: str | int) -> SeriesInfo:
    found = [s for s in series if s.place == wanted or str(s.place) == str(wanted).strip()]
    if not found:
        same_uid = [s for s in series if s.uid and s.uid == str(wanted).strip()]
        found = [max(same_uid, key=lambda s: (s.usable, *_rank(s)))] if same_uid else []
    if not found:
        checks.refuse(
            "The folder has no such series.",
            found="; ".join(f"{s.place}: {s.describe()}" for s in series),
            expected=f"a number from 1 to {len(series)}, or a SeriesInstanceUID of this folder",
            next_step="Choose one of the series found, or leave the choice out to read the largest axial CT.",
        )
    if not found[0].usable:
        _refuse_kind(found[0], 1)
    return found[0]


def _refuse_kind(series: SeriesInfo, n_series: int) -> NoReturn:
    kind = series.trouble or ""
    among = "" if n_series == 1 else f" (the largest of {n_series} series, none of them usable)"
    what = {
        "not CT": f"The series is not CT but {series.modality}.",
        "localiser": "The series is only a localiser (scout view).",
        "multi-frame": "The series is a multi-frame (enhanced) CT object, which is not supported.",
        "no geometry": "The slices do not say where they lie in the patient.",
        "colour": "The series holds colour pictures, not CT slices.",
        "secondary capture": "The series holds screenshots (secondary capture), not CT slices.",
    }.get(kind, "The folder holds DICOM files but no CT slices.")
    if kind == "not CT" and series.modality == "unknown":
        what = "The series does not say that it is CT."
    checks.refuse(
        what,
        found=series.describe() + among,
        expected="a series of CT slices with positions in millimetres",
        next_step=_NEXT.get(kind, "Choose the original CT series."),
    )


def _nothing(folder: Folder) -> NoReturn:
    if folder.unreadable:
        more = len(folder.unreadable) - 1
        checks.refuse(
            "None of the DICOM files in the given folder can be read.",
            found=folder.unreadable[0] + (f"; and {more} more like it" if more else ""),
            expected="complete DICOM files of a CT series",
            next_step="Copy or export the series again; the transfer was probably cut off.",
        )
    checks.refuse(
        "The given folder holds no DICOM series.",
        found=_files_without_a_picture(folder.n_files),
        expected="the folder of a CT series",
        next_step="Give the folder that holds the slices; a NIfTI or NRRD scan is given as the file itself.",
    )


def _files_without_a_picture(count: int) -> str:
    if count == 0:
        return "an empty folder"
    return "one file, which is no DICOM picture" if count == 1 else f"{count} files, none of them a DICOM picture"


def _belong_together(a: Slice, b: Slice) -> bool:
    if (a.series_uid, a.trouble, a.modality) != (b.series_uid, b.trouble, b.modality):
        return False
    if a.trouble is not None:
        return True
    assert a.orientation is not None and b.orientation is not None and a.pixel_spacing is not None and b.pixel_spacing is not None
    return (
        (a.rows, a.columns, a.frame_uid) == (b.rows, b.columns, b.frame_uid)
        and bool(np.abs(a.orientation - b.orientation).max() < SAME_DIRECTION)
        and bool(np.abs(a.pixel_spacing - b.pixel_spacing).max() < SAME_PIXEL_MM)
    )


def _passes(group: list[Slice]) -> list[list[Slice]]:
    """Split a stack that was scanned several times over (contrast phases in one series), when the headers number the passes."""
    if group[0].trouble is not None or not _repeats(group):
        return [group]
    # A pass covers the stack: two table runs that merely overlap by a slice are one scan, not two.
    half = len({round(s.along_mm, 2) for s in group}) / 2
    numbers: tuple[Callable[[Slice], int | None], ...] = (lambda s: s.acquisition, lambda s: s.temporal)
    for number in numbers:
        parts: dict[int | None, list[Slice]] = {}
        for one in group:
            parts.setdefault(number(one), []).append(one)
        if len(parts) > 1 and not any(_repeats(part) or len(part) < half for part in parts.values()):
            return list(parts.values())
    return [group]


def _repeats(group: list[Slice]) -> bool:
    along = np.sort([s.along_mm for s in group])
    return bool((np.diff(along) < 0.01).any())


def _orientation(one: Slice) -> str:
    normal = np.abs(one.normal)
    return ("sagittal", "coronal", "axial")[int(np.argmax(normal))]
