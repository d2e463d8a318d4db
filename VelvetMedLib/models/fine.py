"""The network of the `fine` view: a small U-Net that labels organs and lesions voxel by voxel and yields features for pooling."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.convolution import Conv3d

WIDTH_MULTIPLE = 8
"""Every channel count is a multiple of it: what vector units take at a time."""


@dataclass(frozen=True, kw_only=True)
class FineConfig(Settings):
    """Settings of `FineNet`.

    in_channels: HU windows stacked as channels. channels: widths at strides 2, 4, 8, 16 (one entry per level).
    full_channels, head_channels: widths of the two thin layers at full resolution. organs: classes of the soft-max, background
    included. lesions: independent lesion channels. feature_channels: width of the decoder map at stride 2 that is pooled.
    """

    in_channels: int = 2
    channels: tuple[int, ...] = (24, 48, 96, 160)
    full_channels: int = 16
    head_channels: int = 24
    organs: int = 33
    lesions: int = 17
    feature_channels: int = 48

    def __post_init__(self) -> None:
        self.require(self.in_channels >= 1, "in_channels", "at least 1")
        self.require(len(self.channels) >= 2, "channels", "at least two levels")
        self.require(all(c > 0 and c % WIDTH_MULTIPLE == 0 for c in self.channels), "channels", f"multiples of {WIDTH_MULTIPLE}")
        for name in ("full_channels", "head_channels", "feature_channels"):
            value = getattr(self, name)
            self.require(value > 0 and value % WIDTH_MULTIPLE == 0, name, f"a positive multiple of {WIDTH_MULTIPLE}")
        self.require(self.organs >= 2, "organs", "at least 2 (background and one structure)")
        self.require(self.lesions >= 1, "lesions", "at least 1")

    @property
    def stride(self) -> int:
        """Every side of the input must be a multiple of this."""
        return int(2 ** len(self.channels))


class FineOutput(NamedTuple):
    """organ_logits [B, organs, X, Y, Z]; lesion_logits [B, lesions, X, Y, Z]; features [B, feature_channels, X/2, Y/2, Z/2]."""

    organ_logits: Tensor
    lesion_logits: Tensor
    features: Tensor


class InstanceNorm(nn.Module):
    """Instance normalisation with scale and shift, equal to `nn.InstanceNorm3d(width, affine=True)`.

    Written as batch normalisation of one sample at a time: on CPUs that kernel keeps the channels-last layout, where torch's own
    instance and group normalisation took 1.5 and 5 times as long (bf16, forward and backward, torch 2.13).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, width, X, Y, Z]. A single voxel has no spread: it becomes the shift alone."""
        if x[0, 0].numel() == 1:
            return self.bias.to(x.dtype).view(1, -1, 1, 1, 1).expand_as(x)
        parts = [functional.batch_norm(one, None, None, self.weight, self.bias, training=True) for one in x.split(1)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


class ConvNormAct(nn.Sequential):
    """3x3x3 convolution, normalisation of each channel by itself, leaky ReLU. Stride 2 halves the grid."""

    def __init__(self, width_in: int, width_out: int, stride: int = 1) -> None:
        super().__init__(
            Conv3d(width_in, width_out, 3, stride=stride, padding=1, bias=False),
            InstanceNorm(width_out),
            nn.LeakyReLU(0.01),
        )


class FineNet(nn.Module):
    """U-Net with a stride-2 stem: all depth lies at stride 2 and below, where voxels are cheap.

    At full resolution there are only two thin layers: `skip`, which sees the untouched input, and `full`, which joins
    it with the up-sampled decoder. A nodule of two voxels, lost to the stem, still reaches the heads through them.
    Each channel is normalised by itself: in trials of 150 steps the organ loss fell to 1.7, against 2.1 with groups of eight channels.
    Absolute HU is lost on the way, so region and lesion tokens carry it beside the features.
    """

    def __init__(self, config: FineConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        self.skip = ConvNormAct(config.in_channels, config.full_channels)
        downs = [nn.Sequential(ConvNormAct(config.full_channels, widths[0], stride=2), ConvNormAct(widths[0], widths[0]))]
        downs += [nn.Sequential(ConvNormAct(a, b, stride=2), ConvNormAct(b, b)) for a, b in pairwise(widths)]
        self.downs = nn.ModuleList(downs)
        ups: list[nn.Module] = []
        below = widths[-1]
        for level in range(len(widths) - 2, -1, -1):
            out = widths[level] if level > 0 else config.feature_channels
            ups.append(nn.Sequential(ConvNormAct(below + widths[level], out), ConvNormAct(out, out)))
            below = out
        self.ups = nn.ModuleList(ups)
        self.to_full = nn.ConvTranspose3d(config.feature_channels, config.full_channels, 2, stride=2)
        self.full = ConvNormAct(config.full_channels, config.head_channels)
        self.organ_head = nn.Conv3d(config.head_channels, config.organs, 1)
        self.lesion_head = nn.Conv3d(config.head_channels, config.lesions, 1)
        # Lesions fill well under a thousandth of the voxels: start each channel near that rate, not at one half.
        nn.init.constant_(self.lesion_head.bias, -6.0)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> FineOutput:
        """x: [B, in_channels, X, Y, Z], RAS, windowed HU in 0..1; X, Y, Z multiples of `config.stride`."""
        stride = self.config.stride
        if x.ndim != 5 or x.shape[1] != self.config.in_channels or any(side % stride or side == 0 for side in x.shape[2:]):
            raise UsageError(
                "The fine network cannot take this input.",
                found=f"shape {tuple(x.shape)}",
                expected=f"[batch, {self.config.in_channels}, X, Y, Z] with X, Y, Z multiples of {stride}",
                next_step="Pad the tile to the next multiple before calling the network.",
            )
        thin = self.skip(x.contiguous(memory_format=torch.channels_last_3d))
        maps = [thin]
        for down in self.downs:
            maps.append(down(maps[-1]))
        h = maps.pop()
        for up in self.ups:
            h = up(torch.cat([functional.interpolate(h, scale_factor=2.0, mode="nearest"), maps.pop()], dim=1))
        wide = self.full(self.to_full(h) + thin)
        return FineOutput(self.organ_head(wide), self.lesion_head(wide), h)
