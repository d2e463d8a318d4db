"""From a cohort on disk to arrays that training can crop quickly: one uncompressed .npy per case and kind."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.cohorts import load_case, read_cohort
from VelvetMedLib.files import write_json
from VelvetMedLib.reports import FindingRecord, ontology
from VelvetMedLib.shapes import IntTriple

SPLITS = ("train", "val", "test")
LESION_CHANNELS = len(ontology().lesions)


@dataclass(frozen=True)
class PreparedCase:
    """One case: arrays are memory maps in (x, y, z) order, RAS; the rest is the case's JSON record."""

    folder: Path
    case_id: str
    split: str
    record: dict[str, Any]

    @cached_property
    def hu_xyz(self) -> NDArray[np.int16]:
        return np.load(self.folder / "hu.npy", mmap_mode="r")

    @cached_property
    def organs_xyz(self) -> NDArray[np.uint8]:
        return np.load(self.folder / "organs.npy", mmap_mode="r")

    @property
    def lesion_bits_xyz(self) -> NDArray[np.uint32]:
        """Bit c is set where lesion channel c is present. Stored sparsely: most voxels hold none."""
        dense = np.zeros(self.hu_xyz.shape, np.uint32)
        with np.load(self.folder / "lesions.npz", allow_pickle=False) as stored:
            dense.ravel()[stored["index"]] = stored["bits"]
        return dense

    @cached_property
    def lesion_points(self) -> dict[int, NDArray[np.int16]]:
        """Up to 64 voxels of each lesion channel, to centre crops on."""
        with np.load(self.folder / "points.npz", allow_pickle=False) as stored:
            return {int(name): stored[name] for name in stored.files}

    @property
    def findings(self) -> list[FindingRecord]:
        return [FindingRecord.from_dict(entry) for entry in self.record["findings"]]


def split_of(groups: list[str], *, val_fraction: float = 0.08, test_fraction: float = 0.12) -> dict[str, str]:
    """Split name by group, in order of first appearance: twins share a group and so a split."""
    unique = list(dict.fromkeys(groups))
    test_from = round(len(unique) * (1 - test_fraction))
    val_from = round(len(unique) * (1 - test_fraction - val_fraction))
    return {g: "train" if n < val_from else "val" if n < test_from else "test" for n, g in enumerate(unique)}


def _prepare_one(source: Path, *, out: Path) -> None:
    folder = out / source.name
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    case = load_case(source)
    channel_of = {lesion.name: index for index, lesion in enumerate(ontology().lesions)}
    instances = np.asarray(case.lesions_kji)
    bits = np.zeros(instances.shape, np.uint32)
    for instance in case.instances:
        channel = channel_of[instance["lesion"]]
        bits |= ((instances >> np.uint32(instance["id"] - 1)) & np.uint32(1)) << np.uint32(channel)
    bits = np.ascontiguousarray(bits.transpose(2, 1, 0))
    generator = np.random.default_rng(0)
    points = {}
    for channel in range(LESION_CHANNELS):
        where = np.argwhere((bits >> np.uint32(channel)) & np.uint32(1))
        if len(where):
            points[str(channel)] = where[generator.permutation(len(where))[:64]].astype(np.int16)
    np.save(folder / "hu.npy", np.ascontiguousarray(np.asarray(case.volume.voxels_kji, np.int16).transpose(2, 1, 0)))
    np.save(folder / "organs.npy", np.ascontiguousarray(np.asarray(case.organs_kji, np.uint8).transpose(2, 1, 0)))
    index = np.flatnonzero(bits)
    np.savez(folder / "lesions.npz", index=index.astype(np.int32), bits=bits.ravel()[index])
    np.savez(folder / "points.npz", **points)
    (folder / "done").touch()


def seconds_spent(folder: Path) -> float:
    """Seconds that earlier calls noted in `folder`, 0 where there were none."""
    clock = folder / "seconds.json"
    return float(json.loads(clock.read_text(encoding="utf-8"))) if clock.exists() else 0.0


def prepare(cohort: Path, out: Path, *, processes: int) -> list[PreparedCase]:
    """Convert what is not yet converted and list every case with its split. Calling it again is cheap."""
    sources = [Path(entry) for entry in read_cohort(cohort).case_folders]
    out.mkdir(parents=True, exist_ok=True)
    todo = [source for source in sources if not (out / source.name / "done").exists()]
    started = time.perf_counter() - seconds_spent(out)
    if todo:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for _ in pool.imap_unordered(partial(_prepare_one, out=out), todo, chunksize=8):
                pass
        write_json(out / "seconds.json", time.perf_counter() - started)
    records = [json.loads((source / "record.json").read_text(encoding="utf-8")) for source in sources]
    groups = [str(record.get("twin_of") or source.name) for source, record in zip(sources, records, strict=True)]
    splits = split_of(groups)
    return [
        PreparedCase(out / source.name, source.name, splits[group], record)
        for source, record, group in zip(sources, records, groups, strict=True)
    ]


def crop(array_xyz: NDArray[Any], start: Sequence[int] | NDArray[np.int64], shape: IntTriple, fill: int) -> NDArray[Any]:
    """The box [start, start + shape); what lies outside the array is `fill`."""
    return _taken(array_xyz, [first + np.arange(n) for first, n in zip(start, shape, strict=True)], fill)


Places: TypeAlias = Sequence[NDArray[np.float64]]
"""Per axis, ascending: where the voxels of a crop lie, in voxels of the case."""


def nearest(array_xyz: NDArray[Any], place: Places, fill: int) -> NDArray[Any]:
    """The voxels nearest to the places; what lies outside the array is `fill`."""
    return _taken(array_xyz, [np.floor(p + 0.5).astype(np.int64) for p in place], fill)


def between(array_xyz: NDArray[Any], place: Places, fill: int) -> NDArray[np.float32]:
    """Trilinear values at the places, as float32; what lies outside the array is `fill`."""
    below = [np.floor(p).astype(np.int64) for p in place]
    # One box of all voxels that are needed, then axis after axis.
    values = _taken(array_xyz, [np.arange(b[0], b[-1] + 2) for b in below], fill).astype(np.float32)
    for axis, (p, b) in enumerate(zip(place, below, strict=True)):
        weight = (p - b).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        low, high = values.take(b - b[0], axis), values.take(b - b[0] + 1, axis)
        values = low + weight * (high - low)
    return values


def _taken(array_xyz: NDArray[Any], index: Sequence[NDArray[np.int64]], fill: int) -> NDArray[Any]:
    result = np.full([len(i) for i in index], fill, array_xyz.dtype)
    inside = [(i >= 0) & (i < n) for i, n in zip(index, array_xyz.shape, strict=True)]
    result[np.ix_(*inside)] = array_xyz[np.ix_(*(i[ok] for i, ok in zip(index, inside, strict=True)))]
    return result
