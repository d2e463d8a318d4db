"""Where a fine-tuning starts from: a bundle, converted weights, a pre-training of any recipe, an earlier fine-tuning, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from converted import is_converted, read_converted, swin_config_of, tensor_sha256
from pretraining.export import RECORD, read_encoders
from torch import Tensor

from VelvetMedLib.bundle import load_bundle
from VelvetMedLib.bundle.catalogue import catalogue
from VelvetMedLib.bundle.config import CONFIG_FILE
from VelvetMedLib.engine.checkpoints import BEST, LAST, MARK, Checkpoint, Checkpoints, read_checkpoint
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.models.image_encoders import KINDS, EncoderConfig, EncoderPlace, find_encoder
from VelvetMedLib.models.swin import SwinConfig

SCRATCH = "scratch"
PARTS = ("average", "weights")
"""Of a checkpoint: the moving average, where a training kept one, is what its validation looked at."""


@dataclass(frozen=True)
class EncoderStart:
    """tensors: of the encoder that `config` describes, None = random start. origin: JSON-ready, what the run's record says of it."""

    config: EncoderConfig
    tensors: dict[str, Tensor] | None
    origin: dict[str, Any]

    def definition(self) -> dict[str, Any]:
        """What two calls of one run must agree on."""
        return {**self.origin, "settings": self.config.to_dict()}

    def at_random(self) -> EncoderStart:
        """The same encoder without its weights: what a pre-training must be better than."""
        return replace(self, tensors=None, origin={"kind": SCRATCH})


def encoder_start(source: str, *, scratch: SwinConfig) -> EncoderStart:
    """source: "scratch", a bundle (folder or catalogue name), a folder of converted weights, the run folder of a pre-training or
    fine-tuning, one of its checkpoints, or its folder of plain encoders. Raises VelvetMedError where there is no encoder of ours."""
    if source == SCRATCH:
        return EncoderStart(scratch, None, {"kind": SCRATCH})
    # A catalogue name is one even where a folder happens to be called so.
    named = any(entry.name == source for entry in catalogue())
    if not named and (found := _in_folder(Path(source))) is not None:
        return found
    bundle = load_bundle(source if named or not Path(source).is_dir() else Path(source))
    place = find_encoder(bundle.model)
    return _start(place, bundle.model.state_dict(), "bundle", {"id": bundle.config.id, "sha256": bundle.sha256})


def _in_folder(folder: Path) -> EncoderStart | None:
    """The encoder in a folder; None where the folder is a bundle or no folder at all."""
    if is_converted(folder):
        found = read_converted(folder, "swin")
        place = EncoderPlace("swin", "", SwinConfig.from_dict(found.config))
        return _start(place, found.tensors, "converted weights", found.record["source"])
    if (folder / MARK).is_file():
        return _of_checkpoint(read_checkpoint(folder), folder.name)
    if (folder / "checkpoints").is_dir():
        return _of_run(folder)
    if (folder / RECORD).is_file():
        record, tensors = read_encoders(folder)
        return _start(_place(record), tensors, "encoders", {"id": record["id"], "sha256": record["sha256"]})
    if folder.is_dir() and not (folder / CONFIG_FILE).is_file():
        raise TrainingError(
            "There is no pre-trained encoder here.",
            found=f"a folder without bundle.json, conversion.json, {RECORD} or checkpoints",
            expected="a bundle, converted weights or a training's run folder",
            next_step="Give one of these with --encoder, or --encoder scratch.",
        )
    return None


def _of_run(folder: Path) -> EncoderStart:
    checkpoints = Checkpoints(folder)
    best = checkpoints.load_best()
    if best is not None:
        return _of_checkpoint(best, BEST)
    last = checkpoints.load()
    if last is None:
        raise TrainingError(
            "The run has no checkpoint yet.",
            found="an empty folder of checkpoints",
            expected="a run that has saved at least once",
            next_step="Let the pre-training run on, or give another run.",
        )
    return _of_checkpoint(last, LAST)


def _of_checkpoint(found: Checkpoint, name: str) -> EncoderStart:
    part = next(part for part in PARTS if part in found.parts)
    tensors = found.parts[part]
    return _start(_place(found.facts) or _swin_by_shape(tensors), tensors, "checkpoint", {"name": name, "step": found.step, "part": part})


def _place(facts: Mapping[str, Any]) -> EncoderPlace | None:
    """What a checkpoint's facts or a record say of the encoder."""
    told = facts.get("image_encoder")
    return None if told is None else EncoderPlace.from_dict(told)


def _swin_by_shape(tensors: Mapping[str, Tensor]) -> EncoderPlace | None:
    """The encoder of a run from before checkpoints named it. MONAI's old rules leave no trace in the shapes: taken as not used."""
    stem = KINDS["swin"].stem
    fronts = sorted((name.removesuffix(stem) for name in tensors if name.endswith(stem)), key=len)
    if not fronts:
        return None
    inside = {name.removeprefix(fronts[0]): value for name, value in tensors.items() if name.startswith(fronts[0])}
    return EncoderPlace("swin", fronts[0], swin_config_of(inside, legacy_merging=False, legacy_relative_index=False))


def _start(place: EncoderPlace | None, tensors: Mapping[str, Tensor], kind: str, facts: Mapping[str, Any]) -> EncoderStart:
    if place is None:
        _refuse(kind)
    inside = {name: value.clone() for name, value in place.tensors(tensors).items()}
    stem = tensor_sha256(inside[KINDS[place.kind].stem])
    return EncoderStart(place.config, inside, {"kind": kind, **facts, "patch_embedding_sha256": stem})


def _refuse(kind: str) -> NoReturn:
    raise TrainingError(
        "No decoder fits the pre-trained encoder.",
        found=f"a {kind} without an encoder of a kind that this version segments with",
        expected="one of: " + ", ".join(entry.encoder.__name__ for entry in KINDS.values()),
        next_step="Give another one with --encoder, or add its kind to models/image_encoders.py.",
    )
