"""From the states of some cells back to the voxels of all: a learned token in the gaps, a few blocks, one linear map per patch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.primus import Blocks, Grid, PrimusConfig, grid_cells, rotary


@dataclass(frozen=True, kw_only=True)
class PatchDecoderConfig(Settings):
    """channels: of the states that come in. width, depth, heads, ffn: of the blocks. patch: side of a patch in voxels."""

    channels: int = 864
    width: int = 432
    depth: int = 4
    heads: int = 6
    ffn: int = 1152
    patch: int = 8

    def __post_init__(self) -> None:
        self.require(self.channels >= 1, "channels", "at least 1")
        self.blocks()

    def blocks(self) -> PrimusConfig:
        """Plain blocks of the encoder's kind; none is skipped."""
        return PrimusConfig(width=self.width, depth=self.depth, heads=self.heads, ffn=self.ffn, patch=self.patch, drop_path=0.0)


class PatchDecoder(nn.Module):
    """Light on purpose: what is asked of the encoder must not be done here (He et al., Masked Autoencoders, 2022)."""

    def __init__(self, config: PatchDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.gap = nn.Parameter(torch.zeros(config.channels))
        self.inlet = nn.Linear(config.channels, config.width)
        self.blocks = Blocks(config.blocks())
        self.outlet = nn.Linear(config.width, config.patch**3)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, states: Tensor, kept: Tensor, grid: Grid) -> Tensor:
        """states: [B, K, channels] of the cells numbered `kept` [B, K]. Returns the voxels of every cell of the grid, [B, N, patch^3]."""
        number = grid[0] * grid[1] * grid[2]
        whole = self.gap.to(states.dtype).expand(len(states), number, -1)
        whole = whole.scatter(1, kept[..., None].expand(-1, -1, states.shape[-1]), states)
        exact = torch.float64 if self.gap.dtype == torch.float64 else torch.float32
        places = rotary(grid_cells(grid, states.device), self.config.width // self.config.heads, dtype=exact)
        out: Tensor = self.outlet(self.blocks(self.inlet(whole), places))
        return out
