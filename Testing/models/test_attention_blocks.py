"""Attention by blocks of queries in half precision: near a plain float64 computation, whatever the number of rows."""

from __future__ import annotations

import pytest
import torch

from VelvetMedLib.models import attention_blocks
from VelvetMedLib.models.attention_blocks import attention_by_blocks


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (37, 37), (37, 8), (40, 8), (9, 100)])
def test_blocks_equal_the_whole_computed_in_float64_up_to_the_rounding_of_bf16(
    count: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(count)
    monkeypatch.setattr(attention_blocks, "SCORES", rows * count)
    q, k, v = (torch.randn(2, 3, count, 12).bfloat16() for _ in range(3))
    wanted = (q.double() @ k.double().transpose(-1, -2) * 12**-0.5).softmax(dim=-1) @ v.double()
    found = attention_by_blocks(q, k, v)
    assert found.dtype == torch.bfloat16 and found.shape == q.shape
    # Scores, shares, sums and the result are each rounded to 8 bits of mantissa.
    assert (found.double() - wanted).abs().max() <= 4 * 2.0**-8 * wanted.abs().max()


def test_large_scores_neither_overflow_nor_lose_the_winner() -> None:
    q = torch.full((1, 1, 3, 12), 30.0).bfloat16()
    k = torch.stack([torch.full((12,), s) for s in (30.0, -30.0, 29.0)])[None, None].bfloat16()
    v = torch.eye(3, 12)[None, None].bfloat16()
    found = attention_by_blocks(q, k, v)
    assert torch.isfinite(found).all() and (found[0, 0, :, 0] > 0.99).all()
