"""The fine-tuning loop of a segmentation network: Dice and cross-entropy on crops, sliding-window validation, resume bit for bit.

One process. The engine's parts do what they do in a pre-training: checkpoints, sampler, optimiser, log.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetuning.batches import CropBatch, CropMaker, windowed
from finetuning.settings import DataSettings, LoopSettings, SegmentationSettings
from finetuning.store import StoredCase
from VelvetMedLib.engine.checkpoints import Checkpoint, Checkpoints
from VelvetMedLib.engine.loader import Loader
from VelvetMedLib.engine.log import RunLog, progress_line
from VelvetMedLib.engine.optimiser import (
    gradient_norm,
    learning_rate,
    make_optimiser,
    optimiser_tensors,
    restore_optimiser,
    scale_gradients,
    set_learning_rate,
)
from VelvetMedLib.engine.randomness import seed_torch
from VelvetMedLib.engine.sampler import StepSampler
from VelvetMedLib.engine.trainer import STOPPED, peak_memory_mib
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.evaluation.segmentation import dice_by_label
from VelvetMedLib.models.swin_unetr import SwinUnetr


@dataclass
class Progress:
    """What a checkpoint holds beside tensors. step: steps done, skipped ones included. best_dice: None before the first validation."""

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    best_dice: float | None = None
    best_step: int = 0


def dice_ce_loss() -> Callable[[Tensor, Tensor], Tensor]:
    """Soft Dice over all classes plus cross-entropy, as published: logits [B, C, X, Y, Z] against classes [B, 1, X, Y, Z]."""
    from monai.losses import DiceCELoss

    loss: Callable[[Tensor, Tensor], Tensor] = DiceCELoss(to_onehot_y=True, softmax=True)
    return loss


class SegmentationTrainer:
    """Trains `model` in place for `steps` steps; `run()` begins, or goes on from the newest whole checkpoint."""

    def __init__(
        self,
        model: SwinUnetr,
        train: Sequence[StoredCase],
        val: Sequence[StoredCase],
        maker: CropMaker,
        settings: SegmentationSettings,
        *,
        names: Sequence[str],
        run: Path,
        steps: int,
        seed: int,
        device: torch.device,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        """names: of classes 1, 2, ...; after_step: called with the steps done, for tests that stop a run on its way."""
        self.model, self.val, self.names = model.to(device), val, list(names)
        self.settings, self.folder, self.steps, self.seed, self.device = settings, run, steps, seed, device
        self.model.swinViT.recompute_activations = settings.loop.recompute_activations
        self.maker, self.after_step = maker, after_step
        self.sampler = StepSampler([case.name for case in train], min(settings.loop.volumes, max(1, len(train))), seed)
        self.optimiser = make_optimiser(self.model, settings.optimiser)
        self.checkpoints = Checkpoints(run)
        self.loss = dice_ce_loss()
        self.progress = Progress()
        self._stop = threading.Event()

    def run(self) -> int:
        """0 when all steps are done, `STOPPED` after SIGTERM or Ctrl-C; everything is saved then."""
        found = self.checkpoints.load()
        if found is not None:
            self._restore(found)
        log = RunLog(self.folder, first_step=self.progress.step)
        loader: Any = Loader(
            self.maker,  # type: ignore[arg-type]
            self.sampler,
            first_step=self.progress.step,
            last_step=self.steps,
            micro_batches=1,
        )
        try:
            if found is not None:
                log.say(found.note or f"Going on from step {found.step}.")
            with _stops_on_request(self._stop):
                return self._steps(loader, log)
        finally:
            loader.close()
            log.close()

    def _steps(self, loader: Any, log: RunLog) -> int:
        loop, began, waited = self.settings.loop, time.perf_counter(), loader.waited
        for (batch,) in loader.steps():
            step = self.progress.step
            figures = self._step(step, batch.to(self.device))
            seconds, waiting = time.perf_counter() - began, loader.waited - waited
            began, waited = time.perf_counter(), loader.waited
            self.progress.seconds += seconds
            self.progress.step = step + 1
            if figures is None:
                self._skip(step, log)
            else:
                self.progress.skipped_in_a_row = 0
                if (step + 1) % loop.log_every == 0 or step + 1 == self.steps:
                    self._report(figures, seconds, waiting, log)
            if self.after_step is not None:
                self.after_step(step + 1)
            done, stop = step + 1 == self.steps, self._stop.is_set()
            if done or (step + 1) % loop.validate_every == 0:
                self._validate(log)
            if done or stop or (step + 1) % loop.save_every == 0:
                self.save()
            began = time.perf_counter()
            if stop and not done:
                log.say(f"Stopped on request after step {step + 1}; everything is saved. Call the same line again to go on.")
                return STOPPED
        log.say(
            f"Done: {self.steps} steps; {self.progress.skipped} skipped. Best mean Dice on validation at step {self.progress.best_step}."
        )
        return 0

    def _step(self, step: int, batch: CropBatch) -> dict[str, float] | None:
        """Figures for the log, or None when something was not finite and nothing was changed."""
        self.model.train()
        seed_torch(self.seed, "step", step)
        self.optimiser.zero_grad(set_to_none=True)
        with autocast(self.device, self.settings.loop):
            logits = self.model(batch.images)
        loss = self.loss(logits.float(), batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = gradient_norm(gradients)
        if not (math.isfinite(float(loss.detach())) and math.isfinite(float(norm))):
            self.optimiser.zero_grad(set_to_none=True)
            return None
        scale_gradients(gradients, norm, self.settings.optimiser.clip_norm)
        rate = learning_rate(step, self.steps, self.settings.optimiser)
        set_learning_rate(self.optimiser, rate)
        self.optimiser.step()
        return {"loss": float(loss.detach()), "learning_rate": rate, "gradient_norm": float(norm)}

    def _skip(self, step: int, log: RunLog) -> None:
        self.progress.skipped += 1
        self.progress.skipped_in_a_row += 1
        cases = self.sampler.draw(step)
        log.record({"step": step + 1, "event": "skipped", "studies": cases, "in_a_row": self.progress.skipped_in_a_row})
        log.say(f"Step {step + 1} was skipped: its loss or gradient is not finite. Cases: {', '.join(cases)}")
        if self.progress.skipped_in_a_row >= self.settings.loop.skips_in_a_row:
            raise TrainingError(
                "The fine-tuning was stopped: its loss is not finite any more.",
                found=f"{self.progress.skipped_in_a_row} steps in a row without a finite loss or gradient",
                expected=f"fewer than {self.settings.loop.skips_in_a_row} (loop.skips_in_a_row)",
                next_step="Look at the cases that log.jsonl names, lower optimiser.learning_rate, or use loop.precision=fp32.",
            )

    def _report(self, figures: dict[str, float], seconds: float, waiting: float, log: RunLog) -> None:
        step, volumes, memory = self.progress.step, self.sampler.batch / seconds, peak_memory_mib(self.device)
        share = min(1.0, waiting / seconds)
        log.record(
            {
                "step": step,
                **figures,
                "losses": {"dice_ce_loss": figures["loss"]},
                "seconds": seconds,
                "volumes_per_second": volumes,
                "waiting_share": share,
                "memory_mib": memory,
                "skipped": self.progress.skipped,
            }
        )
        left = (self.steps - step) * self.progress.seconds / step
        log.progress(progress_line(step, self.steps, {}, figures["loss"], volumes=volumes, waiting=share, left=left, memory_mib=memory))

    def _validate(self, log: RunLog) -> None:
        """Mean over structures of the mean Dice over validation cases, on the learning grid; the best weights are kept."""
        by_structure: dict[str, list[float]] = {name: [] for name in self.names}
        for case in self.val:
            found = predict(self.model, case, self.settings, self.device)
            for n, dice in dice_by_label(found, np.asarray(case.labels_xyz), range(1, len(self.names) + 1)).items():
                if dice is not None:
                    by_structure[self.names[n - 1]].append(dice)
        means = {name: float(np.mean(values)) for name, values in by_structure.items() if values}
        dice = float(np.mean(list(means.values()))) if means else 0.0
        better = self.progress.best_dice is None or dice > self.progress.best_dice
        if better:
            self.progress.best_dice, self.progress.best_step = dice, self.progress.step
            self.checkpoints.save_best(
                self.progress.step, {"weights": self.model.state_dict()}, {**self._facts(), "dice": dice, "dice_by_structure": means}
            )
        log.record({"step": self.progress.step, "event": "validation", "metrics": {"dice": dice, **means}, "best": better})
        log.say(f"Validation after step {self.progress.step}: mean Dice {dice:.3f}{' (best so far)' if better else ''}")

    def save(self) -> None:
        """Everything that the next step depends on, as `checkpoints/last`. Draws are keyed by step, so no generator's state is needed."""
        parts = {"weights": self.model.state_dict(), "optimiser": optimiser_tensors(self.model, self.optimiser)}
        self.checkpoints.save(self.progress.step, parts, {**self._facts(), "progress": vars(self.progress)})

    def _facts(self) -> dict[str, Any]:
        """What is needed to use the weights: the network, the classes and the preparation of a scan."""
        swin = self.model.config.swin
        return {
            "network": self.model.config.to_dict(),
            "classes": ["background", *self.names],
            "data": self.settings.data.to_dict(),
            "legacy": {"merging": swin.legacy_merging, "relative_index": swin.legacy_relative_index},
        }

    def _restore(self, found: Checkpoint) -> None:
        self.model.load_state_dict(found.parts["weights"])
        restore_optimiser(self.model, self.optimiser, found.parts["optimiser"])
        self.progress = Progress(**found.facts["progress"])

    def take_best(self) -> bool:
        """Put the best weights into the model; False where there are none."""
        best = self.checkpoints.load_best()
        if best is None:
            return False
        self.model.load_state_dict(best.parts["weights"])
        return True


def autocast(device: torch.device, loop: LoopSettings) -> torch.autocast:
    """bf16 where the settings want it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=loop.precision == "bf16")


@torch.no_grad()
def predict(model: nn.Module, case: StoredCase, settings: SegmentationSettings, device: torch.device) -> NDArray[np.uint8]:
    """Classes (x, y, z) of a stored case by overlapping windows, logits averaged with Gaussian weights."""
    return predict_array(model, np.asarray(case.hu_xyz), settings.data, settings.loop, device)


@torch.no_grad()
def predict_array(
    model: nn.Module, hu_xyz: NDArray[Any], data: DataSettings, loop: LoopSettings, device: torch.device
) -> NDArray[np.uint8]:
    """Classes of HU (x, y, z) on the learning grid."""
    from monai.inferers import sliding_window_inference

    model.eval()
    image = torch.from_numpy(windowed(hu_xyz, data))[None, None]
    with autocast(device, loop):
        # The sum of windows can be larger than a device's memory: it is kept on the CPU.
        logits: Any = sliding_window_inference(
            image, data.patch_voxels, 1, model, overlap=loop.overlap, mode="gaussian", sw_device=device, device="cpu"
        )
    return logits[0].argmax(0).to(torch.uint8).numpy()  # type: ignore[no-any-return]


@contextmanager
def _stops_on_request(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and the first Ctrl-C ask for an orderly stop after the present step; a second Ctrl-C stops at once."""

    def asked(number: int, _frame: Any) -> None:
        if number == signal.SIGINT and stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
