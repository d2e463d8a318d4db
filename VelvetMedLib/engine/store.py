"""The prepared store: each study once as 16-bit arrays that training can cut quickly, with what is known of it as JSON.

    STORE/<views>/<study>/fine.npy     int16 HU (x, y, z), the body region at the fine spacing
    STORE/<views>/<study>/global.npy   int16, the body box squeezed to the global view, 0..32767 for 0..1 of the window
    STORE/<views>/<study>/study.json   written last: the commit mark

Preparing again does what is missing. Several processes may prepare one store: each study is built aside and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.ct import read
from VelvetMedLib.ct.views import fine_view, global_view
from VelvetMedLib.engine.manifest import SPLITS, Quarantined, Study
from VelvetMedLib.errors import TrainingError, VelvetMedError
from VelvetMedLib.files import flush_file, read_json, write_json
from VelvetMedLib.recipes.parts import ViewSettings
from VelvetMedLib.shapes import Triple

STORE_VERSION = 1
FULL_SCALE = 32767
MARK = "study.json"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class StoredStudy:
    """A study in the store. Arrays are opened when asked for; each call reads the disk anew and may raise StoreFault."""

    study: Study
    folder: Path
    sha256: str
    view_spacing_mm: Triple

    def fine(self) -> NDArray[np.int16]:
        """HU (x, y, z); a memory map except on Windows, where a mapped file cannot be replaced."""
        return self._array("fine.npy", mapped=os.name != "nt")

    def global_view(self) -> NDArray[np.int16]:
        return self._array("global.npy", mapped=False)

    def _array(self, name: str, *, mapped: bool) -> NDArray[np.int16]:
        try:
            array: NDArray[np.int16] = np.load(self.folder / name, mmap_mode="r" if mapped else None, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise StoreFault(self.study.study, f"{name} of the prepared store cannot be read ({type(error).__name__})") from None
        if array.dtype != np.int16 or array.ndim != 3 or 0 in array.shape:
            raise StoreFault(self.study.study, f"{name} of the prepared store is not a volume")
        return array


class StoreFault(Exception):
    """A prepared study can no longer be read: it is quarantined and the run goes on."""

    def __init__(self, study: str, reason: str) -> None:
        super().__init__(f"{study}: {reason}")
        self.study, self.reason = study, reason


def views_key(views: ViewSettings) -> str:
    """Short hash of all that the stored arrays depend on; local crops are cut later, so their size is not part of it."""
    relevant = {name: value for name, value in views.to_dict().items() if name != "local_voxels"}
    return hashlib.sha256(json.dumps([STORE_VERSION, relevant], sort_keys=True).encode()).hexdigest()[:12]


def study_folder(store: Path, views: ViewSettings, study: str) -> Path:
    """Where a study lives; its id may hold characters that a file name cannot."""
    return store / views_key(views) / hashlib.sha256(study.encode("utf-8")).hexdigest()[:20]


def prepare(
    studies: Sequence[Study], store: Path, views: ViewSettings, *, processes: int = 1, progress: Progress | None = None
) -> list[Quarantined]:
    """Put into the store what is not there yet. A volume that cannot be read is returned with its reason; nothing is raised for it."""
    jobs = [(study, store, views) for study in studies if not _is_stored(study, store, views)]
    bad: list[Quarantined] = []
    for done, reason in enumerate(_run(jobs, processes), start=1):
        if reason is not None:
            bad.append(Quarantined(jobs[done - 1][0].study, reason))
        if progress is not None:
            progress(done, len(jobs))
    return bad


def _run(jobs: list[tuple[Study, Path, ViewSettings]], processes: int) -> Iterable[str | None]:
    if processes <= 1 or len(jobs) < 2:
        yield from map(_prepare_one, jobs)
        return
    finished = 0
    try:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            for reason in pool.map(_prepare_one, jobs, chunksize=1):
                finished += 1
                yield reason
    except (BrokenProcessPool, OSError):
        # Slicer's Python cannot hold a pool (Slicer#7445): go on alone.
        yield from map(_prepare_one, jobs[finished:])


def _source_stamp(volume: Path) -> list[Any]:
    """Changes when the source does: for a folder (DICOM), its number of files and their newest change."""
    files = [volume] if volume.is_file() else sorted(p for p in volume.rglob("*") if p.is_file())
    stats = [file.stat() for file in files]
    return [len(stats), sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)]


def _is_stored(study: Study, store: Path, views: ViewSettings) -> bool:
    mark = read_json(study_folder(store, views, study.study) / MARK)
    return mark is not None and mark.get("source") == _source_stamp(study.volume)


def _prepare_one(job: tuple[Study, Path, ViewSettings]) -> str | None:
    """None, or why the study cannot be used. Only the disk's own refusal to write is raised."""
    study, store, views = job
    target = study_folder(store, views, study.study)
    try:
        stamp = _source_stamp(study.volume)
        volume = read(study.volume)
        fine = fine_view(volume, views.fine_spacing_mm)
    except VelvetMedError as error:
        return f"the volume cannot be used: {error.what} {error.found}"
    except (OSError, RuntimeError, ValueError) as error:
        return f"the volume cannot be read ({type(error).__name__})"
    side = views.global_voxels
    small = global_view(fine, shape=(side, side, side), window=views.hu_window)
    building = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        hu = np.clip(np.rint(fine.hu_xyz), -1024, FULL_SCALE).astype(np.int16)
        _write_array(building / "fine.npy", hu)
        _write_array(building / "global.npy", np.rint(small.voxels_xyz * FULL_SCALE).astype(np.int16))
        facts = {
            "study": study.study,
            "source": stamp,
            "sha256": volume.sha256(),
            "view_spacing_mm": list(small.view_spacing_mm),
            "fine_shape_xyz": list(hu.shape),
            "warnings": list(volume.warnings),
        }
        write_json(building / MARK, facts)
        shutil.rmtree(target, ignore_errors=True)
        try:
            os.replace(building, target)
        except OSError:
            # Another process was faster with the same study; its copy is as good.
            if not (target / MARK).exists():
                raise
    except OSError as error:
        raise TrainingError(
            "The prepared store cannot be written.",
            found=error.strerror or type(error).__name__,
            expected="free, writable space for about 2 bytes per voxel of every study",
            next_step="Free some space or give another folder with --store, then call the same line again.",
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return None


def _write_array(path: Path, array: NDArray[np.int16]) -> None:
    np.save(path, array, allow_pickle=False)
    flush_file(path)


def open_store(studies: Sequence[Study], store: Path, views: ViewSettings) -> tuple[list[StoredStudy], list[Quarantined]]:
    """The studies that are in the store; the others, and copies of one scan across splits, with the reason."""
    found: list[StoredStudy] = []
    bad: list[Quarantined] = []
    for study in studies:
        folder = study_folder(store, views, study.study)
        mark = read_json(folder / MARK)
        if mark is None:
            bad.append(Quarantined(study.study, "the volume could not be prepared"))
            continue
        spacing = mark["view_spacing_mm"]
        found.append(StoredStudy(study, folder, str(mark["sha256"]), (float(spacing[0]), float(spacing[1]), float(spacing[2]))))
    home: dict[str, int] = {}
    for entry in found:
        home[entry.sha256] = max(home.get(entry.sha256, 0), SPLITS.index(entry.study.split))
    kept = []
    for entry in found:
        at = SPLITS[home[entry.sha256]]
        if at == entry.study.split:
            kept.append(entry)
        else:
            bad.append(Quarantined(entry.study.study, f"the same scan is also in the {at} split"))
    return kept, bad
