"""What the finished fine network makes of every case, kept on disk: tokens, what is true of them, global view, how well it segmented."""

from __future__ import annotations

import json
import multiprocessing
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from demo.data import LESION_CHANNELS, PreparedCase, seconds_spent
from VelvetMedLib.bundle.config import BundleConfig, LesionEntry
from VelvetMedLib.bundle.store import Bundle
from VelvetMedLib.ct import Grid, Volume
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.files import write_json
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.reports import FindingRecord, ontology
from VelvetMedLib.tasks.encoder import fine_part
from VelvetMedLib.tasks.encoding import FinePart
from VelvetMedLib.tasks.sweep import sweep
from VelvetMedLib.tasks.tokens import part_mask, threshold_bytes
from VelvetMedLib.tasks.views import FineView, GlobalView, fine_view, global_view

STRUCTURES = len(ontology().structures)
THRESHOLD_CASES = 48
THRESHOLD_GRID = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
CELLS = 8
"""Cells per axis of the image encoder's bottom map."""


@dataclass(frozen=True)
class Overlap:
    """Voxel counts by class: truth, prediction, both."""

    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    both: NDArray[np.int64]

    def dice(self, index: int) -> float:
        return float(2 * self.both[index] / max(1, self.truth[index] + self.predicted[index]))

    @staticmethod
    def sum(parts: list[Overlap]) -> Overlap:
        return Overlap(sum(p.truth for p in parts), sum(p.predicted for p in parts), sum(p.both for p in parts))  # type: ignore[arg-type]


@dataclass
class EncodedCase:
    """One case as the reader sees it. regions [32, 77]; lesions [N, 108]; global_view [64, 64, 64] in 0..1.

    cell_shares [32 + 17, 8, 8, 8]: how much of each cell of the global view truly belongs to each structure and lesion.
    part_voxels [N], part_true [N, 17]: voxels of each part of the lesion maps, and how many of them truly are of each kind.
    """

    case_id: str
    split: str
    findings: list[FindingRecord]
    global_view: NDArray[np.float16]
    view_spacing_mm: NDArray[np.float32]
    cell_shares: NDArray[np.float16]
    regions: NDArray[np.float32]
    region_mask: NDArray[np.bool_]
    lesions: NDArray[np.float32]
    part_voxels: NDArray[np.int32]
    part_true: NDArray[np.int32]
    organ_overlap: Overlap
    lesion_overlap: Overlap
    top: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))


def stored_volume(case: PreparedCase, spacing_mm: float) -> Volume:
    """The prepared case as a Volume on its axis-aligned grid (its place in space does not matter here)."""
    voxels = np.ascontiguousarray(case.hu_xyz.transpose(2, 1, 0))
    return Volume(voxels, np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0]))


def training_bundle(model: VelvetModel, thresholds: list[float] | None = None) -> Bundle:
    """A bundle in memory, so that training encodes with the very code of the product. It has no files and is never saved."""
    entries = [
        LesionEntry(name=x.name, threshold=t) for x, t in zip(ontology().lesions, thresholds or [0.4] * LESION_CHANNELS, strict=True)
    ]
    config = BundleConfig(
        id="training", version="0", recipe="demo", licence="none", training_data="none", intended_use="training only",
        architecture=model.config.to_dict(), lesions=tuple(entries),
    )  # fmt: skip
    return Bundle(config=config, model=model, tokenizer=None, sha256="")  # type: ignore[arg-type]


def window_of(view: FineView, whole: Grid, shape_xyz: tuple[int, ...]) -> tuple[slice, ...]:
    """Where the view's cells lie in the case's own array."""
    first = np.rint((view.grid.ijk_to_ras[:3, 3] - whole.ijk_to_ras[:3, 3]) / np.diag(whole.ijk_to_ras)[:3]).astype(int)
    size = view.hu_xyz.shape
    if np.any(first < 0) or any(f + n > s for f, n, s in zip(first, size, shape_xyz, strict=True)):
        raise ValueError("the fine view of a prepared case must lie inside the case")
    return tuple(slice(int(f), int(f + n)) for f, n in zip(first, size, strict=True))


def overlap_of_labels(truth: NDArray[Any], predicted: NDArray[Any]) -> Overlap:
    bins = STRUCTURES + 1
    both = np.bincount(truth[truth == predicted], minlength=bins)[1:]
    return Overlap(np.bincount(truth.ravel(), minlength=bins)[1:], np.bincount(predicted.ravel(), minlength=bins)[1:], both)


def overlap_of_bits(bits: NDArray[np.uint32], predicted: NDArray[np.bool_]) -> Overlap:
    truth = [((bits >> np.uint32(c)) & np.uint32(1)).astype(bool) for c in range(LESION_CHANNELS)]
    counts = [(t.sum(), p.sum(), (t & p).sum()) for t, p in zip(truth, predicted, strict=True)]
    return Overlap(*(np.array(column, np.int64) for column in zip(*counts, strict=True)))  # type: ignore[arg-type]


def cell_shares(
    seen: GlobalView, ijk_to_ras: NDArray[np.float64], organs_xyz: NDArray[np.uint8], bits_xyz: NDArray[np.uint32]
) -> NDArray[np.float16]:
    """[32 + 17, 8, 8, 8]: share of each cell of the global view that each structure and each lesion channel fills.

    organs_xyz, bits_xyz: truth on the fine grid whose matrix is given; both grids run along the axes. Voxels beside the view count nowhere.
    """
    shape = np.array(seen.voxels_xyz.shape)
    index = []
    for axis in range(3):
        ras = np.arange(organs_xyz.shape[axis]) * ijk_to_ras[axis, axis] + ijk_to_ras[axis, 3]
        place = np.floor((ras - seen.ijk_to_ras[axis, 3]) / seen.ijk_to_ras[axis, axis] + 0.5) * CELLS / shape[axis]
        index.append(np.where((place >= 0) & (place < CELLS), np.floor(place), -1).astype(np.int64))
    x, y, z = np.meshgrid(*index, indexing="ij")
    cell = np.where((x < 0) | (y < 0) | (z < 0), CELLS**3, (x * CELLS + y) * CELLS + z)
    table = np.bincount((organs_xyz.astype(np.int64) * (CELLS**3 + 1) + cell).ravel(), minlength=(STRUCTURES + 1) * (CELLS**3 + 1))
    shares = [row[:-1] for row in table.reshape(STRUCTURES + 1, -1)[1:]]
    voxels = np.bincount(cell.ravel(), minlength=CELLS**3 + 1)[:-1]
    for channel in range(LESION_CHANNELS):
        hit = ((bits_xyz >> np.uint32(channel)) & np.uint32(1)).astype(bool)
        shares.append(np.bincount(cell[hit], minlength=CELLS**3 + 1)[:-1])
    return (np.stack(shares) / np.maximum(voxels, 1)).reshape(-1, CELLS, CELLS, CELLS).astype(np.float16)


def part_truth(part: FinePart, bits: NDArray[np.uint32], thresholds: tuple[float, ...]) -> NDArray[np.int32]:
    """[N, 17]: how many voxels of each part of the lesion maps truly are of each kind. bits: truth on the fine grid."""
    lowest = threshold_bytes(thresholds)
    counts = np.zeros((len(part.lesions), LESION_CHANNELS), np.int32)
    for row, meta in zip(counts, part.lesions, strict=True):
        own = bits[meta.box_xyz][part_mask(part.lesions_cxyz[meta.channel], meta, int(lowest[meta.channel]))]
        row[:] = [np.count_nonzero(own >> np.uint32(c) & np.uint32(1)) for c in range(LESION_CHANNELS)]
    return counts


def _threshold_counts(model: VelvetModel, cases: list[PreparedCase], spacing_mm: float) -> NDArray[np.int64]:
    """[thresholds, channels, 3] voxel counts (truth, predicted, both)."""
    counts = np.zeros((len(THRESHOLD_GRID), LESION_CHANNELS, 3), np.int64)
    bundle = training_bundle(model)
    for case in cases:
        volume = stored_volume(case, spacing_mm)
        view = fine_view(volume)
        _, lesions, _ = sweep(view, bundle, "bf16")
        bits = case.lesion_bits_xyz[window_of(view, volume.grid, case.hu_xyz.shape)]
        for row, threshold in enumerate(THRESHOLD_GRID):
            overlap = overlap_of_bits(bits, lesions >= round(threshold * 255))
            counts[row] += np.stack([overlap.truth, overlap.predicted, overlap.both], 1)
    return counts


def choose_lesion_thresholds(counts: NDArray[np.int64]) -> list[float]:
    """Per channel the probability of best pooled Dice on validation; 0.5 where the channel never occurs."""
    dice = 2 * counts[..., 2] / np.maximum(counts[..., 0] + counts[..., 1], 1)
    return [THRESHOLD_GRID[int(dice[:, c].argmax())] if counts[0, c, 0] else 0.5 for c in range(LESION_CHANNELS)]


def lesion_thresholds(folder: Path) -> list[float]:
    """The thresholds chosen when the encodings in `folder` were made."""
    return [float(t) for t in json.loads((folder / "thresholds.json").read_text(encoding="utf-8"))]


_worker: dict[str, Any] = {}


def _start(architecture: dict[str, Any], weights: Path, thresholds: list[float], folder: Path, spacing_mm: float) -> None:
    from VelvetMedLib.models.velvet import ModelConfig

    torch.set_num_threads(1)
    model = VelvetModel(ModelConfig.from_dict(architecture)).eval()
    assert model.fine is not None
    from safetensors.torch import load_file as load_tensors

    model.fine.load_state_dict(load_tensors(weights))
    _worker.update(bundle=training_bundle(model, thresholds), folder=folder, spacing_mm=spacing_mm)


def _encode_one(case: PreparedCase) -> None:
    bundle, target = _worker["bundle"], _worker["folder"] / f"{case.case_id}.safetensors"
    if target.exists():
        return
    volume = stored_volume(case, _worker["spacing_mm"])
    view = fine_view(volume)
    with torch.inference_mode():
        organs, lesions, features = sweep(view, bundle, "bf16")
    part = fine_part(view, organs, lesions, features, bundle)
    window = window_of(view, volume.grid, case.hu_xyz.shape)
    limits = np.array([round(t * 255) for t in bundle.config.lesion_thresholds])[:, None, None, None]
    on_organs = overlap_of_labels(case.organs_xyz[window], part.organs_xyz)
    bits = case.lesion_bits_xyz[window]
    on_lesions = overlap_of_bits(bits, part.lesions_cxyz >= limits)
    seen = global_view(view)
    tensors = {
        "global_view": seen.voxels_xyz.astype(np.float16),
        "view_spacing_mm": np.array(seen.view_spacing_mm, np.float32),
        "cell_shares": cell_shares(seen, view.grid.ijk_to_ras, np.asarray(case.organs_xyz[window]), bits),
        "regions": part.region_tokens,
        "region_mask": part.region_mask.astype(np.uint8),
        "lesions": part.lesion_tokens,
        "part_voxels": np.array([meta.voxels for meta in part.lesions], np.int32),
        "part_true": part_truth(part, bits, bundle.config.lesion_thresholds),
        "organ_overlap": np.stack([on_organs.truth, on_organs.predicted, on_organs.both]),
        "lesion_overlap": np.stack([on_lesions.truth, on_lesions.predicted, on_lesions.both]),
    }
    temporary = target.with_suffix(".part")
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, temporary)
    temporary.replace(target)


def fit_lesion_thresholds(model: VelvetModel, val: list[PreparedCase], folder: Path, *, spacing_mm: float) -> float:
    """Choose the thresholds on the first validation cases, once, and keep them in `folder`. Returns the seconds spent, all calls."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "thresholds.json").exists():
        started = time.perf_counter()
        with torch.inference_mode():
            chosen = choose_lesion_thresholds(_threshold_counts(model.eval(), val[:THRESHOLD_CASES], spacing_mm))
        write_json(folder / "seconds.json", time.perf_counter() - started)
        write_json(folder / "thresholds.json", chosen)
    return seconds_spent(folder)


def encode_cases(
    model: VelvetModel, cases: list[PreparedCase], folder: Path, *, thresholds: list[float], spacing_mm: float, processes: int
) -> tuple[list[EncodedCase], float]:
    """Encodings of the cases, those already in `folder` taken from there. Returns them and the seconds spent, earlier calls included."""
    from safetensors.torch import load_file as load_tensors
    from safetensors.torch import save_file as save_tensors

    assert model.fine is not None
    folder.mkdir(parents=True, exist_ok=True)
    clock = folder / "seconds.json"
    started = time.perf_counter() - seconds_spent(folder)
    weights = folder / "fine.safetensors"
    tensors = {name: value.contiguous() for name, value in model.fine.state_dict().items()}
    if weights.exists():
        _same_weights(tensors, load_tensors(weights))
    else:
        temporary = weights.with_suffix(".part")
        save_tensors(tensors, temporary)
        temporary.replace(weights)
    arguments = (model.config.to_dict(), weights, thresholds, folder, spacing_mm)
    todo = [case for case in cases if not (folder / f"{case.case_id}.safetensors").exists()]
    if todo:
        with multiprocessing.get_context("spawn").Pool(processes, _start, arguments) as pool:
            for done, _ in enumerate(pool.imap_unordered(_encode_one, todo, chunksize=4), 1):
                if done % 100 == 0:
                    print(f"encoded {done}/{len(todo)}  {(time.perf_counter() - started) / 60:.1f} min", flush=True)
                    write_json(clock, time.perf_counter() - started)
        write_json(clock, time.perf_counter() - started)
    return [_read(case, folder) for case in cases], time.perf_counter() - started


def _same_weights(now: dict[str, torch.Tensor], then: dict[str, torch.Tensor]) -> None:
    if now.keys() != then.keys() or any(not torch.equal(value, then[name]) for name, value in now.items()):
        raise TrainingError(
            "The kept encodings were made by another fine network.",
            found="other weights in the folder of encodings than those of the finished fine stage",
            expected="the same weights",
            next_step="Remove the folders 'thresholds', 'encoded', 'held_out', 'global' and 'reader' of the run, or give another --run.",
        )


def _read(case: PreparedCase, folder: Path) -> EncodedCase:
    stored = load_file(folder / f"{case.case_id}.safetensors")
    if "part_true" not in stored:
        raise TrainingError(
            "The kept encodings were made by an older version of this program.",
            found=f"no 'part_true' in {case.case_id}.safetensors",
            expected="what is true of each part of the lesion maps",
            next_step="Remove the folders 'encoded' and 'held_out' of the run and call the same line again, or give another --run.",
        )
    return EncodedCase(
        case_id=case.case_id,
        split=case.split,
        findings=case.findings,
        global_view=stored["global_view"],
        view_spacing_mm=stored["view_spacing_mm"],
        cell_shares=stored["cell_shares"],
        regions=stored["regions"],
        region_mask=stored["region_mask"].astype(bool),
        lesions=stored["lesions"],
        part_voxels=stored["part_voxels"],
        part_true=stored["part_true"],
        organ_overlap=Overlap(*stored["organ_overlap"]),
        lesion_overlap=Overlap(*stored["lesion_overlap"]),
    )
