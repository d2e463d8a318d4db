"""Attention in half precision on a CPU, by blocks of queries: three matrix-shaped steps that torch runs at the rate of its bf16 product."""

from __future__ import annotations

import torch
from torch import Tensor

SCORES = 96 * 13_824
"""Scores at a time (2.7 MB): they stay in the processor's caches between the three steps, and a step is long beside its call."""


def attention_by_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v without gradient; q, k, v: bf16 [B, heads, N, d] -> [B, heads, N, d].

    torch's fused kernel multiplies in float32 on a CPU whatever it is given. Here both products are bf16 products, whose sums
    are float32 inside, and the soft-max sums in float32; scores and shares are rounded to bf16 in between (relative 1/256).
    """
    batch, heads, count, width = q.shape
    out = torch.empty(batch, count, heads, width, dtype=q.dtype).transpose(1, 2)
    step = max(SCORES // max(k.shape[2], 1), 1)
    scores = torch.empty(min(step, count), k.shape[2], dtype=q.dtype)
    # Scaled in float32 and rounded once.
    scaled = (q.float() * width**-0.5).to(q.dtype)
    for b in range(batch):
        for h in range(heads):
            keys, values = k[b, h].T.contiguous(), v[b, h].contiguous()
            for first in range(0, count, step):
                rows = scaled[b, h, first : first + step]
                here = scores[: len(rows)]
                torch.mm(rows, keys, out=here)
                torch.softmax(here, dim=-1, out=here)
                out[b, h, first : first + step] = torch.mm(here, values)
    return out
