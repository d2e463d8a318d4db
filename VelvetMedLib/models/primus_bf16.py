"""A block of Primus in half precision on a CPU, without gradient: rows at a time, its attention by blocks of queries.

torch's fused attention multiplies in float32 on a CPU without tile registers whatever it is given, and autocast passes over the
whole map for every small step. Here all products are bf16 products (whose sums are float32 inside), and what lies between two of
them stays in the processor's caches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from VelvetMedLib.models.primus import Block, Rotary

ROWS = 1024
"""Rows of the map at a time: few enough for the caches, enough for the matrix product's full rate."""
QUERIES, KEYS = 1536, 1152
"""Scores at a time (3.5 MB): few enough to stay in the caches, and each side long beside what a product costs to prepare."""
FARTHEST = 100.0
"""Powers of two up to 2^100 are summed as they are: neither they nor their sums leave the range of bf16."""


def block_in_bf16(block: Block, x: Tensor, places: Rotary) -> Tensor:
    """`block(x, places)` of an evaluated block: x float32 [B, N, W] -> float32 [B, N, W]; places of all items alike."""
    out = x.clone()
    for item in out:
        _advance(block, item, places)
    return out


def _advance(block: Block, x: Tensor, places: Rotary) -> None:
    """In place; x: [N, W]."""
    attn, mlp = block.attn, block.mlp
    (count, width), heads = x.shape, attn.heads
    size = width // heads
    q_proj, k_proj, v_proj, proj = (Bf16(part) for part in (attn.q_proj, attn.k_proj, attn.v_proj, attn.proj))
    fc1_g, fc1_x, fc2 = (Bf16(part) for part in (mlp.fc1_g, mlp.fc1_x, mlp.fc2))
    q, k = (torch.empty(heads, count, size, dtype=torch.bfloat16) for _ in range(2))
    # The last column of ones makes the product with the values give the sum of the shares too.
    v = torch.ones(heads, count, size + 1, dtype=torch.bfloat16)
    turn = torch.complex(places.cosine[:, ::2], places.sine[:, ::2])[:, None]
    # exp(s) = 2^(s log2 e), and scaling before the only rounding.
    scale = size**-0.5 * math.log2(math.e)

    def split(y: Tensor) -> Tensor:
        return y.unflatten(-1, (heads, -1)).transpose(0, 1)

    for rows in parts(count, ROWS):
        y = block.norm1(x[rows]).bfloat16()
        q[:, rows] = split(_turned(q_proj(y), turn[rows] * scale))
        k[:, rows] = split(_turned(k_proj(y), turn[rows]))
        v[:, rows, :size] = split(v_proj(y))
    mixed = torch.empty(count, heads, size, dtype=torch.bfloat16)
    for head in range(heads):
        mix(q[head], k[head], v[head], out=mixed[:, head])
    del q, k, v
    for rows in parts(count, ROWS):
        x[rows] += block.gamma_1 * proj(attn.norm(mixed[rows].flatten(1)))
        y = block.norm2(x[rows]).bfloat16()
        gated = functional.silu(fc1_g(y), inplace=True).mul_(fc1_x(y))
        x[rows] += block.gamma_2 * fc2(mlp.norm(gated))


def mix(q: Tensor, k: Tensor, v: Tensor, *, out: Tensor) -> None:
    """softmax in base 2 of q k^T, times the values, into `out` [N, d]; q, k: bf16 [N, d]; v: [N, d + 1], its last column ones.

    A soft-max does not see what all keys have in common. Without it scores are smaller, so that less is lost when they are rounded
    (Zhang et al., SageAttention, 2024), and the greatest of a row is never below zero. Where a score could be too large for a power
    of two, powers are taken relative to the greatest score so far (Milakov and Gimelshein, 2018).
    """
    k = (k - k.mean(dim=0, dtype=torch.float32)).bfloat16()
    far = q.float().norm(dim=-1).max() * k.float().norm(dim=-1).max() > FARTHEST
    for rows in parts(len(q), QUERIES):
        sums = torch.zeros(rows.stop - rows.start, v.shape[1])
        top = torch.full((len(sums), 1), -math.inf, dtype=torch.bfloat16)
        for keys in parts(len(k), KEYS):
            shares = q[rows] @ k[keys].T
            if far:
                higher = torch.maximum(top, shares.amax(dim=-1, keepdim=True))
                sums *= torch.exp2(top - higher)
                shares -= higher
                top = higher
            sums += shares.exp2_() @ v[keys]
        out[rows] = sums[:, :-1] / sums[:, -1:]


class Bf16:
    """A linear map in bf16, its numbers rounded once per block."""

    def __init__(self, linear: nn.Linear) -> None:
        self.weight = linear.weight.bfloat16()
        self.bias = None if linear.bias is None else linear.bias.bfloat16()

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


def _turned(y: Tensor, turn: Tensor) -> Tensor:
    """Adjacent pairs of [R, W] as complex numbers, times `turn` [R, 1, head width / 2], in float32."""
    pairs = torch.view_as_complex(y.float().unflatten(-1, (-1, turn.shape[-1], 2)))
    return torch.view_as_real(pairs * turn).flatten(1)


def parts(count: int, step: int) -> Iterator[slice]:
    """Slices of at most `step` that cover `count` numbers."""
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))
