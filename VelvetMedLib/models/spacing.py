"""The spacing token: the millimetres that a resize to a fixed grid has lost, given back as one token."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SpacingToken(nn.Module):
    """MLP(log spacing): `view_spacing_mm` [B, 3] (box side / cells per axis, x y z) -> [B, 1, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, view_spacing_mm: Tensor) -> Tensor:
        """Spacings must be positive; they are kept within 0.01 mm to 1 m."""
        weight = next(self.mlp.parameters())
        return self.mlp(torch.log(view_spacing_mm.float().clamp(0.01, 1000.0)).to(weight.dtype))[:, None]
