"""What every fine-tuning does alike: the list of what was left out, splits that suffice, the steps, and the best weights put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path

from VelvetMedLib.engine.checkpoints import Checkpoints
from VelvetMedLib.engine.data import Quarantine
from VelvetMedLib.engine.loader import MakesBatches, loaders
from VelvetMedLib.engine.manifest import Quarantined
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.sampler import StepSampler
from VelvetMedLib.engine.trainable import Trainable
from VelvetMedLib.engine.trainer import Selection, Trainer
from VelvetMedLib.errors import TrainingError

QUARANTINE = "quarantine.jsonl"
RESULTS = "results.json"


def note_left_out(run: Path, entries: Sequence[Quarantined], total: int, things: str, say: Callable[[str], None]) -> Quarantine:
    """Written anew at every start; an empty list leaves no file. things: "cases" or "studies", of which there are `total`."""
    path = run / QUARANTINE
    path.unlink(missing_ok=True)
    noted = Quarantine(path, total, largest_share=1.0)
    noted.add(entries)
    if entries:
        say(f"{len(noted)} of {total} {things} were left out ({QUARANTINE}); the first: {entries[0].study}: {entries[0].reason}")
    return noted


def enough(parts: Mapping[str, Sized], things: str) -> None:
    """Raises TrainingError where there is nothing to train on, or nothing to choose the best weights by."""
    for part, why in (("train", "train on"), ("val", "choose the best weights by")):
        if not parts[part]:
            raise TrainingError(
                f"There are no usable {things} to {why}.",
                found=", ".join(f"{len(found)} {name}" for name, found in parts.items()),
                expected="at least one for training and one for validation",
                next_step=f"Add {things}, or read {QUARANTINE} for why some were left out.",
            )


def train_best(
    learner: Trainable,
    maker: MakesBatches,
    names: Sequence[str],
    *,
    run: Path,
    steps: int,
    seed: int,
    device: str,
    quarantine: Sized,
    selection: Selection,
    after_step: Callable[[int], None] | None,
) -> tuple[int, int]:
    """Train on the named items, or go on with it, and put the best weights into the learner. Returns the exit code (`Trainer.run`) and
    the step of those weights."""
    trainer = Trainer(
        learner,
        run=run,
        steps=steps,
        seed=seed,
        make_loader=loaders(maker, StepSampler(list(names), learner.loop.batch, seed), learner.loop, steps=steps),
        processes=Processes(device),
        quarantine=quarantine,
        selection=selection,
        after_step=after_step,
    )
    code = trainer.run()
    best = None if code else Checkpoints(run).load_best()
    if best is not None:
        learner.load_state_dict(best.parts["weights"])
    return code, trainer.progress.best_step
