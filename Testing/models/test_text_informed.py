"""The text-informed block: gates that start closed, the null token, and tokens that do not see one another."""

from __future__ import annotations

import pytest
import torch

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.t3d import T3dConfig, T3dModel
from VelvetMedLib.models.text_informed import TextInformed, TextInformedConfig, as_map, cells
from VelvetMedLib.models.tribert import TriBertConfig


def made(gate: float | None = 0.6) -> TextInformed:
    torch.manual_seed(0)
    block = TextInformed(TextInformedConfig(channels=8, text_width=6, heads=2, ffn_ratio=2, projection_dim=5)).double()
    if gate is not None:
        with torch.no_grad():
            for p in (block.cross_gate, block.ffn_gate):
                p.fill_(gate)
    return block


def inputs(rows: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    kept = torch.tensor([[True, True, False, True], [False, True, False, False], [False, False, False, False]])
    x, text = (torch.randn(rows, n, w, generator=draw, dtype=torch.float64) for n, w in ((4, 8), (4, 6)))
    return x, text, kept[:rows]


def test_a_new_block_changes_nothing_whatever_it_reads() -> None:
    x, text, kept = inputs()
    block = made(gate=None)
    assert torch.equal(block(x, text, kept), x) and torch.equal(block.without_text(x), x) and float(block.gates().detach()) == 0


def test_closed_gates_still_have_a_gradient_so_that_they_can_open() -> None:
    x, text, kept = inputs()
    block = made(gate=None)
    block.project(block(x, text, kept)).square()[..., 0].sum().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in block.named_parameters() if name.endswith("gate"))


def test_only_the_text_gate_lets_text_in() -> None:
    x, text, kept = inputs()
    block = made()
    with torch.no_grad():
        block.cross_gate.zero_()
    assert torch.equal(block(x, text, kept), block(x, torch.randn_like(text), ~kept)) and not torch.equal(block(x, text, kept), x)


def test_tokens_that_may_not_be_read_have_no_effect_and_those_that_may_have_one() -> None:
    x, text, kept = inputs()
    block, noise = made(), torch.randn_like(text)
    assert torch.allclose(block(x, text, kept), block(x, torch.where(kept[..., None], text, noise), kept), rtol=1e-12)
    assert not torch.allclose(block(x, text, kept)[0], block(x, torch.where(kept[..., None], noise, text), kept)[0])


def test_a_row_that_may_read_nothing_reads_the_null_token_alone() -> None:
    x, text, kept = inputs()
    block = made()
    assert torch.allclose(block(x, text, kept)[2], block.without_text(x)[2], rtol=1e-12)
    null = block.null_token[None, None].expand(3, 1, 6)
    assert torch.allclose(block.without_text(x), block(x, null, torch.ones(3, 1, dtype=torch.bool)), rtol=1e-12)


def test_image_tokens_do_not_see_one_another_so_images_that_read_one_text_may_share_a_row() -> None:
    x, text, kept = inputs()
    block = made()
    row = block(x.reshape(1, 12, 8), text[:1], kept[:1]).reshape(3, 4, 8)
    each = torch.cat([block(one[None], text[:1], kept[:1]) for one in x])
    assert torch.allclose(row, each, rtol=1e-12)
    made_unit = block.project(row)
    assert torch.allclose(made_unit, block.project(each)) and torch.allclose(made_unit.norm(dim=-1), torch.ones(3).double())


def test_cells_go_there_and_back_with_the_first_axis_slowest() -> None:
    top = torch.arange(2 * 3 * 2 * 4 * 5.0).reshape(2, 3, 2, 4, 5)
    assert torch.equal(as_map(cells(top), top.shape[2:]), top)
    assert torch.equal(cells(top)[1, (1 * 4 + 2) * 5 + 3], top[1, :, 1, 2, 3])


def test_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(UsageError, match="heads"):
        TextInformedConfig(channels=10, text_width=6, heads=4)
    text = TriBertConfig(vocab_size=90, width=12, heads=3, ffn=16, text_layers=1, fusion_layers=0)
    with pytest.raises(UsageError, match="text_informed"):
        T3dConfig(tribert=text, text_informed=TextInformedConfig(channels=384, text_width=6))
    config = T3dConfig(tribert=text, text_informed=TextInformedConfig(channels=384, text_width=12))
    assert T3dConfig.from_dict(config.to_dict()) == config and not hasattr(T3dModel(config), "image_projection")
