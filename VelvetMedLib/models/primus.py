"""Primus: a plain vision transformer on 3D patches with rotary positions, tensor names equal to the released COLIPRI image backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Self, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.config import Settings

Grid: TypeAlias = tuple[int, int, int]
AXES = 3


@dataclass(frozen=True, kw_only=True)
class PrimusConfig(Settings):
    """Settings of `Primus`. ffn: hidden width of the gated feed-forward. patch: side of a patch in voxels.

    scale_start: first value of the per-channel scales of both branches. drop_path: share of samples that skip a branch while
    training, rising linearly from 0 in the first block. rotary_base: see `rotary`.
    """

    in_channels: int = 1
    width: int = 864
    depth: int = 16
    heads: int = 12
    ffn: int = 2304
    patch: int = 8
    scale_start: float = 0.1
    drop_path: float = 0.2
    rotary_base: float = 10_000.0

    def __post_init__(self) -> None:
        for name in ("in_channels", "width", "heads", "ffn", "patch"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.depth >= 0, "depth", "0 or more")
        self.require(self.width % self.heads == 0, "heads", f"a divisor of width ({self.width})")
        self.require(self.head_width % (2 * AXES) == 0, "heads", "heads whose width is a multiple of 6: a pair of channels per axis")
        self.require(0.0 <= self.drop_path < 1.0, "drop_path", "0 or more, less than 1")
        self.require(self.rotary_base > 1.0, "rotary_base", "more than 1")

    @classmethod
    def paper(cls) -> Self:
        """Primus-M as COLIPRI uses it: 144.1 M parameters; 192 voxels a side are 13,824 cells."""
        return cls()

    @classmethod
    def tiny(cls) -> Self:
        """For two CPU cores."""
        return cls(width=96, depth=4, heads=4, ffn=256, drop_path=0.0)

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class Rotary(NamedTuple):
    """Cosine and sine of every channel's angle, [N, head width] or [B, 1, N, head width]; the two channels of a pair share theirs."""

    cosine: Tensor
    sine: Tensor

    def turn(self, x: Tensor) -> Tensor:
        """Rotate [B, heads, N, head width] pair by pair: (a, b) -> (a cos - b sin, b cos + a sin)."""
        turned = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
        return x * self.cosine + turned * self.sine


def grid_cells(grid: Grid, device: Any = None) -> Tensor:
    """Index of every cell of a grid along the three axes: [N, 3], cells row-major, first axis slowest."""
    axes = (torch.arange(side, device=device) for side in grid)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def rotary(cells: Tensor, head_width: int, base: float = 10_000.0, dtype: torch.dtype = torch.float32) -> Rotary:
    """Rotary positions (Su et al., RoFormer, 2021) of cells [..., 3] in the axial 3D form of Primus (Wald et al., 2025).

    Each axis owns a third of the channels of a head. Its pair k of n turns by index * base^(-k/n). Angles are computed in float64.
    """
    pairs = head_width // (2 * AXES)
    step = base ** (-torch.arange(pairs, dtype=torch.float64, device=cells.device) / pairs)
    angles = (cells.double()[..., None] * step).flatten(-2).repeat_interleave(2, dim=-1)
    return Rotary(angles.cos().to(dtype), angles.sin().to(dtype))


def patches(x: Tensor, side: int) -> Tensor:
    """[B, C, X, Y, Z] cut into cubes: [B, N, C * side^3], cells row-major, each cube's values channel first, then row-major."""
    b, c, sx, sy, sz = x.shape
    x = x.reshape(b, c, sx // side, side, sy // side, side, sz // side, side)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, -1, c * side**3)


class PatchProjection(nn.Module):
    """A convolution of side and stride `patch`, computed as one matrix product over the cubes."""

    def __init__(self, config: PrimusConfig) -> None:
        super().__init__()
        self.proj = nn.Conv3d(config.in_channels, config.width, config.patch, stride=config.patch)

    def forward(self, cubes: Tensor) -> Tensor:
        """cubes: [B, N, C * patch^3] of `patches` -> [B, N, W]."""
        return functional.linear(cubes, self.proj.weight.flatten(1), self.proj.bias)


class RotaryAttention(nn.Module):
    """proj(LN(softmax(R(q) R(k)^T / sqrt(head width)) v)); q and v have a bias, k has none; LN over the joined heads."""

    def __init__(self, config: PrimusConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, places: Rotary) -> Tensor:
        """x: [B, N, W] -> [B, N, W]."""
        q, k, v = (self._split(part(x)) for part in (self.q_proj, self.k_proj, self.v_proj))
        q, k = places.turn(q).to(v.dtype), places.turn(k).to(v.dtype)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(self.norm(mixed.transpose(1, 2).flatten(2)))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class GatedFeedForward(nn.Module):
    """fc2(LN(SiLU(fc1_g x) * fc1_x x)), the SwiGLU of EVA-02 (Fang et al., 2023)."""

    def __init__(self, config: PrimusConfig) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(config.width, config.ffn)
        self.fc1_x = nn.Linear(config.width, config.ffn)
        self.norm = nn.LayerNorm(config.ffn)
        self.fc2 = nn.Linear(config.ffn, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, W] -> [B, N, W]."""
        return self.fc2(self.norm(functional.silu(self.fc1_g(x)) * self.fc1_x(x)))


class Block(nn.Module):
    """x + gamma_1 * attention(LN x), then x + gamma_2 * feed-forward(LN x)."""

    def __init__(self, config: PrimusConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.gamma_1 = nn.Parameter(torch.full((config.width,), config.scale_start))
        self.norm1 = nn.LayerNorm(config.width)
        self.attn = RotaryAttention(config)
        self.gamma_2 = nn.Parameter(torch.full((config.width,), config.scale_start))
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = GatedFeedForward(config)

    def forward(self, x: Tensor, places: Rotary) -> Tensor:
        """x: [B, N, W] -> [B, N, W]."""
        x = x + self._dropped(self.gamma_1 * self.attn(self.norm1(x), places))
        return x + self._dropped(self.gamma_2 * self.mlp(self.norm2(x)))

    def _dropped(self, branch: Tensor) -> Tensor:
        """Without the branch for a share of the samples while training; the others are scaled so that the mean stays."""
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * (keep.to(branch.dtype) / (1.0 - self.drop_path))


RunBlock: TypeAlias = Callable[[Block, Tensor, Rotary], Tensor]
"""Another way to compute `block(x, places)`."""


class Blocks(nn.Module):
    """The transformer: blocks of one width, then LayerNorm."""

    def __init__(self, config: PrimusConfig) -> None:
        super().__init__()
        last = max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(Block(config, config.drop_path * i / last) for i in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, places: Rotary, *, recompute: bool = False, run: RunBlock = Block.__call__) -> Tensor:
        """x: [B, N, W] -> [B, N, W]. recompute: keep no activations inside a block for the backward pass."""
        for block in cast(Iterable[Block], self.blocks):
            x = checkpoint(run, block, x, places, use_reentrant=False) if recompute else run(block, x, places)
        return self.norm(x)


class Primus(nn.Module):
    """Patches -> blocks -> a map of cells. Any grid; positions are counted from the corner of the input.

    recompute_activations: keep only the state between two blocks for the backward pass.
    mask_token: part of the released weights (zeros there) and not used by the encoder, which never sees a masked cell.
    """

    mask_token: Tensor

    def __init__(self, config: PrimusConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute_activations = False
        self.down_projection = PatchProjection(config)
        self.eva = Blocks(config)
        self.register_buffer("mask_token", torch.zeros(1, 1, config.width))
        _start(self)

    def forward(self, x: Tensor, *, run: RunBlock = Block.__call__) -> Tensor:
        """x: [B, in_channels, X, Y, Z], sides multiples of `patch` -> [B, W, X / patch, Y / patch, Z / patch]."""
        grid = self.grid(x)
        places = self._places(grid, x.device, _exact(x))
        tokens = self.down_projection(patches(x, self.config.patch))
        states = self.eva(tokens, places, recompute=self._recompute, run=run)
        return states.transpose(1, 2).unflatten(2, grid)

    def forward_kept(self, x: Tensor, kept: Tensor) -> Tensor:
        """States of some cells only, as if the others did not exist; each keeps the rotary position of its true cell.

        kept: [B, K] numbers of cells, row-major. Returns [B, K, W] in the order of `kept`.
        """
        grid = self.grid(x)
        cubes = patches(x, self.config.patch)
        cubes = cubes.gather(1, kept[..., None].expand(-1, -1, cubes.shape[-1]))
        whole = self._places(grid, x.device, _exact(x))
        places = Rotary(whole.cosine[kept][:, None], whole.sine[kept][:, None])
        return self.eva(self.down_projection(cubes), places, recompute=self._recompute)

    def grid(self, x: Tensor) -> Grid:
        """Cells along each axis of an input [B, C, X, Y, Z]. Raises UsageError where it cannot be cut into patches."""
        patch, channels = self.config.patch, self.config.in_channels
        if x.ndim != 5 or x.shape[1] != channels or any(side % patch or side == 0 for side in x.shape[2:]):
            raise UsageError(
                "The image encoder cannot take this input.",
                found=f"shape {tuple(x.shape)}",
                expected=f"[batch, {channels}, X, Y, Z] with X, Y, Z multiples of {patch}",
                next_step="Crop or pad the view to such a grid before calling the encoder.",
            )
        gx, gy, gz = (side // patch for side in x.shape[2:])
        return gx, gy, gz

    @property
    def _recompute(self) -> bool:
        return self.recompute_activations and torch.is_grad_enabled()

    def _places(self, grid: Grid, device: Any, dtype: torch.dtype) -> Rotary:
        return _grid_rotary(grid, self.config.head_width, self.config.rotary_base, dtype, str(device))


def _exact(x: Tensor) -> torch.dtype:
    """Positions stay in float32 (float64 where the model is) even where the rest runs in half precision."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@lru_cache(maxsize=8)
def _grid_rotary(grid: Grid, head_width: int, base: float, dtype: torch.dtype, device: str) -> Rotary:
    with torch.inference_mode(False):  # cached tensors must also serve where gradients are wanted
        return rotary(grid_cells(grid, device), head_width, base, dtype)


def _start(model: Primus) -> None:
    """As the public Primus starts: truncated N(0, 0.02) linear layers, the last of each branch divided by sqrt(2 * its block's number),
    He's rule for leaky rectifiers of slope 0.01 in the patch projection, no bias."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    with torch.no_grad():
        for number, block in enumerate(model.eva.blocks, start=1):
            assert isinstance(block, Block)
            block.attn.proj.weight.div_(math.sqrt(2.0 * number))
            block.mlp.fc2.weight.div_(math.sqrt(2.0 * number))
    projection = model.down_projection.proj
    nn.init.kaiming_normal_(projection.weight, a=0.01)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
