"""Masked image modelling whose masked cells never enter the encoder: voxels of the others are told from a few (methods.md 3.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.patch_decoder import PatchDecoder, PatchDecoderConfig
from VelvetMedLib.models.primus import patches
from VelvetMedLib.objectives.base import Features, LossTerm, Objective, StudyBatch, Terms, in_full_precision, wide
from VelvetMedLib.objectives.context import Context

IMAGE_MAE = "image.mae"
"""Scans of which some cells are encoded. Their rows are not those of the batch's pairs."""
KEPT = "mae.kept"
"""Extra, int64 [R, K]: numbers of the cells that are encoded."""
PADDING = "mae.padding"
"""Extra, bool [R, N]: cells that lie outside the scan."""
FLAT = 1e-6
"""Added to the variance of a patch before it is divided by."""


@dataclass(frozen=True, kw_only=True)
class MaskedImageSettings(Settings):
    """masked: share of all cells that the encoder never sees. normalised: ask for each patch less its mean, divided by its standard
    deviation. width, depth, heads, ffn: of the decoder. All numbers are ours; 0.75 is also nnSSL's default."""

    masked: float = 0.75
    normalised: bool = False
    width: int = 432
    depth: int = 4
    heads: int = 6
    ffn: int = 1152

    def __post_init__(self) -> None:
        self.require(0 < self.masked < 1, "masked", "more than 0, less than 1")

    def kept_of(self, cells: int) -> int:
        """Cells of `cells` that are encoded: always the same number, so that scans make a batch."""
        return max(1, round((1 - self.masked) * cells))


class MaskedImage(Objective):
    """Sum over masked cells that are not padding of ||told - true||^2 / patch^3; count: these cells over all processes.

    Source: He et al., Masked Autoencoders, CVPR 2022, in 3D; padding rules ours. Every patch counts alike.
    """

    needs = frozenset({IMAGE_MAE})
    reads = frozenset({KEPT, PADDING})

    def __init__(self, channels: int, patch: int, settings: MaskedImageSettings | None = None) -> None:
        """channels: of the encoder's states."""
        super().__init__()
        self.settings = chosen = settings or MaskedImageSettings()
        self.decoder = PatchDecoder(
            PatchDecoderConfig(channels=channels, width=chosen.width, depth=chosen.depth, heads=chosen.heads, ffn=chosen.ffn, patch=patch)
        )

    def counts(self, batch: StudyBatch, ctx: Context) -> dict[str, float]:
        return {"masked_image_loss": float(asked_cells(batch.extras[KEPT], batch.extras[PADDING]).sum())}

    def forward(self, model: Any, features: Features, batch: StudyBatch, ctx: Context) -> Terms:
        images, kept = batch.images[IMAGE_MAE], batch.extras[KEPT]
        patch = self.decoder.config.patch
        gx, gy, gz = (side // patch for side in images.shape[2:])
        asked = asked_cells(kept, batch.extras[PADDING])
        told = self.decoder(features[IMAGE_MAE].states, kept, (gx, gy, gz))[asked]
        with in_full_precision(told):
            truth = wide(patches(images, patch)[asked])
            if self.settings.normalised:
                variance, mean = torch.var_mean(truth, dim=-1, keepdim=True, correction=0)
                truth = (truth - mean) / (variance + FLAT).sqrt()
            total = (wide(told) - truth).square().mean(dim=-1).sum()
        return Terms({"masked_image_loss": LossTerm(total, float(asked.sum()))})


def asked_cells(kept: Tensor, padding: Tensor) -> Tensor:
    """bool [R, N]: cells that are neither encoded nor padding. kept: [R, K]; padding: [R, N]."""
    return ~padding.scatter(1, kept, True)
