"""The global image encoder: a 3D Swin pyramid with five outputs, tensor names equal to MONAI's `SwinTransformer`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.config import Settings

Grid: TypeAlias = tuple[int, int, int]

OCTANTS: tuple[Grid, ...] = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
"""Order in which a merge stacks the eight cells of a 2x2x2 block."""
LEGACY_OCTANTS: tuple[Grid, ...] = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))
"""MONAI's order before January 2025: two octants twice, two never. Only for weights trained that way."""
APART = -100.0
"""Added to the score of two cells that a cyclic shift has brought into one window."""


@dataclass(frozen=True, kw_only=True)
class SwinConfig(Settings):
    """Settings of `SwinEncoder`. Stage s has width embed_dim * 2^s, depths[s] blocks and heads[s] heads.

    window: side of the attention window in cells, shrunk to the grid where that is smaller. patch: side of a patch in
    voxels. legacy_merging: octants as MONAI read them before January 2025. legacy_relative_index: where the window is
    shrunk, read the relative bias as MONAI does (a corner of the full window's index) and not by true distances.
    """

    in_channels: int = 1
    embed_dim: int = 24
    depths: tuple[int, ...] = (1, 2, 2, 2)
    heads: tuple[int, ...] = (2, 4, 8, 16)
    window: int = 4
    patch: int = 2
    mlp_ratio: int = 4
    legacy_merging: bool = False
    legacy_relative_index: bool = False

    def __post_init__(self) -> None:
        for name in ("in_channels", "embed_dim", "window", "patch", "mlp_ratio"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(len(self.depths) == 4, "depths", "four stages, as the five outputs are named after them")
        self.require(all(d >= 0 for d in self.depths), "depths", "0 or more blocks per stage")
        self.require(len(self.heads) == 4, "heads", "one entry per stage")
        fits = all(h >= 1 and width % h == 0 for h, width in zip(self.heads, self.widths, strict=False))
        self.require(fits, "heads", f"divisors of the stage widths {self.widths[:4]}")

    @classmethod
    def paper(cls) -> Self:
        """VELVET-Med, variant Sv: 22.85 M parameters, for 96-voxel inputs."""
        return cls(embed_dim=48, depths=(2, 8, 8, 8), heads=(4, 8, 16, 32), window=7)

    @classmethod
    def tiny(cls) -> Self:
        """For two CPU cores and 64-voxel inputs; window 4 divides every grid, so nothing is padded."""
        return cls()

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the five outputs."""
        return tuple(self.embed_dim * 2**s for s in range(5))

    @property
    def stride(self) -> int:
        """Voxels per cell of the last output; every side of the input must be a multiple of it."""
        return self.patch * 16


class WindowAttention(nn.Module):
    """softmax(Q K^T / sqrt(d) + bias[i - j] + shift mask) V inside each window; the bias is read from a (2w - 1)^3 table."""

    def __init__(self, width: int, heads: int, config: SwinConfig) -> None:
        super().__init__()
        self.heads = heads
        self.window = config.window
        self.legacy_index = config.legacy_relative_index
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * config.window - 1) ** 3, heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, window: Grid, apart: Tensor | None) -> Tensor:
        """x: [B, windows, n, C] with n = cells of `window`; apart: [windows, n, n] additive mask of a shifted grid, or None."""
        batch, windows, n, width = x.shape
        index = relative_index(window, self.window, self.legacy_index, x.device)
        bias = self.relative_position_bias_table[index.flatten()].unflatten(0, (n, n)).permute(2, 0, 1)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        if apart is None:
            q, k, v = (t.flatten(0, 1) for t in (q, k, v))
            scores = bias[None]
        else:
            # Windows stand in the place of heads, so that one mask serves the whole batch without being copied.
            q, k, v = (t.flatten(1, 2) for t in (q, k, v))
            scores = (bias + apart[:, None]).flatten(0, 1)[None]
        mixed = _biased_attention(q, k, v, scores.to(q.dtype))
        return self.proj(mixed.reshape(batch, windows, self.heads, n, -1).transpose(2, 3).reshape(batch, windows, n, width))


def _biased_attention(q: Tensor, k: Tensor, v: Tensor, scores: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d) + scores) V by the kernel that is fastest for what is asked.

    torch has no fused CPU kernel for a mask that wants a gradient; the path it takes instead works in float32 and looks for rows
    of minus infinity, which our masks never have. Spelt out, the same sum takes under half the time there.
    """
    if q.device.type == "cpu" and scores.requires_grad and torch.is_grad_enabled():
        return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + scores, dim=-1) @ v
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=scores)


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(functional.gelu(self.linear1(x)))


class SwinBlock(nn.Module):
    """x + WindowAttention(LN x), then x + MLP(LN x); every second block works on a grid shifted by half a window."""

    def __init__(self, width: int, heads: int, config: SwinConfig, *, shifted: bool) -> None:
        super().__init__()
        self.window = config.window
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, config)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, config.mlp_ratio * width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, gx, gy, gz, C]."""
        x = x + self._attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor) -> Tensor:
        grid = cast(Grid, tuple(x.shape[1:4]))
        window = cast(Grid, tuple(min(self.window, side) for side in grid))
        shift = tuple(self.window // 2 if self.shifted and side > self.window else 0 for side in grid)
        padded = cast(Grid, tuple(math.ceil(side / w) * w for side, w in zip(grid, window, strict=True)))
        if padded != grid:
            x = functional.pad(x, [0, 0, *(p for a in (2, 1, 0) for p in (0, padded[a] - grid[a]))])
        apart = None
        if any(shift):
            x = torch.roll(x, [-s for s in shift], dims=(1, 2, 3))
            apart = shift_mask(padded, window, cast(Grid, shift), x.device)
        x = _join(self.attn(_cut(x, window), window, apart), padded, window)
        if any(shift):
            x = torch.roll(x, shift, dims=(1, 2, 3))
        return x[:, : grid[0], : grid[1], : grid[2]]


class PatchMerging(nn.Module):
    """Eight neighbouring cells become one of twice the width: Linear(LN(stack)), no bias."""

    def __init__(self, width: int, *, legacy: bool) -> None:
        super().__init__()
        self.octants = LEGACY_OCTANTS if legacy else OCTANTS
        self.norm = nn.LayerNorm(8 * width)
        self.reduction = nn.Linear(8 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, gx, gy, gz, C] -> [B, gx/2, gy/2, gz/2, 2C]."""
        return self.reduction(self.norm(torch.cat([x[:, i::2, j::2, k::2] for i, j, k in self.octants], dim=-1)))


class SwinStage(nn.Module):
    """Blocks at one resolution, then a merge."""

    def __init__(self, stage: int, config: SwinConfig) -> None:
        super().__init__()
        width, heads = config.widths[stage], config.heads[stage]
        self.blocks = nn.ModuleList(SwinBlock(width, heads, config, shifted=i % 2 == 1) for i in range(config.depths[stage]))
        self.downsample = PatchMerging(width, legacy=config.legacy_merging)

    def forward(self, x: Tensor, *, recompute: bool) -> Tensor:
        """[B, C, gx, gy, gz] -> [B, 2C, gx/2, gy/2, gz/2]."""
        x = x.permute(0, 2, 3, 4, 1)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return self.downsample(x).permute(0, 4, 1, 2, 3)


class PatchEmbedding(nn.Module):
    """One convolution whose stride is its side."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.proj = nn.Conv3d(config.in_channels, config.embed_dim, config.patch, stride=config.patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class SwinEncoder(nn.Module):
    """The pyramid of VELVET-Med (methods.md 2.2): patch embedding, then four stages that each end in a merge.

    `recompute_activations` trades time for memory while gradients are on: blocks are run again in the backward pass.
    """

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute_activations = False
        self.patch_embed = PatchEmbedding(config)
        # One list per stage, of one entry: MONAI's tensor names have both numbers.
        self.layers1, self.layers2, self.layers3, self.layers4 = (nn.ModuleList([SwinStage(s, config)]) for s in range(4))

    def forward(self, x: Tensor, *, kept: Tensor | None = None) -> list[Tensor]:
        """x: [B, in_channels, X, Y, Z], RAS, sides multiples of `config.stride`. kept: [B, embed_dim, X / patch, ...], factors on the
        patch embedding before the first stage (0 takes a channel of a token away).

        Returns five maps [B, embed_dim * 2^s, X / (patch * 2^s), ...], s = 0..4, each through a parameter-free LayerNorm
        over channels. The last three are the levels bottom, middle and top.
        """
        stride = self.config.stride
        if x.ndim != 5 or x.shape[1] != self.config.in_channels or any(side % stride or side == 0 for side in x.shape[2:]):
            raise UsageError(
                "The global encoder cannot take this input.",
                found=f"shape {tuple(x.shape)}",
                expected=f"[batch, {self.config.in_channels}, X, Y, Z] with X, Y, Z multiples of {stride}",
                next_step="Resize the view to such a grid before calling the encoder.",
            )
        recompute = self.recompute_activations and torch.is_grad_enabled()
        embedded = self.patch_embed(x)
        maps = [embedded if kept is None else embedded * kept.to(embedded.dtype)]
        for layers in (self.layers1, self.layers2, self.layers3, self.layers4):
            maps.append(cast(SwinStage, layers[0])(maps[-1], recompute=recompute))
        return [_channel_norm(m) for m in maps]


def from_monai(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a MONAI `SwinTransformer`, SwinUNETR (`swinViT.`) or self-supervised head as a state dictionary for `SwinEncoder`.

    Drops what can be computed (the relative index) and what is not the encoder's. Also knows the names of the weights published
    in 2022: `swin_vit.` or nothing in front, `mlp.fc1` and `mlp.fc2` for the two linear layers.
    """
    inside = {_monai_name(k): v for k, v in tensors.items()}
    ours = ("patch_embed.", "layers1.", "layers2.", "layers3.", "layers4.")
    return {k: v for k, v in inside.items() if k.startswith(ours) and not k.endswith("relative_position_index")}


def _monai_name(name: str) -> str:
    for front in ("module.", "swinViT.", "swin_vit."):
        name = name.removeprefix(front)
    return name.replace(".mlp.fc1.", ".mlp.linear1.").replace(".mlp.fc2.", ".mlp.linear2.")


def relative_index(window: Grid, table_window: int, legacy: bool, device: Any) -> Tensor:
    """Row of the (2 * table_window - 1)^3 bias table for each pair of cells of `window`: [n, n], cells row-major."""
    return _relative_index(window, table_window, legacy, str(device))


@lru_cache(maxsize=64)
def _relative_index(window: Grid, table_window: int, legacy: bool, device: str) -> Tensor:
    n = math.prod(window)
    side = (table_window,) * 3 if legacy else window
    with torch.inference_mode(False):  # cached tensors must also serve where gradients are wanted
        cells = torch.stack(torch.meshgrid(*(torch.arange(s) for s in side), indexing="ij"), dim=-1).flatten(0, 2)[:n]
        distance = cells[:, None] - cells[None, :] + (table_window - 1)
        span = 2 * table_window - 1
        return ((distance[..., 0] * span + distance[..., 1]) * span + distance[..., 2]).to(device)


def shift_mask(grid: Grid, window: Grid, shift: Grid, device: Any) -> Tensor:
    """Additive mask [windows, n, n]: `APART` between cells that are neighbours only because the grid was rolled by `shift`."""
    return _shift_mask(grid, window, shift, str(device))


@lru_cache(maxsize=16)
def _shift_mask(grid: Grid, window: Grid, shift: Grid, device: str) -> Tensor:
    with torch.inference_mode(False):
        region = torch.zeros(1, *grid, 1)
        for axis, (side, s) in enumerate(zip(grid, shift, strict=True)):
            wrapped = (torch.arange(side) >= side - s).float() if s else torch.zeros(side)
            region = region * 2 + wrapped.view([-1 if a == axis + 1 else 1 for a in range(5)])
        ids = _cut(region, window)[0, :, :, 0]
        return ((ids[:, :, None] != ids[:, None, :]).float() * APART).to(device)


def _cut(x: Tensor, window: Grid) -> Tensor:
    """[B, gx, gy, gz, C] -> [B, windows, cells of a window, C], both row-major."""
    b, gx, gy, gz, c = x.shape
    wx, wy, wz = window
    x = x.reshape(b, gx // wx, wx, gy // wy, wy, gz // wz, wz, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, wx * wy * wz, c)


def _join(x: Tensor, grid: Grid, window: Grid) -> Tensor:
    """Inverse of `_cut`."""
    counts = [side // w for side, w in zip(grid, window, strict=True)]
    x = x.reshape(len(x), *counts, *window, x.shape[-1])
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(len(x), *grid, x.shape[-1])


def _channel_norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x.permute(0, 2, 3, 4, 1), [x.shape[1]]).permute(0, 4, 1, 2, 3)
