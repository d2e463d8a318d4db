"""The contact sheet of a cohort: three planes of some cases, so that one look shows whether they are bodies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.cohorts.store import Cohort, CohortCase, load_case
from VelvetMedLib.ct import Volume

WINDOWS = {"soft": (-160.0, 240.0), "lung": (-1200.0, 200.0)}
SHEET = "contact_sheet.png"


def planes(array_kji: NDArray[Any], at_kji: tuple[int, int, int]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Axial, coronal and sagittal plane of a RAS array as a radiologist sees them: patient's right on the left, head up, front left."""
    k, j, i = at_kji
    return array_kji[k, ::-1, ::-1], array_kji[::-1, j, ::-1], array_kji[::-1, ::-1, i]


def ras_array(volume: Volume, spacing_mm: float) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """A volume on an axis-aligned RAS grid, for the real scan beside the cases."""
    from VelvetMedLib.ct import ras_grid, resample

    out = resample(volume, ras_grid(volume.grid, (spacing_mm,) * 3))
    return out.voxels_kji, out.ijk_to_ras


def draw_sheet(cohort: Cohort, *, most: int = 18, real: Volume | None = None, path: Path | None = None) -> Path | None:
    """Writes contact_sheet.png; the real scan, if given, comes first. None where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    cases = [load_case(folder) for folder in cohort.case_folders[:most]]
    tiles = [(c.volume.voxels_kji, c.organs_kji, _title(c)) for c in cases]
    if real is not None:
        array, _ = ras_array(real, cases[0].volume.spacing_mm[0])
        tiles.insert(0, (array, np.zeros(array.shape, np.uint8), "REAL SCAN"))
    columns = 3
    rows = -(-len(tiles) // columns)
    figure = Figure(figsize=(columns * 7.2, rows * 2.6), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns * 4, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    figure.subplots_adjust(left=0.005, right=0.995, top=0.955, bottom=0.005, wspace=0.02, hspace=0.16)
    for n, (array, organs, title) in enumerate(tiles):
        group = axes[n // columns, 4 * (n % columns) : 4 * (n % columns) + 4]
        _draw_case(group, array, organs)
        place = group[0].get_position(original=True)
        figure.text(place.x0, place.y1 + 0.002, title, color="white", fontsize=6, va="bottom")
    figure.text(0.995, 0.004, f"Synthetic cases. {RESEARCH_USE_ONLY}", color="white", fontsize=8, ha="right", va="bottom")
    target = path or cohort.folder / SHEET
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.part.png")
    figure.savefig(temporary, dpi=80, facecolor="black", metadata={"Software": None})
    os.replace(temporary, target)
    return target


def _draw_case(axes: NDArray[Any], array: NDArray[Any], organs: NDArray[np.uint8]) -> None:
    body = array > -400
    middle = [
        int(np.average(np.arange(n), weights=body.sum(axis=tuple(x for x in range(3) if x != axis)) + 1e-9))
        for axis, n in enumerate(array.shape)
    ]
    at = (middle[0], middle[1], middle[2])
    axial, coronal, sagittal = planes(array, at)
    lungs = planes(array, (min(at[0] + array.shape[0] // 5, array.shape[0] - 1), max(at[1] - 6, 0), at[2]))[0]
    shown = ((axial, "soft"), (coronal, "soft"), (lungs, "lung"), (sagittal, "soft"))
    for axis, (plane, window) in zip(axes, shown, strict=True):
        low, high = WINDOWS[window]
        axis.imshow(plane, cmap="gray", vmin=low, vmax=high, interpolation="bilinear")
    outline = planes(organs, at)[1]
    if outline.any():
        axes[1].contour(outline > 0, levels=[0.5], colors="#3fa7ff", linewidths=0.4)


def _title(case: CohortCase) -> str:
    rendering = case.record["rendering"]
    present = [f.name.replace("_", " ") for f in case.findings if f.state == "present"]
    words = ", ".join(present[:5]) + (f" +{len(present) - 5}" if len(present) > 5 else "") if present else "no finding"
    return f"{case.case_id[5:]} {case.record['view']['name']} {rendering['phase']} {rendering['mode']}: {words}"
