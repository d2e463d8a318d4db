"""Stage 2: VELVET-Med pre-training of the global encoder and TriBERT in their tiny setting, by the very code of `training/pretrain.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pretraining.cohort import cohort_entries
from pretraining.run import Options, pretrain
from torch import Tensor

from demo.data import PreparedCase
from demo.stages import StoppedOnRequest
from VelvetMedLib.engine.checkpoints import Checkpoints
from VelvetMedLib.engine.manifest import write_manifest
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.recipes.velvet import VelvetRecipe, tiny

PREFIX = "model."
"""Of the encoders' tensors in a checkpoint of a pre-training; what else is there belongs to the objectives."""


@dataclass(frozen=True, kw_only=True)
class VelvetSettings(Settings):
    """recipe: of the pre-training, every objective on."""

    steps: int
    recipe: VelvetRecipe = field(default_factory=lambda: tiny().with_(loop=replace(tiny().loop, validate_every=80)))


def train_velvet(
    model: VelvetModel,
    cohort: Path,
    cases: Sequence[PreparedCase],
    tokenizer: Path,
    run: Path,
    settings: VelvetSettings,
    *,
    processes: int,
    seed: int,
) -> float:
    """Give `model` the weights that recall most on the validation cases. Returns seconds of all starts, without preparing the views.

    cases: all of the cohort, with their splits; those held out for the test are not even listed. Raises StoppedOnRequest.
    """
    run.mkdir(parents=True, exist_ok=True)
    split = {case.case_id: case.split for case in cases if case.split != "test"}
    entries, _ = cohort_entries(cohort)
    manifest = run / "studies.jsonl"
    write_manifest(manifest, [entry | {"split": split[entry["study"]]} for entry in entries if entry["study"] in split])
    options = Options(run=run, steps=settings.steps, seed=seed, manifest=manifest, tokenizer=tokenizer, workers=processes, bundle=False)
    if pretrain(settings.recipe, options, Processes("cpu"), source=Path(__file__).parent):
        raise StoppedOnRequest
    last, best = Checkpoints(run).load(), Checkpoints(run).load_best()
    if last is None:
        raise TrainingError(
            "The pre-training left no checkpoint.",
            found=f"nothing to read in {run.name}/checkpoints",
            expected="the checkpoint of its last step",
            next_step="Remove this folder and call the same line again.",
        )
    take_encoders(model, (best or last).parts["weights"])
    return float(last.facts["progress"]["seconds"])


def take_encoders(model: VelvetModel, weights: Mapping[str, Tensor]) -> None:
    """Every tensor of the pre-trained encoders into the model, which has more parts than these. Raises RuntimeError if one does not fit."""
    encoders = {name.removeprefix(PREFIX): value for name, value in weights.items() if name.startswith(PREFIX)}
    if unexpected := model.load_state_dict(encoders, strict=False).unexpected_keys:
        raise RuntimeError(f"the model has no place for {', '.join(unexpected)}")
