"""A block of Primus by rows in half precision: near the plain block in float64, whatever the number of rows and the size of its scores."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from VelvetMedLib.models import primus_bf16
from VelvetMedLib.models.primus import Block, PrimusConfig, grid_cells, rotary
from VelvetMedLib.models.primus_bf16 import block_in_bf16, mix

EPSILON = 2.0**-8
"""Largest relative rounding of a number to bf16."""


def slow_mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q.double() @ k.double().T) * math.log(2)).softmax(dim=-1) @ v.double()


def quick_mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = torch.empty(len(q), v.shape[1], dtype=torch.bfloat16)
    mix(q, k, torch.cat([v, torch.ones(len(v), 1, dtype=torch.bfloat16)], dim=1), out=out)
    return out.double()


@pytest.mark.parametrize(("count", "queries", "keys"), [(1, 1, 1), (37, 37, 5), (37, 8, 8), (40, 8, 100)])
@pytest.mark.parametrize("farthest", [0.0, 100.0], ids=["relative powers", "plain powers"])
@pytest.mark.parametrize("common", [0.0, 40.0], ids=["small scores", "large scores that all keys share"])
def test_attention_is_the_whole_soft_max_up_to_the_rounding_of_bf16(
    count: int, queries: int, keys: int, farthest: float, common: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(count)
    for name, value in (("QUERIES", queries), ("KEYS", keys), ("FARTHEST", farthest)):
        monkeypatch.setattr(primus_bf16, name, value)
    q, k, v = (torch.randn(count, 12).bfloat16() for _ in range(3))
    k = (k + common * torch.randn(12)).bfloat16()
    wanted = slow_mix(q, k, v)
    # Centred keys, scores, shares, products and the result are each rounded.
    assert (quick_mix(q, k, v) - wanted).abs().max() <= 5 * EPSILON * wanted.abs().max()


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_scores_beyond_the_range_of_powers_neither_overflow_nor_lose_the_winner(scale: float) -> None:
    q = torch.tensor([scale, -scale]).repeat(12, 1).T.bfloat16()
    k = torch.stack([torch.full((12,), s) for s in (30.0, -30.0, 28.0)]).bfloat16()
    found = quick_mix(q, k, torch.eye(3, 12).bfloat16())
    torch.testing.assert_close(found[:, :3], torch.tensor([[1.0, 0, 0], [0, 1, 0]]).double(), atol=0.01, rtol=0)


@torch.no_grad()
def test_a_block_by_rows_is_the_plain_block_up_to_the_rounding_of_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(primus_bf16, "ROWS", 10)
    block = Block(PrimusConfig(width=72, heads=3, ffn=40)).eval()
    for parameter in block.parameters():
        parameter.normal_(std=0.3)
    x = torch.randn(2, 24, 72)
    cells = grid_cells((2, 3, 4))
    found = block_in_bf16(block, x.clone(), rotary(cells, 24))
    wanted = block.double()(x.double(), rotary(cells, 24, dtype=torch.float64))
    assert found.dtype == torch.float32
    error, added = found - wanted, wanted - x
    assert error.norm() <= 4 * EPSILON * added.norm()
    assert (found - torch.roll(wanted, 1, dims=1)).norm() > 0.5 * added.norm(), "blocks alike in all cells would compare nothing"
