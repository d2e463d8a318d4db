"""Where a fine-tuning starts from: a bundle, converted weights, a run's checkpoint, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converted import check_swin, is_converted, read_converted, swin_config_of, tensor_sha256
from torch import Tensor

from VelvetMedLib.bundle import load_bundle
from VelvetMedLib.bundle.catalogue import catalogue
from VelvetMedLib.bundle.config import CONFIG_FILE
from VelvetMedLib.engine.checkpoints import BEST, LAST, MARK, Checkpoint, Checkpoints, read_checkpoint
from VelvetMedLib.errors import BundleError, TrainingError
from VelvetMedLib.models.swin import SwinConfig

SCRATCH = "scratch"
_ANCHOR = "patch_embed.proj.weight"


@dataclass(frozen=True)
class EncoderStart:
    """tensors: of `SwinEncoder`, None = random start. origin: JSON-ready, what the run's record says of it."""

    config: SwinConfig
    tensors: dict[str, Tensor] | None
    origin: dict[str, Any]


def encoder_start(source: str, *, scratch: SwinConfig) -> EncoderStart:
    """source: "scratch", a bundle (folder or catalogue name), a folder of converted weights, a run folder or one of its
    checkpoints. Raises BundleError or TrainingError where there is no encoder."""
    if source == SCRATCH:
        return EncoderStart(scratch, None, {"kind": SCRATCH})
    # A catalogue name is one even where a folder happens to be called so.
    named = any(entry.name == source for entry in catalogue())
    if not named and (found := _in_folder(Path(source))) is not None:
        return found
    bundle = load_bundle(source if named or not Path(source).is_dir() else Path(source))
    tensors = {name: value.clone() for name, value in bundle.model.swin.state_dict().items()}
    return _start(bundle.model.config.swin, tensors, "bundle", {"id": bundle.config.id, "sha256": bundle.sha256})


def _in_folder(folder: Path) -> EncoderStart | None:
    """The encoder of converted weights, a checkpoint or a run; None where the folder is a bundle or no folder at all."""
    if is_converted(folder):
        found = read_converted(folder, "swin")
        return _start(SwinConfig.from_dict(found.config), found.tensors, "converted weights", found.record["source"])
    if (folder / MARK).is_file():
        return _of_checkpoint(read_checkpoint(folder), folder.name)
    if (folder / "checkpoints").is_dir():
        return _of_run(folder)
    if folder.is_dir() and not (folder / CONFIG_FILE).is_file():
        raise TrainingError(
            "There is no pre-trained encoder here.",
            found="a folder without bundle.json, conversion.json or checkpoints",
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
    # The moving average, where a training kept one, is what its validation looked at.
    parts = sorted(found.parts.items(), key=lambda item: ("average", "weights").index(item[0]) if item[0] in ("average", "weights") else 9)
    for part, tensors in parts:
        inside = encoder_tensors(tensors) if part not in ("optimiser", "random") else None
        if inside is not None:
            legacy = found.facts.get("legacy", {})
            config = swin_config_of(
                inside,
                legacy_merging=bool(legacy.get("merging", False)),
                legacy_relative_index=bool(legacy.get("relative_index", False)),
            )
            return _start(config, inside, "checkpoint", {"name": name, "step": found.step, "part": part})
    raise TrainingError(
        "The checkpoint holds no Swin encoder.",
        found="no tensor that ends in " + _ANCHOR,
        expected="a checkpoint of a pre-training or fine-tuning with a Swin encoder",
        next_step="Give another run with --encoder.",
    )


def encoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The encoder's tensors out of a whole model's, by whatever stands in front of their names; None without an encoder."""
    fronts = sorted({name.removesuffix(_ANCHOR) for name in tensors if name.endswith(_ANCHOR)}, key=len)
    if not fronts:
        return None
    front = fronts[0]
    ours = ("patch_embed.", "layers1.", "layers2.", "layers3.", "layers4.")
    inside = {name.removeprefix(front): value for name, value in tensors.items() if name.startswith(front)}
    return {name: value for name, value in inside.items() if name.startswith(ours)}


def _start(config: SwinConfig, tensors: dict[str, Tensor], kind: str, facts: Mapping[str, Any]) -> EncoderStart:
    try:
        check_swin(config, tensors)
    except BundleError as error:
        raise TrainingError(
            f"The pre-trained encoder cannot be used: {error.what}", found=error.found, expected=error.expected, next_step=error.next_step
        ) from None
    first = next(name for name in sorted(tensors) if name.endswith(_ANCHOR))
    return EncoderStart(config, tensors, {"kind": kind, **facts, "patch_embedding_sha256": tensor_sha256(tensors[first])})
