"""A pile of slices made into a grid: order by position, and what is wrong with the pile, told in millimetres."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.ct import checks
from VelvetMedLib.ct.dicom_files import Slice
from VelvetMedLib.ct.geometry import LPS_TO_RAS, Grid

SAME_POSITION_MM = 0.01
_OFF_LINE_MM = 1.0
_EVEN_SHARE = 0.1
_EVEN_MM = 0.1
_TILT_DEGREES = 0.1
_SHOWN = 6


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in order along their normal, the grid they make (possibly sheared by a gantry tilt), and notices."""

    slices: tuple[Slice, ...]
    grid: Grid
    warnings: tuple[str, ...]


def stack(slices: Sequence[Slice], same_picture: Callable[[Slice, Slice], bool] | None = None) -> Stack:
    """Order slices by position and check the pile. `same_picture` compares two slices at one position; without it they count as equal.

    Spacing comes from positions alone: SliceThickness says how thick a slice is, not how far the next one lies. Raises ScanError.
    """
    notes: list[str] = []
    ordered = sorted(slices, key=lambda s: (s.along_mm, s.place))
    ordered = _without_repeats(ordered, same_picture, notes)
    first = ordered[0]
    checks.refuse_dimensions((len(ordered), first.rows, first.columns))
    along = np.array([s.along_mm for s in ordered])
    _refuse_gaps(along)
    positions = np.array([s.position for s in ordered])
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    off_line = np.linalg.norm(positions - (positions[0] + np.arange(len(ordered))[:, None] * step), axis=1)
    _refuse_uneven(along)
    if off_line.max() > _OFF_LINE_MM:
        checks.refuse(
            "The slices are not stacked along one straight line.",
            found=f"a slice {off_line.max():.1f} mm beside the line from the first to the last, at {along[int(off_line.argmax())]:.1f} mm",
            expected="slices whose corners lie on one line",
            next_step="Export the series again; slices of different scans may have been put together.",
        )
    tilt = float(np.degrees(np.arccos(np.clip(step @ first.normal / np.linalg.norm(step), -1.0, 1.0))))
    if tilt > _TILT_DEGREES:
        notes.append(f"The gantry was tilted: slices are stacked {tilt:.1f} degrees off their normal.")
    thickness = first.thickness_mm
    spacing = float(np.linalg.norm(step))
    if thickness and spacing > 1.5 * thickness:
        notes.append(f"Slices are {thickness:g} mm thick but {spacing:.3g} mm apart: what lies between them was not scanned.")
    return Stack(tuple(ordered), _grid(first, step, len(ordered)), tuple(notes))


def _grid(first: Slice, step: NDArray[np.float64], count: int) -> Grid:
    assert first.orientation is not None and first.pixel_spacing is not None and first.position is not None
    lps = np.eye(4)
    # PixelSpacing is (between rows, between columns); the row direction cosine is where the column index i grows.
    lps[:3, 0] = first.orientation[:3] * first.pixel_spacing[1]
    lps[:3, 1] = first.orientation[3:] * first.pixel_spacing[0]
    lps[:3, 2] = step
    lps[:3, 3] = first.position
    return Grid((count, first.rows, first.columns), LPS_TO_RAS @ lps)


def _without_repeats(ordered: list[Slice], same_picture: Callable[[Slice, Slice], bool] | None, notes: list[str]) -> list[Slice]:
    kept: list[Slice] = []
    dropped: list[float] = []
    conflicts: list[float] = []
    for one in ordered:
        if not kept or one.along_mm - kept[-1].along_mm >= SAME_POSITION_MM:
            kept.append(one)
        elif same_picture is None or same_picture(kept[-1], one):
            dropped.append(one.along_mm)
        else:
            conflicts.append(one.along_mm)
    if conflicts:
        checks.refuse(
            "Different slices lie at the same position.",
            found=f"{len(conflicts)} position{'s' * (len(conflicts) != 1)} with two different pictures: {_at(conflicts)}",
            expected="one slice for each position",
            next_step="Export one phase or reconstruction by itself and give that; the folder seems to hold several under one series.",
        )
    if dropped:
        notes.append(f"{len(dropped)} duplicate slice{'s were' if len(dropped) != 1 else ' was'} left out: {_at(dropped)}.")
    return kept


def _refuse_gaps(along: NDArray[np.float64]) -> None:
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    times = gaps / usual
    wide = np.flatnonzero(times > 1.5)
    whole = np.abs(times - np.rint(times)) < 0.15
    # Gaps of a whole number of steps are lost slices; anything else, or too many of them, is uneven spacing (below).
    if not wide.size or not whole.all() or wide.size > len(gaps) / 4:
        return
    missing = [float(along[g] + n * usual) for g in wide for n in range(1, round(float(times[g])))]
    checks.refuse(
        f"Slices are missing from the series: {len(missing)}.",
        found=f"gaps in a stack of {len(along)} slices every {usual:.4g} mm; missing {_at(missing)}",
        expected="a complete stack of slices at even distances",
        next_step="Export the series again and check that every slice arrived.",
    )


def _refuse_uneven(along: NDArray[np.float64]) -> None:
    gaps = np.diff(along)
    step = float((along[-1] - along[0]) / (len(along) - 1))
    off = np.abs(along - (along[0] + np.arange(len(along)) * step))
    if off.max() <= max(_EVEN_SHARE * step, _EVEN_MM):
        return
    usual = float(np.median(gaps))
    odd = along[:-1][np.abs(gaps - usual) > max(_EVEN_SHARE * usual, 0.02)]
    checks.refuse(
        "The slices are unevenly spaced.",
        found=f"distances from {gaps.min():.4g} to {gaps.max():.4g} mm; the spacing changes {_at([float(x) for x in odd])}",
        expected="slices at even distances",
        next_step="Give a series reconstructed at one spacing, or resample it to even spacing first.",
    )


def _at(positions: Sequence[float]) -> str:
    shown = ", ".join(f"{p:.1f}" for p in positions[:_SHOWN])
    more = f" mm and {len(positions) - _SHOWN} more" if len(positions) > _SHOWN else " mm"
    return f"at {shown}{more} along the stack"
