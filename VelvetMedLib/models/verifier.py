"""Is a part of the lesion map what the map takes it for? A second look at each part by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.reader import standardised


@dataclass(frozen=True, kw_only=True)
class LesionVerifierConfig(Settings):
    """Settings of `LesionVerifier`. lesion_features: raw numbers of a lesion token. lesions: kinds, in the order of the channels."""

    lesion_features: int = 108
    lesions: int = 17
    width: int = 96
    dropout: float = 0.5

    def __post_init__(self) -> None:
        for name in ("lesion_features", "lesions", "width"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(0.0 <= self.dropout < 1.0, "dropout", "0 or more, less than 1")


class LesionVerifier(nn.Module):
    """From one lesion token, of each kind, whether that kind truly is there.

    The findings head is told of whole scans, where one present among thirty parts has to be found; here every part has its own answer
    (the reduction of false positives that detectors of nodules end with: Setio AAA et al., Med Image Anal 42:1-13, 2017).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, config: LesionVerifierConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.lesion_features))
        self.register_buffer("scale", torch.ones(config.lesion_features))
        self.layers = nn.Sequential(
            nn.Linear(config.lesion_features, config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.width, config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.width, config.lesions),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Raw lesion tokens [..., lesion_features] to logits [..., lesions]."""
        everywhere = torch.ones(tokens.shape[:-1], dtype=torch.bool, device=tokens.device)
        return self.layers(standardised(tokens, self.mean, self.scale, everywhere))
