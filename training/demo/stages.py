"""One stage of the demo training as a run of the engine's trainer, in a run folder of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from VelvetMedLib.engine.loader import MakesBatches, loaders
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.runfolder import RunFolder, environment
from VelvetMedLib.engine.sampler import StepSampler
from VelvetMedLib.engine.trainable import Trainable
from VelvetMedLib.engine.trainer import Trainer
from VelvetMedLib.recipes.parts import LoopSettings, OptimiserSettings

TRANSFORMERS = OptimiserSettings(learning_rate=1e-3, last_rate=2e-5, weight_decay=0.02, average_decay=0.99)
"""For the stages that train attention from nothing; each says how long it warms up."""


class StageSettings(Protocol):
    """What the settings of every stage have; all of them are kept in the stage's run.json."""

    @property
    def steps(self) -> int: ...
    @property
    def optimiser(self) -> OptimiserSettings: ...
    @property
    def loop(self) -> LoopSettings: ...
    def to_dict(self) -> dict[str, Any]: ...


class StoppedOnRequest(Exception):
    """A stage was asked to stop and has saved everything."""


def train_stage(
    stage: Trainable,
    maker: MakesBatches,
    names: Sequence[str],
    run: Path,
    settings: StageSettings,
    *,
    seed: int,
    stands_on: Mapping[str, nn.Module] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> float:
    """Train in place, or go on, and leave the moving average of the weights in `stage`. Returns seconds over all starts.

    names: of the cases that `maker` makes batches of. stands_on: what earlier stages made and this one learns from.
    after_step: called with the steps done. Raises StoppedOnRequest, or TrainingError where the run cannot go on or `run`
    holds one with other settings, cases or earlier stages.
    """
    folder = RunFolder(run)
    try:
        earlier = {name: fingerprint(module) for name, module in (stands_on or {}).items()}
        resumed = folder.check({"recipe": settings.to_dict(), "seed": seed, "cases": sorted(names), "stands_on": earlier})
        processes = Processes("cpu")
        folder.note_start({"resumed": resumed, **environment(str(processes.device), Path(__file__).parent)})
        sampler = StepSampler(names, settings.loop.batch, seed)
        loader = loaders(maker, sampler, settings.loop, steps=settings.steps)
        trainer = Trainer(stage, run=run, steps=settings.steps, seed=seed, make_loader=loader, processes=processes, after_step=after_step)
        if trainer.run():
            raise StoppedOnRequest
        if trainer.average is not None:
            stage.load_state_dict(trainer.average.tensors)
        stage.eval()
        return trainer.progress.seconds
    finally:
        folder.close()


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module's weights: which finished stage a later one stands on."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
