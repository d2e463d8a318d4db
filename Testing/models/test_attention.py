"""Attention: equal to a slow loop, and finite where nothing may be attended to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from VelvetMedLib.models.attention import Attention


def slow_attention(module: Attention, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
    """One query, one head, one key at a time."""
    width = x.shape[-1]
    per_head = width // module.heads
    q, k, v = module.query(x), module.key(memory), module.value(memory)
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for i in range(x.shape[1]):
            for h in range(module.heads):
                part = slice(h * per_head, (h + 1) * per_head)
                keys = [n for n in range(memory.shape[1]) if mask[b, i, n]]
                scores = torch.stack([(q[b, i, part] * k[b, n, part]).sum() / math.sqrt(per_head) for n in keys])
                weights = (scores - scores.max()).exp() / (scores - scores.max()).exp().sum()
                out[b, i, part] = sum(w * v[b, n, part] for w, n in zip(weights, keys, strict=True))
    return module.out(out)


def test_the_fused_attention_equals_a_loop_over_queries_heads_and_keys() -> None:
    torch.manual_seed(0)
    module = Attention(12, 3, memory_width=8).double()
    x, memory = torch.randn(2, 4, 12, dtype=torch.float64), torch.randn(2, 5, 8, dtype=torch.float64)
    mask = torch.rand(2, 4, 5) > 0.4
    mask[..., 0] = True
    torch.testing.assert_close(module(x, memory, mask[:, None]), slow_attention(module, x, memory, mask))


def test_a_row_that_may_attend_to_nothing_stays_finite_in_value_and_gradient() -> None:
    module = Attention(8, 2)
    x = torch.randn(1, 3, 8, requires_grad=True)
    mask = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    mask[..., :2, 0] = True
    y = module(x, mask=mask)
    y[:, :2].sum().backward()
    assert torch.isfinite(y).all() and x.grad is not None and torch.isfinite(x.grad).all()
