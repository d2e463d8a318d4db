"""Primus: equal to a slow float64 computation cell by cell; positions of any grid and of kept cells; the released names and counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.primus import Primus, PrimusConfig, grid_cells, patches, rotary

SMALL = PrimusConfig(width=36, depth=2, heads=3, ffn=24, patch=2, drop_path=0.0)


def awake(config: PrimusConfig, seed: int = 0) -> Primus:
    """A float64 model of random numbers everywhere, so that no term can hide behind a zero or a one."""
    torch.manual_seed(seed)
    model = Primus(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


def slow_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    centred = x - x.mean()
    return centred / math.sqrt(float((centred**2).mean()) + 1e-5) * norm.weight + norm.bias


def slow_turn(x: Tensor, cell: tuple[int, int, int]) -> Tensor:
    """Rotate one head's channels: a third per axis, adjacent pairs, angle = index * 10000^(-k / pairs)."""
    out, third = x.clone(), len(x) // 3
    for axis in range(3):
        for k in range(third // 2):
            angle = cell[axis] * 10_000.0 ** (-k / (third // 2))
            a, b = axis * third + 2 * k, axis * third + 2 * k + 1
            out[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
            out[b] = x[b] * math.cos(angle) + x[a] * math.sin(angle)
    return out


def slow_block(block: torch.nn.Module, tokens: list[Tensor], cells: list[tuple[int, int, int]]) -> list[Tensor]:
    """One block, one token, one head, one key at a time."""
    attn, mlp, heads = block.attn, block.mlp, block.attn.heads
    normed = [slow_norm(t, block.norm1) for t in tokens]
    per_head = len(tokens[0]) // heads
    q, k, v = ([part(t) for t in normed] for part in (attn.q_proj, attn.k_proj, attn.v_proj))
    after = []
    for i, token in enumerate(tokens):
        joined = []
        for h in range(heads):
            part = slice(h * per_head, (h + 1) * per_head)
            asked = slow_turn(q[i][part], cells[i])
            scores = torch.stack([asked @ slow_turn(k[n][part], cells[n]) / math.sqrt(per_head) for n in range(len(tokens))])
            weights = scores.exp() / scores.exp().sum()
            joined.append(sum(w * v[n][part] for n, w in enumerate(weights)))
        after.append(token + block.gamma_1 * attn.proj(slow_norm(torch.cat(joined), attn.norm)))
    out = []
    for token in after:
        y = slow_norm(token, block.norm2)
        gate = mlp.fc1_g(y)
        hidden = gate / (1 + (-gate).exp()) * mlp.fc1_x(y)
        out.append(token + block.gamma_2 * mlp.fc2(slow_norm(hidden, mlp.norm)))
    return out


def slow_primus(model: Primus, x: Tensor, cells: list[tuple[int, int, int]]) -> Tensor:
    """States of the given cells of one volume [C, X, Y, Z], as if there were no others."""
    p, proj = model.config.patch, model.down_projection.proj
    tokens = []
    for cx, cy, cz in cells:
        cube = x[:, cx * p : cx * p + p, cy * p : cy * p + p, cz * p : cz * p + p]
        tokens.append((proj.weight * cube).sum(dim=(1, 2, 3, 4)) + proj.bias)
    for block in model.eva.blocks:
        tokens = slow_block(block, tokens, cells)
    return torch.stack([slow_norm(t, model.eva.norm) for t in tokens])


def all_cells(grid: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    return [(a, b, c) for a in range(grid[0]) for b in range(grid[1]) for c in range(grid[2])]


def test_the_map_equals_a_computation_of_one_token_and_one_key_at_a_time_on_a_grid_with_three_different_sides() -> None:
    model = awake(SMALL)
    x = torch.randn(2, 1, 4, 6, 8, dtype=torch.float64)
    with torch.no_grad():
        found = model(x)
        wanted = torch.stack([slow_primus(model, volume, all_cells((2, 3, 4))) for volume in x])
    assert found.shape == (2, 36, 2, 3, 4)
    torch.testing.assert_close(found, wanted.transpose(1, 2).unflatten(2, (2, 3, 4)), rtol=1e-9, atol=1e-9)


def test_kept_cells_are_encoded_as_if_the_others_did_not_exist_and_keep_their_true_places() -> None:
    model = awake(SMALL)
    x = torch.randn(2, 1, 4, 6, 8, dtype=torch.float64)
    kept = torch.tensor([[23, 0, 7, 12], [5, 6, 18, 1]])
    cells = all_cells((2, 3, 4))
    with torch.no_grad():
        found = model.forward_kept(x, kept)
        wanted = torch.stack([slow_primus(model, x[b], [cells[n] for n in kept[b]]) for b in range(2)])
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_all_cells_kept_is_the_whole_map() -> None:
    model = awake(SMALL)
    x = torch.randn(2, 1, 4, 6, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_kept(x, torch.arange(24).expand(2, -1)), model(x).flatten(2).transpose(1, 2))


def test_voxels_of_dropped_cells_have_no_influence() -> None:
    model = awake(SMALL)
    x = torch.randn(1, 1, 4, 6, 8, dtype=torch.float64, requires_grad=True)
    kept = torch.tensor([[2, 9, 20]])
    model.forward_kept(x, kept).square().sum().backward()
    touched = patches(x.grad, 2)[0].abs().sum(dim=-1) > 0
    assert touched.nonzero().flatten().tolist() == [2, 9, 20]


def test_the_score_of_two_cells_depends_on_their_distance_alone() -> None:
    """The property for which rotary positions exist, on every axis."""
    torch.manual_seed(0)
    q, k = torch.randn(24, dtype=torch.float64), torch.randn(24, dtype=torch.float64)

    def score(a: tuple[int, int, int], b: tuple[int, int, int]) -> Tensor:
        places = rotary(torch.tensor([a, b]), 24, dtype=torch.float64)
        turned = places.turn(torch.stack([q, k]))
        return turned[0] @ turned[1]

    torch.testing.assert_close(score((5, 2, 9), (3, 7, 1)), score((15, 12, 10), (13, 17, 2)))
    assert abs(score((5, 2, 9), (3, 7, 1)) - score((5, 2, 9), (7, 3, 1))) > 1e-3


def test_the_patch_projection_is_the_convolution_whose_names_it_has() -> None:
    model = awake(SMALL)
    x = torch.randn(2, 1, 4, 6, 8, dtype=torch.float64)
    proj = model.down_projection.proj
    wanted = functional.conv3d(x, proj.weight, proj.bias, stride=2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.down_projection(patches(x, 2)), wanted)


def test_cells_are_numbered_with_the_first_axis_slowest() -> None:
    assert grid_cells((2, 1, 3)).tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [1, 0, 0], [1, 0, 1], [1, 0, 2]]


def test_recomputed_activations_change_neither_the_map_nor_a_gradient() -> None:
    x = torch.randn(1, 1, 4, 4, 4, dtype=torch.float64)
    gradients = []
    for recompute in (False, True):
        model = awake(SMALL).train()
        model.recompute_activations = recompute
        model(x).square().sum().backward()
        gradients.append(model.eva.blocks[0].attn.q_proj.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_dropped_path_leaves_whole_samples_without_the_branch_only_while_training_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    config = PrimusConfig(width=36, depth=3, heads=3, ffn=24, patch=2, drop_path=0.5)
    model = Primus(config)
    assert [block.drop_path for block in model.eva.blocks] == [0.0, 0.25, 0.5]
    block = model.eva.blocks[2]
    branch = torch.ones(4000, 2, 3)
    assert torch.equal(block.eval()._dropped(branch), branch)
    seen = block.train()._dropped(branch)
    assert set(seen.unique().tolist()) == {0.0, 2.0} and torch.equal(seen, seen[:, :1, :1].expand_as(seen))
    assert abs(float(seen.mean()) - 1.0) < 0.06


def test_the_published_size_has_the_released_number_of_tensors_names_and_numbers() -> None:
    with torch.device("meta"):
        state = Primus(PrimusConfig.paper()).state_dict()
    block = {"gamma_1", "gamma_2", "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"}
    block |= {f"attn.{n}.{kind}" for n in ("q_proj", "v_proj", "norm", "proj") for kind in ("weight", "bias")} | {"attn.k_proj.weight"}
    block |= {f"mlp.{n}.{kind}" for n in ("fc1_g", "fc1_x", "norm", "fc2") for kind in ("weight", "bias")}
    around = {"mask_token", "down_projection.proj.weight", "down_projection.proj.bias", "eva.norm.weight", "eva.norm.bias"}
    assert set(state) == around | {f"eva.blocks.{i}.{name}" for i in range(16) for name in block}
    assert sum(t.numel() for name, t in state.items() if name != "mask_token") == 144_085_536
    assert tuple(state["eva.blocks.3.mlp.fc2.weight"].shape) == (864, 2304)


def test_an_input_that_cannot_be_cut_into_patches_is_refused_in_words() -> None:
    model = Primus(SMALL)
    with pytest.raises(UsageError, match="multiples of 2"):
        model(torch.zeros(1, 1, 4, 5, 4))
    with pytest.raises(UsageError, match=r"\[batch, 1"):
        model(torch.zeros(1, 2, 4, 4, 4))


def test_heads_too_narrow_for_three_axes_are_refused() -> None:
    with pytest.raises(UsageError, match="multiple of 6"):
        PrimusConfig(width=32, heads=4)
