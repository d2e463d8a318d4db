"""The image encoders by name: which one a model has, how its weights are taken over, and the network that segments with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.primus import Primus, PrimusConfig
from VelvetMedLib.models.primus_segmenter import PrimusSegmenter, PrimusSegmenterConfig
from VelvetMedLib.models.swin import SwinConfig, SwinEncoder
from VelvetMedLib.models.swin_unetr import SwinUnetr, SwinUnetrConfig

EncoderConfig: TypeAlias = SwinConfig | PrimusConfig
Segmenter: TypeAlias = SwinUnetr | PrimusSegmenter


@dataclass(frozen=True)
class Kind:
    """stem: name of the encoder's first weight. segmenter: from the encoder's settings and a number of outputs."""

    config: type[Any]
    encoder: type[Any]
    stem: str
    segmenter: Callable[[Any, int], Segmenter]


KINDS = {
    "swin": Kind(SwinConfig, SwinEncoder, "patch_embed.proj.weight", lambda c, n: SwinUnetr(SwinUnetrConfig(swin=c, classes=n))),
    "primus": Kind(
        PrimusConfig, Primus, "down_projection.proj.weight", lambda c, n: PrimusSegmenter(PrimusSegmenterConfig(image=c, classes=n))
    ),
}


@dataclass(frozen=True)
class EncoderPlace:
    """The image encoder of a model. front: what stands before the names of its tensors in the whole model's."""

    kind: str
    front: str
    config: EncoderConfig

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"kind": self.kind, "front": self.front, "config": self.config.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EncoderPlace:
        """Inverse of `to_dict`; raises UsageError for an encoder that this version does not know."""
        if data["kind"] not in KINDS:
            raise UsageError(
                "The model's image encoder is of a kind that this version does not know.",
                found=str(data["kind"]),
                expected=" or ".join(KINDS),
                next_step="Use the version of VelvetMed that trained it.",
            )
        return cls(data["kind"], data["front"], KINDS[data["kind"]].config.from_dict(data["config"]))

    def tensors(self, of_model: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's own out of the whole model's, by its own names. Raises UsageError where they are not all there."""
        inside = {name.removeprefix(self.front): value for name, value in of_model.items() if name.startswith(self.front)}
        with torch.device("meta"):
            _check(KINDS[self.kind].encoder(self.config), inside)
        return inside


def find_encoder(model: nn.Module) -> EncoderPlace | None:
    """The first image encoder in a model; None where it has none of ours."""
    for name, part in model.named_modules():
        for kind, entry in KINDS.items():
            if type(part) is entry.encoder:
                return EncoderPlace(kind, f"{name}." if name else "", part.config)
    return None


def segmenter(config: EncoderConfig, outputs: int) -> Segmenter:
    """A new network with this encoder that gives every voxel so many logits. Raises UsageError where no decoder fits."""
    return next(entry for entry in KINDS.values() if entry.config is type(config)).segmenter(config, outputs)


def take_over(encoder: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load as float32, all or nothing. Raises UsageError where names or shapes differ."""
    _check(encoder, tensors)
    encoder.load_state_dict({name: value.float() for name, value in tensors.items()})


def _check(encoder: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    wanted = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if wanted != found:
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise UsageError(
            "The pre-trained encoder does not have the tensors that its settings ask for.",
            found=f"{len(wrong)} tensors that are missing, too many or of another shape, such as {wrong[0]}",
            expected=f"the {len(wanted)} tensors of {type(encoder).__name__}",
            next_step="Give weights and settings of one encoder.",
        )
