"""Attention pooling: equal to a loop over heads and tokens and to torch's own module; the mean where attention is uniform."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.pooling import AttentionPool


def awake(width: int = 12, heads: int = 3) -> AttentionPool:
    torch.manual_seed(0)
    pool = AttentionPool(width, heads).double()
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.normal_(std=0.7)
    return pool


def slow_pool(pool: AttentionPool, tokens: list[Tensor]) -> Tensor:
    """methods.md 3.3 word by word: keys and values of every token, one head at a time."""
    width = len(tokens[0])
    per_head = width // pool.heads
    wq, wk, wv = (pool.attn.in_proj_weight[n * width : (n + 1) * width] for n in range(3))
    bq, bk, bv = (pool.attn.in_proj_bias[n * width : (n + 1) * width] for n in range(3))
    q = wq @ (sum(tokens) / len(tokens)) + bq
    joined = []
    for h in range(pool.heads):
        part = slice(h * per_head, (h + 1) * per_head)
        scores = torch.stack([q[part] @ (wk @ x + bk)[part] / math.sqrt(per_head) for x in tokens])
        shares = scores.exp() / scores.exp().sum()
        joined.append(sum(a * (wv @ x + bv)[part] for a, x in zip(shares, tokens, strict=True)))
    return pool.attn.out_proj.weight @ torch.cat(joined) + pool.attn.out_proj.bias


def test_pooling_equals_a_loop_over_heads_and_tokens() -> None:
    pool, x = awake(), torch.randn(2, 7, 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(pool(x), torch.stack([slow_pool(pool, list(item)) for item in x]))


def test_tokens_behind_the_mask_are_as_if_they_were_not_there() -> None:
    pool, x = awake(), torch.randn(2, 7, 12, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 1, 1, 1]]).bool()
    with torch.no_grad():
        found = pool(x, mask)
        wanted = torch.stack([slow_pool(pool, list(item[kept])) for item, kept in zip(x, mask, strict=True)])
    torch.testing.assert_close(found, wanted)


def test_pooling_equals_the_module_whose_tensor_names_it_has() -> None:
    pool, x = awake(), torch.randn(2, 7, 12, dtype=torch.float64)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True).double()
    theirs.load_state_dict(pool.attn.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(pool(x), theirs(x.mean(1, keepdim=True), x, x)[0][:, 0])


def test_uniform_attention_pools_to_the_mean_of_the_dense_map() -> None:
    pool, x = awake(), torch.randn(2, 7, 12, dtype=torch.float64)
    with torch.no_grad():
        pool.attn.in_proj_weight[12:24] = 0.0  # keys no longer depend on the token
        torch.testing.assert_close(pool(x), pool.dense(x).mean(dim=1))


def test_a_single_token_pools_to_its_own_dense_vector() -> None:
    pool, x = awake(), torch.randn(2, 1, 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(pool(x), pool.dense(x)[:, 0])


def test_the_published_size_has_the_released_number_of_parameters() -> None:
    with torch.device("meta"):
        pool = AttentionPool(768, 12)
    assert {n: tuple(t.shape) for n, t in pool.state_dict().items()} == {
        "attn.in_proj_weight": (2304, 768),
        "attn.in_proj_bias": (2304,),
        "attn.out_proj.weight": (768, 768),
        "attn.out_proj.bias": (768,),
    }
    assert sum(p.numel() for p in pool.parameters()) == 2_362_368


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="5 heads"):
        AttentionPool(12, 5)
