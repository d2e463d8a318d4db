"""The training loop: from step to step, with checkpoints from which it goes on bit for bit, and an end that is always orderly."""

from __future__ import annotations

import errno
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from VelvetMedLib.engine.checkpoints import Checkpoint, Checkpoints
from VelvetMedLib.engine.files import disk_error
from VelvetMedLib.engine.fsdp import cut_like, held_together, norm_with_shards, shard, whole
from VelvetMedLib.engine.loader import Loader
from VelvetMedLib.engine.log import RunLog, draw_curves, progress_line
from VelvetMedLib.engine.optimiser import (
    MovingAverage,
    learning_rate,
    make_optimiser,
    optimiser_tensors,
    restore_optimiser,
    scale_gradients,
    set_learning_rate,
)
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.randomness import capture, restore, seed_everything
from VelvetMedLib.engine.sharding import all_moments, hand_round, owners_of
from VelvetMedLib.engine.trainable import StepSums, Trainable, gradients_of
from VelvetMedLib.engine.validation import weights_of
from VelvetMedLib.errors import TrainingError

STOPPED = 75
"""Exit code after an orderly stop on request: everything is saved, call the same line again (EX_TEMPFAIL of sysexits)."""

DISK_ERRORS = frozenset({errno.ENOSPC, errno.EROFS, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)})
"""What a full, failing or read-only disk answers."""

Validate = Callable[[Any], Mapping[str, float]]
MakeLoader = Callable[[int], Loader]


@dataclass(frozen=True)
class Selection:
    """How the best checkpoint is chosen: metrics in the order of their weight, larger is better; a tie goes to the next one.

    validate: figures of the learner's present weights; run on every process. remark: what a person should know of them, "" = nothing.
    """

    validate: Validate
    metrics: tuple[str, ...]
    remark: Callable[[Mapping[str, float]], str] = lambda figures: ""

    def score(self, figures: Mapping[str, float]) -> list[float]:
        return [float(figures[name]) for name in self.metrics]


@dataclass
class Progress:
    """What a checkpoint holds beside tensors. step: optimiser steps done, skipped ones included."""

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    best_score: list[float] | None = None
    best_step: int = 0


class Trainer:
    """Trains a `Trainable` for `steps` steps in a run folder; `run()` begins, or goes on from the newest whole checkpoint."""

    def __init__(
        self,
        learner: Trainable,
        *,
        run: Path,
        steps: int,
        seed: int,
        make_loader: MakeLoader,
        processes: Processes,
        quarantine: Sized = (),
        selection: Selection | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        """make_loader: from the first step to the loader of that step and those after. quarantine: what was left out, for its number.

        after_step: called with the steps done.
        """
        self.learner, self.folder, self.steps, self.seed = learner.to(processes.device), run, steps, seed
        self.settings, self.loop = learner.optimiser, learner.loop
        self.make_loader, self.processes, self.quarantine = make_loader, processes, quarantine
        self.selection, self.after_step = selection, after_step
        self.checkpoints = Checkpoints(run)
        if self.loop.parallel == "fsdp" and processes.world_size > 1:
            shard(self.learner, processes, studies=self.loop.batch, micro_batches=self.loop.micro_batches)
        sharded = self.loop.parallel == "sharded" and processes.world_size > 1
        self.owners = owners_of(learner, processes.world_size) if sharded else None
        self.mine = None if self.owners is None else {name for name, owner in self.owners.items() if owner == processes.rank}
        self.optimiser = make_optimiser(learner, self.settings, only=self.mine)
        self.average = MovingAverage(learner, self.settings.average_decay) if self.settings.average_decay > 0 else None
        self.progress = Progress()
        self._stop = threading.Event()

    def run(self) -> int:
        """0 when all steps are done, `STOPPED` after SIGTERM or Ctrl-C. Raises TrainingError when the run cannot go on."""
        if self.loop.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
        note = self.resume()
        log = RunLog(self.folder, first_step=self.progress.step, writes=self.processes.first)
        loader = self.make_loader(self.progress.step)
        before = _handle_stops(self._stop)
        try:
            if note:
                log.say(note)
            return self._steps(loader, log)
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            kept = self.checkpoints.load()
            safe = f"The checkpoint of step {kept.step} is whole." if kept else "No checkpoint was written yet."
            raise disk_error("A file of the run folder", error, 0, safe) from error
        finally:
            _restore_handlers(before)
            loader.close()
            log.close()

    def resume(self) -> str:
        """Take up the newest whole checkpoint; without one, give every process the same start. Returns what a person should know."""
        found = self.checkpoints.load()
        if found is None:
            # Initialisation is seeded by the caller; this makes sure of it whatever the processes drew.
            self.processes.same_start([p.data for p in self.learner.parameters()])
            seed_everything(self.seed, "start", self.processes.rank)
            return ""
        self._restore(found)
        return found.note or f"Going on from step {found.step}."

    def _steps(self, loader: Loader, log: RunLog) -> int:
        self.learner.train()
        began, waited = time.perf_counter(), loader.waited
        first = self.progress.step
        for batches in loader.steps():
            step = self.progress.step
            result, figures = self._step(step, [batch.to(self.processes.device) for batch in batches])
            now = time.perf_counter()
            seconds, waiting = now - began, loader.waited - waited
            began, waited = now, loader.waited
            self.progress.seconds += seconds
            self.progress.step = step + 1
            if figures is None:
                self._skip(step, result, loader, log)
            else:
                self.progress.skipped_in_a_row = 0
                if (step + 1) % self.loop.log_every == 0 or step + 1 == self.steps:
                    timing = {"seconds": seconds, "waiting": min(1.0, waiting / seconds), "per_step": self.progress.seconds / (step + 1)}
                    self._report(step, figures, timing, log)
            if self.after_step is not None:
                self.after_step(step + 1)
            done = step + 1 == self.steps
            stop = self.processes.any(self._stop.is_set())
            if self.selection is not None and (done or (step + 1) % self.loop.validate_every == 0):
                self._validate(log)
                began = time.perf_counter()
            if done or stop or (step + 1) % self.loop.save_every == 0:
                self.save()
                began = time.perf_counter()
            if stop and not done:
                self._draw()
                log.say(f"Stopped on request after step {step + 1}; everything is saved. Call the same line again to go on.")
                return STOPPED
        self._draw()
        done_now = self.progress.step - first
        log.say(f"Done: {self.steps} steps, {done_now} of them in this start; {self.progress.skipped} skipped.")
        return 0

    def _step(self, step: int, batches: list[Any]) -> tuple[StepSums, dict[str, Any] | None]:
        """One optimiser step; figures for the log, or None when something was not finite and nothing was changed."""
        self.learner.zero_grad(set_to_none=True)
        ctx = self.processes.context(self.seed, step)
        result = self.learner.gradients(batches, ctx, self.processes, self.seed)
        names, metrics = sorted(result.sums), sorted(result.metrics)
        world = self.processes.world_size
        summed = self.processes.sum([*(result.sums[n] for n in names), *(result.metrics[n] / world for n in metrics)])
        losses = {name: value / max(1.0, result.totals[name]) for name, value in zip(names, summed, strict=False)}
        gradients = gradients_of(self.learner)
        norm = norm_with_shards(gradients, self.processes)
        total = sum(self.learner.weights.get(name, 1.0) * value for name, value in losses.items())
        if not (math.isfinite(total) and math.isfinite(float(norm))):
            self.learner.zero_grad(set_to_none=True)
            return result, None
        scale_gradients(gradients, norm, self.settings.clip_norm)
        rate = learning_rate(step, self.steps, self.settings)
        set_learning_rate(self.optimiser, rate)
        self.optimiser.step()
        if self.owners is not None:
            hand_round(self.learner, self.owners, self.processes)
        if self.average is not None:
            self.average.update(self.learner, step)
        return result, {
            "loss": total,
            "losses": losses,
            "metrics": dict(zip(metrics, summed[len(names) :], strict=True)),
            "learning_rate": rate,
            "gradient_norm": float(norm),
        }

    def _skip(self, step: int, result: StepSums, loader: Loader, log: RunLog) -> None:
        self.progress.skipped += 1
        self.progress.skipped_in_a_row += 1
        suspects = result.broken or list(range(self.loop.micro_batches))
        each = self.processes.gather_objects([name for micro in suspects for name in loader.names(step, micro)])
        flagged = self.processes.gather_objects(bool(result.broken))
        chosen = [names for names, broken in zip(each, flagged, strict=True) if broken] or each
        studies = sorted(name for names in chosen for name in names)
        log.record({"step": step + 1, "event": "skipped", "studies": studies, "in_a_row": self.progress.skipped_in_a_row})
        log.say(f"Step {step + 1} was skipped: its loss or gradient is not finite. Studies: {', '.join(studies)}")
        if self.progress.skipped_in_a_row >= self.loop.skips_in_a_row:
            raise TrainingError(
                "The training was stopped: its loss is not finite any more.",
                found=f"{self.progress.skipped_in_a_row} steps in a row without a finite loss or gradient, up to step {step + 1}",
                expected=f"fewer than {self.loop.skips_in_a_row} (loop.skips_in_a_row)",
                next_step="Look at the studies that log.jsonl names, lower optimiser.learning_rate, or use loop.precision=fp32.",
            )

    def _report(self, step: int, figures: dict[str, Any], timing: Mapping[str, float], log: RunLog) -> None:
        memory = peak_memory_mib(self.processes.device)
        log.record(
            {
                "step": step + 1,
                **figures,
                "seconds": timing["seconds"],
                "volumes_per_second": self.loop.batch / timing["seconds"],
                "waiting_share": timing["waiting"],
                "memory_mib": memory,
                "skipped": self.progress.skipped,
                "quarantined": len(self.quarantine),
            }
        )
        line = progress_line(
            step + 1,
            self.steps,
            figures["losses"],
            figures["loss"],
            volumes=self.loop.batch / timing["seconds"],
            waiting=timing["waiting"],
            left=(self.steps - step - 1) * timing["per_step"],
            memory_mib=memory,
        )
        trouble = [f"{self.progress.skipped} steps skipped"] if self.progress.skipped else []
        trouble += [f"{len(self.quarantine)} studies quarantined"] if len(self.quarantine) else []
        log.progress("  ".join([line, *trouble]))

    def _validate(self, log: RunLog) -> None:
        assert self.selection is not None
        with weights_of(self.learner, self.average.tensors if self.average is not None else None):
            with held_together(self.learner):
                figures = dict(self.selection.validate(self.learner))
            score = self.selection.score(figures)
            better = self.progress.best_score is None or score > self.progress.best_score
            if better:
                self.progress.best_score, self.progress.best_step = score, self.progress.step
                weights = whole(self.learner.state_dict(), keep=self.processes.first)
                if self.processes.first:
                    self.checkpoints.save_best(self.progress.step, {"weights": weights}, {**self.learner.facts, "figures": figures})
        log.record({"step": self.progress.step, "event": "validation", "metrics": figures, "best": better})
        self._draw()
        shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if name in self.selection.metrics)
        log.say(f"Validation after step {self.progress.step}: {shown}{' (best so far)' if better else ''}")
        if remark := self.selection.remark(figures):
            log.say(remark)

    def _draw(self) -> None:
        if self.processes.first:
            draw_curves(self.folder)

    def save(self) -> None:
        """Everything that the next step depends on, as `checkpoints/last`."""
        tensors, facts = capture()
        generators = self.processes.gather_objects({name: value.tolist() for name, value in tensors.items()})
        others = self.processes.gather_objects(facts)
        if self.owners is None:
            moments = whole(optimiser_tensors(self.learner, self.optimiser), keep=self.processes.first)
        else:
            moments = all_moments(self.learner, self.optimiser, self.owners, self.processes)
        weights = whole(self.learner.state_dict(), keep=self.processes.first)
        average = whole(self.average.tensors, keep=self.processes.first) if self.average is not None else None
        if self.processes.first:
            parts = {
                "weights": weights,
                "optimiser": moments,
                "random": {
                    f"{rank}/{name}": torch.tensor(value, dtype=tensors[name].dtype)
                    for rank, states in enumerate(generators)
                    for name, value in states.items()
                },
            }
            if average is not None:
                parts["average"] = average
            self.checkpoints.save(self.progress.step, parts, {**self.learner.facts, "progress": vars(self.progress), "random": others})
        self.processes.wait()

    def _restore(self, found: Checkpoint) -> None:
        held = self.learner.state_dict()
        self.learner.load_state_dict(cut_like(found.parts["weights"], held))
        shapes = {f"{name}/{moment}": p for name, p in self.learner.named_parameters() for moment in ("exp_avg", "exp_avg_sq")}
        restore_optimiser(self.learner, self.optimiser, cut_like(found.parts["optimiser"], shapes), only=self.mine)
        if self.average is not None:
            average = {name: value.to(self.processes.device) for name, value in found.parts["average"].items()}
            self.average.tensors = cut_like(average, held)
        self.progress = Progress(**found.facts["progress"])
        rank = self.processes.rank
        if rank < len(found.facts["random"]):
            mine = {n.split("/", 1)[1]: v for n, v in found.parts["random"].items() if n.startswith(f"{rank}/")}
            restore(mine, found.facts["random"][rank])
        else:
            seed_everything(self.seed, "more processes than before", rank, found.step)


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory so far: of the device's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _handle_stops(stop: threading.Event) -> dict[int, Any]:
    """SIGTERM and the first Ctrl-C ask for an orderly stop after the present step; a second Ctrl-C stops at once."""

    def asked(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}


def _restore_handlers(before: Mapping[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
