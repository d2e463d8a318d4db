"""One way around a fault of torch's CPU convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def convolved(conv: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """conv(x); on a CPU, grids of one or two cells go through float32.

    Where the first side is 2 (or 1 at stride 2), the bf16 kernel of torch 2.13 reads memory that nobody wrote when it computes the
    weights' gradient (3x3x3, padding 1, AVX-512 BF16): at times huge, at times NaN. It costs nothing there.
    """
    if x.device.type == "cpu" and min(x.shape[2:]) <= 2:
        with torch.autocast("cpu", enabled=False):
            return conv(x.float() if x.dtype == torch.bfloat16 else x)
    return conv(x)


class Conv3d(nn.Conv3d):
    """torch's, by way of `convolved`."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, X, Y, Z]."""
        return convolved(super().forward, x)
