"""One segmentation fine-tuning from data set and encoder to the table of results, as a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetuning.augment import plan_flips
from finetuning.batches import CropMaker
from finetuning.common import RESULTS, enough, note_left_out, train_best
from finetuning.encoders import SCRATCH, EncoderStart
from finetuning.learning import SegmentationStage, by_dice, predict
from finetuning.settings import SegmentationSettings
from finetuning.store import StoredCase, prepare
from finetuning.tasks import SegmentationTask, with_splits
from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.ct import read_labels, resample_labels, write_nifti
from VelvetMedLib.engine.randomness import seed_torch
from VelvetMedLib.engine.runfolder import RunFolder, environment
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.evaluation.segmentation import StructureScore, as_markdown, as_records, mean_dice, score_case, summarise
from VelvetMedLib.files import write_json, write_text
from VelvetMedLib.models.image_encoders import Segmenter, segmenter, take_over

TABLE = "results.md"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """code: 0 done, `STOPPED` on request (then no scores). scores: of the evaluated split, on the scans' own grids."""

    code: int
    split: str = ""
    scores: tuple[StructureScore, ...] = ()

    @property
    def dice(self) -> float:
        """Mean over structures of the mean over scans."""
        return mean_dice(self.scores)


def finetune_segmentation(
    task: SegmentationTask,
    start: EncoderStart,
    settings: SegmentationSettings,
    *,
    run: Path,
    steps: int,
    seed: int,
    store: Path | None = None,
    processes: int = 1,
    device: str = "",
    save_predictions: bool = False,
    say: Callable[[str], None] = print,
    after_step: Callable[[int], None] | None = None,
) -> Outcome:
    """Train a network on this encoder on the task and evaluate its best weights; called again, it goes on where it stopped.

    store: prepared scans, by default in the run folder; several runs may share one. Raises TrainingError or UsageError.
    """
    if start.config.in_channels != 1:
        raise TrainingError(
            "The encoder reads more than one channel.",
            found=f"{start.config.in_channels} channels",
            expected="1, a CT volume",
            next_step="Give another encoder.",
        )
    plan = plan_flips(task.names, settings.augment, task.coding)
    most = {"train": settings.data.train_cases, "val": settings.data.val_cases, "test": settings.data.test_cases}
    task = with_splits(task, val_share=settings.data.val_share, seed=seed, most=most)
    folder = RunFolder(run)
    try:
        on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        kind = {"kind": task.kind, "structures": task.names, "cases": {part: len(task.of(part)) for part in ("train", "val", "test")}}
        resumed = folder.check({"recipe": settings.to_dict(), "task": kind, "encoder": start.definition(), "steps": steps, "seed": seed})
        folder.note_start({"resumed": resumed, **environment(str(on), Path(__file__).parent)})
        cases, quarantined = prepare(task, store or run / "prepared", settings.data, processes=processes, progress=_told(say))
        quarantine = note_left_out(run, quarantined, len(task.cases), "cases", say)
        parts = {part: [case for case in cases if case.files.split == part] for part in ("train", "val", "test")}
        enough(parts, "cases")
        seed_torch(seed, "start")
        model = segmenter(start.config, task.coding.outputs)
        if start.tensors is not None:
            take_over(model.encoder, start.tensors)
        if not resumed:
            say(_described(model, start, parts, task))
        loop = replace(settings.loop, batch=min(settings.loop.batch, len(parts["train"])))
        code, best_step = train_best(
            SegmentationStage(model, settings, loop, task),
            CropMaker(parts["train"], settings.data, settings.augment, plan, seed),
            [case.name for case in parts["train"]],
            run=run,
            steps=steps,
            seed=seed,
            device=str(on),
            quarantine=quarantine,
            selection=by_dice(parts["val"], settings, task, on),
            after_step=after_step,
        )
        if code:
            return Outcome(code=code)
        split = "test" if parts["test"] else "val"
        predictions = run / "predictions" if save_predictions else None
        scores = evaluate(model, parts[split], task, settings, on, predictions=predictions)
        _write_results(run, split, scores, settings, start, {part: len(found) for part, found in parts.items()}, best_step)
        say(f"Mean Dice on {split}: {mean_dice(scores):.3f}. The table is {TABLE} in the run folder.")
        return Outcome(code=0, split=split, scores=tuple(scores))
    finally:
        folder.close()


def evaluate(
    model: Segmenter,
    cases: Sequence[StoredCase],
    task: SegmentationTask,
    settings: SegmentationSettings,
    device: torch.device,
    *,
    predictions: Path | None = None,
) -> list[StructureScore]:
    """Scores on each scan's own grid, against its own label file: what was found goes back by nearest neighbour.

    predictions: folder for what was found as NIfTI: values of the data set's label files (of a region its first); where structures may
    share a voxel, bit n - 1 for structure n.
    """
    scores = []
    coding, truth_values = task.coding, np.array([0, *(label.values[0] for label in task.labels)], np.uint32)
    for case in cases:
        values_kji, grid = read_labels(case.files.label)
        found_xyz = predict(model, case, settings, coding, device)
        found_kji = resample_labels(np.ascontiguousarray(found_xyz.transpose(2, 1, 0)), case.grid, grid)
        truth_kji = coding.coded(task.members(values_kji, case.files))
        for (found, number), (truth, _) in zip(coding.layers(found_kji), coding.layers(truth_kji), strict=True):
            names = {value: task.names[n - 1] for value, n in number.items()}
            scores += score_case(found, truth, grid.spacing_mm, names, case=case.name)
        if predictions is not None:
            predictions.mkdir(parents=True, exist_ok=True)
            values = truth_values[found_kji] if coding.exclusive else found_kji
            smallest = np.min_scalar_type(int(values.max()))
            write_nifti(predictions / f"{case.name}.nii.gz", values.astype(smallest), grid)
    return scores


def _told(say: Callable[[str], None]) -> Callable[[int, int], None]:
    def told(done: int, total: int) -> None:
        if done == total or done % 20 == 0:
            say(f"prepared {done} of {total} scans")

    return told


def _described(model: Segmenter, start: EncoderStart, parts: dict[str, list[StoredCase]], task: SegmentationTask) -> str:
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    counts = ", ".join(f"{len(found)} {part}" for part, found in parts.items())
    origin = "random start" if start.origin["kind"] == SCRATCH else f"encoder from {start.origin['kind']}"
    return f"{millions:.1f} M parameters, {origin}; {len(task.labels)} structures; {counts} cases"


def _write_results(
    run: Path,
    split: str,
    scores: Sequence[StructureScore],
    settings: SegmentationSettings,
    start: EncoderStart,
    counts: dict[str, int],
    best_step: int,
) -> None:
    lines = summarise(scores)
    facts: dict[str, Any] = {
        "disclaimer": RESEARCH_USE_ONLY,
        "split": split,
        "cases": counts,
        "best_step": best_step,
        "encoder": start.origin,
        "mean_dice": mean_dice(scores) if lines else None,
        "structures": as_records(lines),
        "scans": as_records(scores),
    }
    write_json(run / RESULTS, facts)
    head = f"{RESEARCH_USE_ONLY}\n\nSplit: {split} ({counts[split]} scans), on the scans' own grids. "
    head += f"Trained on {counts['train']} scans from: {start.origin['kind']}.\n\n"
    write_text(run / TABLE, head + as_markdown(lines))
