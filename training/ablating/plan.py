"""What the grid would cost, from a few timed steps of every row; printed before anything is trained."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from finetuning.learning import dice_ce_loss
from pretraining.plan import made_up_batch

from ablating.bench import Bench
from ablating.computing import Work
from ablating.grid import AblationSettings, Cell
from ablating.labels import segmentation_settings
from VelvetMedLib.engine.learner import Learner
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.trainable import autocast
from VelvetMedLib.models.swin_unetr import SwinUnetr, SwinUnetrConfig
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, TEXT_CLEAN
from VelvetMedLib.objectives.encoding import encode
from VelvetMedLib.recipes.base import Recipe
from VelvetMedLib.recipes.velvet import VelvetRecipe

TIMED = 3
WINDOWS_PER_SCAN = 8
"""Sliding windows of a scan of the cohort's largest grid (96 x 80 x 96 voxels) with windows of 64 and a quarter overlap."""


@dataclass(frozen=True)
class Timing:
    """Seconds. step: of a pre-training step of the row; study: of encoding one study for a measurement; segmentation_step and
    window: of the fine-tuning."""

    step: float
    study: float
    segmentation_step: float
    window: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class CellCost:
    """Seconds of each stage of a cell; work: of its pre-training."""

    cell: Cell
    work: Work
    pretraining: float
    measuring: float
    segmentation: float

    @property
    def minutes(self) -> float:
        return (self.pretraining + self.measuring + self.segmentation) / 60


def cost(
    cell: Cell, work: Work, timing: Timing, settings: AblationSettings, *, validate_every: int, segmentation_validate_every: int
) -> CellCost:
    """The arithmetic: steps and encoded studies by their seconds. Preparing scans, the probe's regressions and written reports are
    left out."""
    validations = -(-work.steps // validate_every)
    pretraining = (work.steps * timing.step + validations * settings.val * timing.study) if cell.trains else 0.0
    # The test studies are encoded twice: once with their reports, once for the probe.
    measuring = (cell.pairs + settings.val + 2 * settings.test) * timing.study if cell.trains else 0.0
    segmentation = 0.0
    if settings.segmentation_volumes:
        tasks = (cell.reused is None) + cell.whole  # organs, lesions
        scans = settings.segmentation_val * -(-settings.segmentation_steps // segmentation_validate_every) + settings.segmentation_test
        segmentation = tasks * (settings.segmentation_steps * timing.segmentation_step + scans * WINDOWS_PER_SCAN * timing.window)
    return CellCost(cell, work, pretraining, measuring, segmentation)


def timed(call: Callable[[], Any], repeats: int = TIMED) -> float:
    """Median seconds after one call that does not count."""
    call()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def time_row(recipe: Recipe, vocab_size: int, processes: Processes) -> tuple[float, float]:
    """(seconds of a step, seconds of encoding one study), on made-up studies in the recipe's batch."""
    learner = Learner(recipe, vocab_size).to(processes.device)
    batches = [
        made_up_batch(recipe, vocab_size, recipe.loop.batch // recipe.loop.micro_batches, learner.made).to(processes.device)
        for _ in range(recipe.loop.micro_batches)
    ]
    # What is measured of a recipe without a common space are crops: those of a step stand for those of a study.
    keys = (IMAGE_GLOBAL, TEXT_CLEAN) if "report" in recipe.levels else learner.keys

    def step() -> None:
        learner.zero_grad(set_to_none=True)
        learner.gradients(batches, processes.context(0, 0), processes, 0)

    @torch.no_grad()
    def encoded() -> None:
        with autocast(processes.device, recipe.loop.precision):
            encode(learner.model, batches[0], keys)

    return timed(step), timed(encoded, 1) / len(batches[0])


def time_segmentation(base: VelvetRecipe, settings: AblationSettings, processes: Processes) -> tuple[float, float]:
    """(seconds of a fine-tuning step, seconds of one window without gradient)."""
    chosen = segmentation_settings(base)
    classes = len(settings.segmentation_structures) + 1
    model = SwinUnetr(SwinUnetrConfig(swin=chosen.swin, classes=classes)).to(processes.device)
    crops = min(chosen.loop.batch, settings.segmentation_volumes) * chosen.data.crops_per_volume
    images = torch.rand(crops, 1, *chosen.data.patch_voxels, device=processes.device)
    labels = torch.randint(0, classes, images.shape, device=processes.device)
    loss = dice_ce_loss()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with autocast(processes.device, chosen.loop.precision):
            logits = model(images)
        loss(logits.float(), labels).backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def window() -> None:
        with autocast(processes.device, chosen.loop.precision):
            model(images[:1])

    return timed(step), timed(window, 1)


def timings(cells: Sequence[Cell], bench: Bench, processes: Processes, known: Mapping[str, Any]) -> dict[str, Timing]:
    """Row -> timing; `known` ones (of an earlier call on the same machine) are taken as they are."""
    out = {row: Timing(**values) for row, values in known.items()}
    missing = {cell.row: cell for cell in cells if cell.row not in out}
    if missing:
        fine = time_segmentation(bench.base, bench.settings, processes) if bench.settings.segmentation_volumes else (0.0, 0.0)
        for row, cell in missing.items():
            own = time_row(bench.recipe(cell), bench.vocab_size, processes) if cell.trains else (0.0, 0.0)
            out[row] = Timing(*own, *fine)
    return out


def costs(cells: Sequence[Cell], rows: Mapping[str, Timing], bench: Bench) -> list[CellCost]:
    """Of every cell, in order."""
    every = bench.base.loop.validate_every
    fine = segmentation_settings(bench.base).loop.validate_every
    return [
        cost(cell, bench.work(cell), rows[cell.row], bench.settings, validate_every=every, segmentation_validate_every=fine)
        for cell in cells
    ]


def plan_lines(planned: Sequence[CellCost], done: Sequence[str], settings: AblationSettings, threads: int) -> list[str]:
    """The page: minutes of each cell by stage, and core-minutes of all; steps and counted operations of the pre-trainings that
    compute alike. done: names of finished cells, which cost nothing more."""
    lines = [f"{'cell':22s} {'pre-training':>12s} {'measuring':>10s} {'segmentation':>12s} {'minutes':>8s} {'core-min':>9s}"]
    for x in planned:
        note = "  done" if x.cell.name in done else ""
        if not note and x.minutes > settings.sitting_minutes:
            note = f"  more than one sitting of {settings.sitting_minutes:g} minutes: it is set aside and goes on when called again"
        parts = "".join(f" {value / 60:{width}.1f}" for value, width in ((x.pretraining, 12), (x.measuring, 10), (x.segmentation, 12)))
        lines.append(f"{x.cell.name:22s}{parts} {x.minutes:8.1f} {x.minutes * threads:9.1f}{note}")
    counted = [x for x in planned if x.work.step_flops]
    lines += [f"{x.cell.name}: {x.work.steps} steps of {x.work.step_flops / 1e9:.1f} GFLOP, {x.work.teraflops:.1f} TFLOP" for x in counted]
    left = sum(x.minutes for x in planned if x.cell.name not in done)
    lines.append(f"left: {left:.0f} minutes on {threads} threads, {left * threads:.0f} core-minutes ({left * threads / 60:.1f} core-hours)")
    return lines
