"""Labelled scans ready to be cut: RAS, one spacing, foreground only, 16-bit arrays and points to centre crops on.

    STORE/<key>/<case>/hu.npy      int16 HU (x, y, z)
    STORE/<key>/<case>/labels.npy  structures (x, y, z), as the task's `Coding` says
    STORE/<key>/<case>/points.npz  flat indices of voxels of each structure, drawn once
    STORE/<key>/<case>/case.json   written last: the commit mark, with the grid

The key covers everything that the arrays depend on, so that runs with other spacings or structures share a store.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetuning.coding import Coded, Coding
from finetuning.settings import DataSettings
from finetuning.tasks import CaseFiles, SegmentationTask
from VelvetMedLib.ct import Grid, ras_grid, read, read_labels, resample, resample_labels
from VelvetMedLib.engine.manifest import Quarantined
from VelvetMedLib.errors import TrainingError, VelvetMedError
from VelvetMedLib.files import flush_file, read_json, write_json

STORE_VERSION = 1
MARK = "case.json"
POINTS = 4000
"""Of each structure; its share among all voxels is kept beside them."""
AIR_HU = -1024


@dataclass(frozen=True)
class StoredCase:
    """A case in the store. grid: of the arrays in (k, j, i) = (z, y, x) terms; counts: voxels of the background and of each structure."""

    files: CaseFiles
    folder: Path
    grid: Grid
    counts: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.files.name

    @cached_property
    def hu_xyz(self) -> NDArray[np.int16]:
        """A memory map, except on Windows, where a mapped file cannot be replaced."""
        return np.load(self.folder / "hu.npy", mmap_mode=None if os.name == "nt" else "r", allow_pickle=False)

    @cached_property
    def labels_xyz(self) -> Coded:
        return np.load(self.folder / "labels.npy", mmap_mode=None if os.name == "nt" else "r", allow_pickle=False)

    @cached_property
    def points(self) -> dict[int, NDArray[np.int64]]:
        """Flat indices into the arrays by structure; those of 0, the background, lie inside the body."""
        with np.load(self.folder / "points.npz", allow_pickle=False) as stored:
            return {int(name): stored[name] for name in stored.files}


def store_key(task: SegmentationTask, settings: DataSettings) -> str:
    """Short hash of all that the stored arrays depend on beside their sources."""
    relevant = [STORE_VERSION, list(settings.spacing_mm), settings.hu_min, [[x.name, x.value] for x in task.labels], list(task.declared)]
    return hashlib.sha256(json.dumps(relevant).encode()).hexdigest()[:12]


def prepare(
    task: SegmentationTask,
    store: Path,
    settings: DataSettings,
    *,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[StoredCase], list[Quarantined]]:
    """Put into the store what is missing and open all of it; a case that cannot be used is returned with its reason."""
    home = store / store_key(task, settings)
    folders = {case.name: home / hashlib.sha256(case.name.encode()).hexdigest()[:16] for case in task.cases}
    todo = [case for case in task.cases if not _is_stored(case, folders[case.name])]
    jobs = [(case, folders[case.name]) for case in todo]
    reasons: dict[str, str] = {}
    # The list of cases stays here: each job brings its own.
    work = partial(_prepare_one, task=replace(task, cases=task.cases[:1]), settings=settings)
    if processes > 1 and len(jobs) > 1:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            answers: Any = pool.map(work, jobs)
            _collect(answers, jobs, reasons, progress)
    else:
        _collect(map(work, jobs), jobs, reasons, progress)
    good = [_opened(case, folders[case.name]) for case in task.cases if case.name not in reasons]
    return good, [Quarantined(name, reason) for name, reason in reasons.items()]


def _collect(
    answers: Any, jobs: list[tuple[CaseFiles, Path]], reasons: dict[str, str], progress: Callable[[int, int], None] | None
) -> None:
    for n, (reason, (case, _)) in enumerate(zip(answers, jobs, strict=True), start=1):
        if reason is not None:
            reasons[case.name] = reason
        if progress is not None:
            progress(n, len(jobs))


def _stamp(case: CaseFiles) -> list[list[int]]:
    return [[stat.st_size, stat.st_mtime_ns] for stat in (case.image.stat(), case.label.stat())]


def _is_stored(case: CaseFiles, folder: Path) -> bool:
    mark = read_json(folder / MARK)
    try:
        return mark is not None and mark.get("source") == _stamp(case)
    except OSError:
        return False


def _opened(case: CaseFiles, folder: Path) -> StoredCase:
    mark = read_json(folder / MARK)
    assert mark is not None
    x, y, z = mark["shape_xyz"]
    return StoredCase(case, folder, Grid((z, y, x), np.array(mark["ijk_to_ras"])), tuple(mark["counts"]))


def _prepare_one(job: tuple[CaseFiles, Path], *, task: SegmentationTask, settings: DataSettings) -> str | None:
    """None, or why the case cannot be used. Only the disk's own refusal to write is raised."""
    case, folder = job
    try:
        hu_xyz, coded_xyz, grid = _arrays(case, task, settings)
    except _Unusable as problem:
        return str(problem)
    except VelvetMedError as error:
        return f"{error.what} {error.found}"
    except (OSError, RuntimeError, ValueError) as error:
        return f"the files cannot be read ({type(error).__name__})"
    building = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        np.save(building / "hu.npy", hu_xyz, allow_pickle=False)
        np.save(building / "labels.npy", coded_xyz, allow_pickle=False)
        np.savez(building / "points.npz", **_points(hu_xyz, coded_xyz, task.coding, settings.hu_min))  # type: ignore[arg-type]
        for path in building.iterdir():
            flush_file(path)
        counts = task.coding.counts(coded_xyz)
        facts = {"name": case.name, "source": _stamp(case), "shape_xyz": list(hu_xyz.shape), "counts": counts}
        write_json(building / MARK, {**facts, "ijk_to_ras": grid.ijk_to_ras.tolist()})
        shutil.rmtree(folder, ignore_errors=True)
        try:
            os.replace(building, folder)
        except OSError:
            # Another process may have been faster with the same case; its copy is as good.
            if not (folder / MARK).exists():
                raise
    except OSError as error:
        raise TrainingError(
            "The prepared scans cannot be written.",
            found=error.strerror or type(error).__name__,
            expected="free, writable space for 3 to 6 bytes per voxel of every scan",
            next_step="Free some space or give another folder with --store, then call the same line again.",
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return None


class _Unusable(Exception):
    """Why a case is left out."""


def _arrays(case: CaseFiles, task: SegmentationTask, settings: DataSettings) -> tuple[NDArray[np.int16], Coded, Grid]:
    """HU and structures on the learning grid, (x, y, z), cut to where there is anything above the window's lower end."""
    for path, what in ((case.image, "scan"), (case.label, "label map")):
        if not path.is_file():
            raise _Unusable(f"the {what} is missing")
    volume = read(case.image)
    values_kji, label_grid = read_labels(case.label)
    if not _covers(label_grid, volume.grid):
        raise _Unusable("the label map does not lie on the scan")
    if foreign := task.foreign(values_kji, case):
        raise _Unusable(f"the label map holds values that the data set does not declare: {foreign[:5]}")
    grid = ras_grid(volume, settings.spacing_mm)
    hu = np.rint(resample(volume, grid).voxels_kji).astype(np.int16)
    coded = task.coding.coded(task.members(resample_labels(values_kji, label_grid, grid), case))
    seen = (hu > settings.hu_min) | (coded > 0)
    if not seen.any():
        raise _Unusable("the scan shows nothing above the lower end of the HU window")
    box = tuple(_ends(seen.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3))
    matrix = np.array(grid.ijk_to_ras)
    matrix[:3, 3] += matrix[:3, :3] @ np.array([box[2].start, box[1].start, box[0].start], np.float64)
    part = Grid(tuple(s.stop - s.start for s in box), matrix)  # type: ignore[arg-type]
    return _xyz(hu[box]), _xyz(coded[box]), part


def _covers(labels: Grid, scan: Grid) -> bool:
    """Whether both grids fill the same box in space, to within a voxel of the scan."""
    low, high = labels.box_ras(), scan.box_ras()
    return bool(max(np.abs(low[0] - high[0]).max(), np.abs(low[1] - high[1]).max()) <= max(scan.spacing_mm))


def _ends(filled: NDArray[np.bool_]) -> slice:
    at = np.flatnonzero(filled)
    return slice(int(at[0]), int(at[-1]) + 1)


def _xyz(array_kji: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array_kji.transpose(2, 1, 0))


def _points(hu_xyz: NDArray[np.int16], coded_xyz: Coded, coding: Coding, hu_min: float) -> dict[str, NDArray[np.int64]]:
    draw = np.random.default_rng(0)
    points = {"0": _drawn((coded_xyz == 0) & (hu_xyz > hu_min), draw)}
    for layer, number in coding.layers(coded_xyz):
        for value in sorted(set(np.flatnonzero(np.bincount(layer.ravel())).tolist()) & number.keys()):
            points[str(number[value])] = _drawn(layer == value, draw)
    return {name: at for name, at in points.items() if len(at)}


def _drawn(mask: NDArray[np.bool_], draw: np.random.Generator) -> NDArray[np.int64]:
    at = np.flatnonzero(mask)
    return at[draw.permutation(len(at))[:POINTS]]
