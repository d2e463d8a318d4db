"""A segmentation network on Primus: the encoder's one map goes up by transposed convolutions alone.

Source: Wald et al., "Primus", 2025 (arXiv 2503.01835), and its public code in dynamic-network-architectures. A map of stride 8 has no
finer ones to skip to; all detail must pass the encoder. Tensor names of the decoder are the published ones behind `up_projection.`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.primus import Primus, PrimusConfig


@dataclass(frozen=True, kw_only=True)
class PrimusSegmenterConfig(Settings):
    """Settings of `PrimusSegmenter`. classes: logits of each voxel."""

    image: PrimusConfig = field(default_factory=PrimusConfig)
    classes: int

    def __post_init__(self) -> None:
        self.require(self.classes >= 1, "classes", "at least 1")
        patch = self.image.patch
        self.require(patch >= 2 and patch & (patch - 1) == 0, "image", "patch 2, 4, 8 ...: the decoder doubles the grid")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels before, between and after the doublings: from the encoder's down to the classes, by equal factors to multiples of 8."""
        doublings, width = self.image.patch.bit_length() - 1, self.image.width
        factor = (width / (2 * self.classes)) ** (1 / doublings)
        between = (max(8, round((width / factor**n + 1e-6) / 8) * 8) for n in range(1, doublings))
        return (width, *between, self.classes)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of every voxel, with scale and shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, X, Y, Z]."""
        return functional.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, 1e-6).movedim(-1, 1)


class PatchUp(nn.Module):
    """Transposed convolutions of side and stride 2; norm and GELU between them."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for n, (a, b) in enumerate(pairwise(widths), start=1):
            up = nn.ConvTranspose3d(a, b, kernel_size=2, stride=2)
            nn.init.kaiming_normal_(up.weight, a=0.01)
            nn.init.zeros_(up.bias)  # type: ignore[arg-type]
            stages.append(up if n == len(widths) - 1 else nn.Sequential(up, ChannelNorm(b), nn.GELU()))
        self.decode = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(x)


class PrimusSegmenter(nn.Module):
    """Encoder and decoder; every voxel gets one logit per class."""

    def __init__(self, config: PrimusSegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Primus(config.image)
        self.up_projection = PatchUp(config.widths)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, in_channels, X, Y, Z], RAS, windowed HU in 0..1, sides multiples of the patch. Returns logits [B, classes, X, Y, Z].

        The encoder reads -1..1, as it does where it is pre-trained.
        """
        return self.up_projection(self.encoder(2 * x - 1))

    @property
    def class_bias(self) -> Tensor:
        """The constants of the logits, [classes]."""
        bias = self.up_projection.decode[-1].bias
        assert isinstance(bias, Tensor)
        return bias
