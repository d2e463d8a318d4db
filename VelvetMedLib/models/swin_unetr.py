"""A segmentation network on the Swin pyramid: residual blocks beside it, five up-sampling steps behind it, after SwinUNETR.

Source: Hatamizadeh et al., "Swin UNETR", BrainLes 2021 (arXiv 2201.01266). Tensor names are those of MONAI's `SwinUNETR`
(instance normalisation without scale or shift), so that weights move both ways.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.convolution import convolved
from VelvetMedLib.models.swin import SwinConfig, SwinEncoder

SLOPE = 0.01
"""Of the leaky ReLU below zero."""


@dataclass(frozen=True, kw_only=True)
class SwinUnetrConfig(Settings):
    """Settings of `SwinUnetr`. classes: logits of each voxel. The decoder is as wide as the encoder."""

    swin: SwinConfig = field(default_factory=SwinConfig)
    classes: int

    def __post_init__(self) -> None:
        self.require(self.classes >= 1, "classes", "at least 1")
        self.require(self.swin.patch == 2, "swin", "patch 2: the decoder doubles the grid five times")


class Convolution(nn.Module):
    """One convolution; its own module because the tensor names have the level."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return convolved(self.conv, x)


class ResidualBlock(nn.Module):
    """lrelu(IN(conv(lrelu(IN(conv x)))) + shortcut); the shortcut is x, or IN(1x1x1 conv x) where the width changes."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv1 = Convolution(nn.Conv3d(width_in, width_out, 3, padding=1, bias=False))
        self.conv2 = Convolution(nn.Conv3d(width_out, width_out, 3, padding=1, bias=False))
        self.conv3 = Convolution(nn.Conv3d(width_in, width_out, 1, bias=False)) if width_in != width_out else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, width_in, X, Y, Z] -> [B, width_out, X, Y, Z]."""
        h = functional.leaky_relu(instance_norm(self.conv1(x)), SLOPE)
        h = instance_norm(self.conv2(h))
        shortcut = x if self.conv3 is None else instance_norm(self.conv3(x))
        return functional.leaky_relu(h + shortcut, SLOPE)


class SkipBlock(nn.Module):
    """A residual block between the encoder and the decoder; only there for the level in the tensor names."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.layer = ResidualBlock(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class UpBlock(nn.Module):
    """Twice the grid by a transposed convolution, joined with the encoder's map of that grid, then a residual block."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.transp_conv = Convolution(nn.ConvTranspose3d(width_in, width_out, 2, stride=2, bias=False))
        self.conv_block = ResidualBlock(2 * width_out, width_out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x: [B, width_in, X, Y, Z]; skip: [B, width_out, 2X, 2Y, 2Z]."""
        return self.conv_block(torch.cat([self.transp_conv(x), skip], dim=1))


class OutBlock(nn.Module):
    """One logit per class and voxel."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.conv = Convolution(nn.Conv3d(width, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class SwinUnetr(nn.Module):
    """Encoder and decoder; every voxel gets one logit per class."""

    def __init__(self, config: SwinUnetrConfig) -> None:
        super().__init__()
        self.config = config
        w = config.swin.embed_dim
        self.swinViT = SwinEncoder(config.swin)
        self.encoder1 = SkipBlock(config.swin.in_channels, w)
        self.encoder2 = SkipBlock(w, w)
        self.encoder3 = SkipBlock(2 * w, 2 * w)
        self.encoder4 = SkipBlock(4 * w, 4 * w)
        self.encoder10 = SkipBlock(16 * w, 16 * w)
        self.decoder5 = UpBlock(16 * w, 8 * w)
        self.decoder4 = UpBlock(8 * w, 4 * w)
        self.decoder3 = UpBlock(4 * w, 2 * w)
        self.decoder2 = UpBlock(2 * w, w)
        self.decoder1 = UpBlock(w, w)
        self.out = OutBlock(w, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, in_channels, X, Y, Z], RAS, windowed HU, sides multiples of 32. Returns logits [B, classes, X, Y, Z]."""
        first, second, third, fourth, fifth = self.swinViT(x)
        h = self.decoder5(self.encoder10(fifth), fourth)
        h = self.decoder4(h, self.encoder4(third))
        h = self.decoder3(h, self.encoder3(second))
        h = self.decoder2(h, self.encoder2(first))
        return self.out(self.decoder1(h, self.encoder1(x)))

    @property
    def encoder(self) -> SwinEncoder:
        """Under its usual name; MONAI calls it `swinViT`."""
        return self.swinViT

    @property
    def class_bias(self) -> Tensor:
        """The constants of the logits, [classes]."""
        bias = self.out.conv.conv.bias
        assert isinstance(bias, Tensor)
        return bias


def instance_norm(x: Tensor) -> Tensor:
    """Each channel of each sample to mean 0 and variance 1, without scale or shift. A single voxel has no spread: it becomes 0."""
    if x[0, 0].numel() == 1:
        return torch.zeros_like(x)
    return functional.instance_norm(x)
