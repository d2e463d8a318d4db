"""Giving back a crop whose voxels were made worse and whose token embedding lost channels in places: Disruptive Autoencoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.heads import RestorationDecoder
from VelvetMedLib.objectives.base import (
    DISRUPTED_CHANNELS,
    IMAGE_DISRUPTED,
    Features,
    LossTerm,
    Objective,
    StudyBatch,
    Terms,
    in_full_precision,
    wide,
)
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.disruption import coarse


@dataclass(frozen=True, kw_only=True)
class DisruptionSettings(Settings):
    """All numbers are ours; the source's were not known to us.

    noise: standard deviation of what is added to every voxel; coarse: chance that the crop has half its resolution; masked: share of
    blocks of tokens in which a channel is taken away, drawn anew for each channel; block_tokens: side of a block.
    """

    noise: float = 0.1
    coarse: float = 0.5
    masked: float = 0.6
    block_tokens: int = 4

    def __post_init__(self) -> None:
        self.require(self.noise >= 0, "noise", "0 or more")
        for name in ("coarse", "masked"):
            self.require(0 <= getattr(self, name) <= 1, name, "0 to 1")
        self.require(self.block_tokens >= 1, "block_tokens", "at least 1")


class Disrupted(NamedTuple):
    """voxels: float32 [X, Y, Z], what the encoder gets; kept: bool [channels, bx, by, bz], the blocks in which a channel stays."""

    voxels: NDArray[np.float32]
    kept: NDArray[np.bool_]


def disrupt(crop: NDArray[np.float32], channels: int, patch: int, settings: DisruptionSettings, draw: np.random.Generator) -> Disrupted:
    """crop: [X, Y, Z] in 0..1. channels, patch: of the encoder's patch embedding. Of each channel exactly the same share goes."""
    voxels = coarse(crop) if draw.random() < settings.coarse else crop.copy()
    voxels += np.float32(settings.noise) * draw.standard_normal(crop.shape, np.float32)
    blocks = [-(-side // (patch * settings.block_tokens)) for side in crop.shape]
    number = int(np.prod(blocks))
    gone = round(settings.masked * number)
    order = np.argsort(draw.random((channels, number)), axis=1)
    kept = np.ones((channels, number), bool)
    np.put_along_axis(kept, order[:, :gone], False, axis=1)
    return Disrupted(np.clip(voxels, 0, 1).astype(np.float32), kept.reshape(channels, *blocks))


class DisruptiveRestoration(Objective):
    """Sum over all voxels of |restored - clean|; count: voxels over all processes.

    Form L = |D(f(mask(embed(perturb(x))))) - x|_1 after Disruptive Autoencoders (arXiv 2307.16896, MIDL 2024), known to us by its
    abstract: the masking hits channels of tokens in places, not whole tokens. Its contrast of modalities is left out: CT only.
    """

    needs = frozenset({IMAGE_DISRUPTED})
    reads = frozenset({DISRUPTED_CHANNELS})

    def __init__(self, channels: int) -> None:
        """channels: of the top map."""
        super().__init__()
        self.decoder = RestorationDecoder(channels)

    def counts(self, batch: StudyBatch, ctx: Context) -> dict[str, float]:
        return {"disruptive_restoration_loss": float(batch.clean[IMAGE_DISRUPTED].numel())}

    def forward(self, model: Any, features: Features, batch: StudyBatch, ctx: Context) -> Terms:
        restored, clean = self.decoder(features[IMAGE_DISRUPTED].top), batch.clean[IMAGE_DISRUPTED]
        with in_full_precision(restored):
            total = (wide(restored) - wide(clean)).abs().sum()
        return Terms({"disruptive_restoration_loss": LossTerm(total, float(clean.numel()))})
