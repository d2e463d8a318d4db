"""Attention pooling: many tokens to one vector, asked for by their own mean; and the same map applied to each token by itself."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from VelvetMedLib.errors import UsageError


class _Projections(nn.Module):
    """Query, key and value maps stacked in one matrix, and the output map: the tensor names of `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)


class AttentionPool(nn.Module):
    """COLIPRI's pooler (methods.md 3.3). With tokens x_n and the valid set V:

    q = Wq mean_V(x) + bq;  a_hn = softmax over V of <q_h, Wk x_n + bk>_h / sqrt(width / heads);
    o_h = sum_n a_hn (Wv x_n + bv)_h;  y = Wo [o_1 ... o_H] + bo.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(
                "The pooling cannot be built.",
                found=f"{heads} heads for a width of {width}",
                expected="a width that the heads divide",
                next_step="Change the number of heads in the architecture settings.",
            )
        self.heads = heads
        self.attn = _Projections(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: [B, N, W]; mask: [B, N], True = valid, None = all; every row needs a valid token. Returns [B, W].

        One query per item: keys and values of the tokens are never formed. <q, Wk x + bk> is <Wk^T q, x> and a constant that the
        soft-max does not see, and a weighted mean of values is the value of the weighted mean.
        """
        width = x.shape[-1]
        if mask is None:
            mean = x.mean(dim=1)
        else:
            valid = mask.bool()
            weights = valid[..., None].to(x.dtype)
            mean = (x * weights).sum(dim=1) / weights.sum(dim=1)
        (wq, wk, wv), (bq, _, bv) = self.attn.in_proj_weight.chunk(3), self.attn.in_proj_bias.chunk(3)
        query = functional.linear(mean, wq, bq).unflatten(-1, (self.heads, -1))
        asked = torch.einsum("bhd,hdw->bhw", query, wk.unflatten(0, (self.heads, -1)))
        scores = torch.einsum("bhw,bnw->bhn", asked, x) * (width // self.heads) ** -0.5
        scores = scores if scores.dtype == torch.float64 else scores.float()
        if mask is not None:
            scores = scores.masked_fill(~valid[:, None], float("-inf"))
        shares = scores.softmax(dim=-1).to(x.dtype)
        seen = torch.einsum("bhn,bnw->bhw", shares, x)
        mixed = torch.einsum("bhw,hdw->bhd", seen, wv.unflatten(0, (self.heads, -1))).flatten(1) + bv
        return cast(Tensor, self.attn.out_proj(mixed))

    def dense(self, x: Tensor) -> Tensor:
        """Each token as if it were alone: Wo (Wv x + bv) + bo; [..., W] -> [..., W]."""
        _, _, wv = self.attn.in_proj_weight.chunk(3)
        _, _, bv = self.attn.in_proj_bias.chunk(3)
        return cast(Tensor, self.attn.out_proj(functional.linear(x, wv, bv)))
