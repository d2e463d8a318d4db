"""The Swin pyramid: equal to MONAI in value and gradient, bias geometry equal to a slow loop, published sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models import swin
from VelvetMedLib.models.swin import LEGACY_OCTANTS, OCTANTS, SwinConfig, SwinEncoder, from_monai, relative_index, shift_mask


def config(**changes: Any) -> SwinConfig:
    return SwinConfig(**({"embed_dim": 8, "depths": (2, 2, 2, 2), "heads": (2, 2, 2, 2)} | changes))


def monai_twin(ours: SwinEncoder) -> nn.Module:
    """MONAI's network with the same numbers; its pre-2025 merge is rebuilt here, since the release no longer has it."""
    pytest.importorskip("einops", reason="MONAI needs it for its Swin")
    swin_unetr = pytest.importorskip("monai.networks.nets.swin_unetr", reason="MONAI is the oracle")
    cfg = ours.config

    class OldMerging(swin_unetr.PatchMergingV2):  # type: ignore[misc, name-defined]
        def forward(self, x: Tensor) -> Tensor:
            octants = ["000", "100", "010", "001", "101", "010", "001", "111"]
            return self.reduction(self.norm(torch.cat([x[:, int(o[0]) :: 2, int(o[1]) :: 2, int(o[2]) :: 2] for o in octants], -1)))

    theirs = swin_unetr.SwinTransformer(
        in_chans=cfg.in_channels,
        embed_dim=cfg.embed_dim,
        window_size=(cfg.window,) * 3,
        patch_size=(cfg.patch,) * 3,
        depths=cfg.depths,
        num_heads=cfg.heads,
        downsample=OldMerging if cfg.legacy_merging else "merging",
    )
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected and all(name.endswith("relative_position_index") for name in missing)
    return theirs


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"window": 4}, (64, 32, 32)),
        ({"window": 4, "legacy_merging": True}, (32, 32, 64)),
        ({"window": 7, "legacy_relative_index": True}, (32, 32, 64)),
        ({"window": 7, "legacy_relative_index": True, "legacy_merging": True}, (32, 32, 32)),
    ],
)
def test_outputs_and_gradients_equal_monai(changes: dict[str, Any], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    # A shrunk grid reads the bias differently unless told to follow MONAI; with window 4 the grids of 2 cells do so too.
    ours = SwinEncoder(config(**({"legacy_relative_index": True} | changes)))
    with torch.no_grad():
        for name, p in ours.named_parameters():
            if "bias" in name:
                p.normal_(std=0.3)
    theirs = monai_twin(ours)
    x = torch.rand(2, 1, *shape)
    a, b = ours(x), theirs(x)
    for m, n in zip(a, b, strict=True):
        torch.testing.assert_close(m, n, atol=2e-4, rtol=1e-3)
    weights = [torch.randn_like(m) for m in a]
    sum((m * w).sum() for m, w in zip(a, weights, strict=True)).backward()
    sum((m * w).sum() for m, w in zip(b, weights, strict=True)).backward()
    their_gradients = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        assert p.grad is not None
        scale = float(p.grad.abs().max()) + 1e-6
        torch.testing.assert_close(p.grad / scale, their_gradients[name].grad / scale, atol=2e-3, rtol=0)


def test_bfloat16_autocast_stays_close_to_float32() -> None:
    torch.manual_seed(0)
    net = SwinEncoder(config())
    x = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        exact = net(x)[-1]
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(x)[-1]
    assert (exact - rough.float()).abs().mean() < 0.05


def test_the_bias_of_a_shrunk_window_follows_true_cell_distances() -> None:
    window, table = (6, 3, 2), 7
    index = relative_index(window, table, False, "cpu")
    cells = list(itertools.product(*(range(s) for s in window)))
    for p, q in [(0, 1), (5, 9), (35, 0), (17, 30), (3, 3)]:
        dx, dy, dz = (cells[p][a] - cells[q][a] + table - 1 for a in range(3))
        assert int(index[p, q]) == (dx * 13 + dy) * 13 + dz
    assert not torch.equal(index, relative_index(window, table, True, "cpu"))
    assert torch.equal(relative_index((7, 7, 7), 7, False, "cpu"), relative_index((7, 7, 7), 7, True, "cpu"))


def test_cells_that_only_the_roll_brought_together_are_kept_apart() -> None:
    grid, window, shift = (8, 4, 8), (4, 4, 4), (2, 0, 2)
    mask = shift_mask(grid, window, shift, "cpu")
    assert mask.shape == (4, 64, 64)
    cells = list(itertools.product(range(4), repeat=3))
    for w, (i, k) in enumerate(itertools.product(range(2), range(2))):
        for p, q in itertools.product(range(0, 64, 5), range(64)):
            wrapped = [(i * 4 + cells[n][0] >= 6, k * 4 + cells[n][2] >= 6) for n in (p, q)]
            assert (mask[w, p, q] == 0) == (wrapped[0] == wrapped[1])


def test_the_merge_reads_every_octant_once_and_the_legacy_merge_misses_two() -> None:
    assert len(set(OCTANTS)) == 8
    assert len(set(LEGACY_OCTANTS)) == 6 and set(OCTANTS) - set(LEGACY_OCTANTS) == {(1, 1, 0), (0, 1, 1)}


def test_the_paper_setting_has_the_published_size_and_output_widths() -> None:
    with torch.device("meta"):
        net = SwinEncoder(SwinConfig.paper())
    assert sum(p.numel() for p in net.parameters()) == 22_853_112
    assert net.config.widths == (48, 96, 192, 384, 768) and net.config.stride == 32


def test_the_tiny_setting_gives_levels_of_8_64_and_512_cells_with_unit_channel_statistics() -> None:
    maps = SwinEncoder(SwinConfig.tiny()).eval()(torch.rand(1, 1, 64, 64, 64))
    assert [m.flatten(2).shape[-1] for m in maps] == [32**3, 16**3, 512, 64, 8]
    for m in maps:
        torch.testing.assert_close(m.mean(dim=1), torch.zeros_like(m[:, 0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1, 64, 64, 48), (1, 2, 32, 32, 32), (32, 32, 32)])
def test_sides_that_are_not_multiples_of_32_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="multiples of 32"):
        SwinEncoder(config())(torch.rand(shape))


def test_recomputed_activations_and_a_run_without_gradients_before_change_no_gradient() -> None:
    torch.manual_seed(0)
    net = SwinEncoder(config())
    x = torch.rand(1, 1, 32, 32, 64)
    with torch.inference_mode():
        net(x)
    gradients = []
    for recompute in (False, True):
        net.recompute_activations = recompute
        net.zero_grad()
        net(x)[-1].square().sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def attention_inputs(windows: int, heads: int, n: int, width: int, *, per_window: bool, kind: torch.dtype) -> list[Tensor]:
    """q, k, v [batch, heads, n, width] and scores [1, heads, n, n], or one mask per window as in a shifted grid; all want gradients."""
    torch.manual_seed(5)
    batch, rows = (3, windows * heads) if per_window else (3 * windows, heads)
    scores = torch.randn(1, rows, n, n)
    if per_window:
        scores[:, : rows // 2, : n // 2, n // 2 :] += swin.APART
    return [x.to(kind).requires_grad_() for x in (*(2 * torch.randn(3, batch, rows, n, width)), scores)]


def value_and_gradients(attention: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    out = attention(*inputs)
    torch.manual_seed(6)
    return [out.detach(), *torch.autograd.grad(out, inputs, torch.randn(out.shape).to(out.dtype))]


def fused(q: Tensor, k: Tensor, v: Tensor, scores: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=scores)


@pytest.mark.parametrize("per_window", [False, True], ids=["one bias for all windows", "a mask for each window"])
@pytest.mark.parametrize("n", [8, 27, 64])
def test_attention_spelt_out_for_training_equals_torchs_in_value_and_every_gradient(n: int, per_window: bool) -> None:
    inputs = attention_inputs(4, 2, n, 12, per_window=per_window, kind=torch.float64)
    ours = value_and_gradients(swin._biased_attention, inputs)
    for a, b in zip(ours, value_and_gradients(fused, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    if per_window:
        # A pair that is kept apart has a weight of e^-100: nothing passes between the two.
        assert float(ours[4][0, 0, 0, n // 2 :].abs().max()) < 1e-40


@pytest.mark.parametrize("per_window", [False, True], ids=["one bias for all windows", "a mask for each window"])
def test_in_bfloat16_the_spelt_out_attention_is_within_two_percent_of_the_exact_one(per_window: bool) -> None:
    inputs = attention_inputs(4, 2, 64, 12, per_window=per_window, kind=torch.bfloat16)
    exact = value_and_gradients(fused, [x.detach().double().requires_grad_() for x in inputs])
    # The whole tensor's error: bfloat16 has 8 bits, so single numbers near zero may be off by more than themselves.
    for ours, torchs, true in zip(
        value_and_gradients(swin._biased_attention, inputs), value_and_gradients(fused, inputs), exact, strict=True
    ):
        assert ours.dtype == torch.bfloat16
        error, theirs = (float((x.double() - true).norm() / true.norm()) for x in (ours, torchs))
        assert error < 0.02 and theirs < 0.02


def test_the_spelt_out_attention_is_for_training_on_a_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    fused_calls = []
    plain = functional.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        fused_calls.append(1)
        return plain(*args, **kwargs)

    monkeypatch.setattr(swin.functional, "scaled_dot_product_attention", counted)
    net, x = SwinEncoder(config()), torch.rand(1, 1, 32, 32, 32)
    trained = net(x)
    assert not fused_calls
    with torch.no_grad():
        used = net(x)
    assert len(fused_calls) == 8, "one call for each of the eight blocks"
    with torch.inference_mode():
        net(x)
    frozen = SwinEncoder(config()).requires_grad_(False)
    frozen(x.requires_grad_())
    assert len(fused_calls) == 24, "no gradient is wanted of a frozen bias"
    for a, b in zip(trained, used, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_weights_of_a_swin_unetr_load_and_the_rest_is_dropped() -> None:
    net = SwinEncoder(config())
    foreign = {f"module.swinViT.{k}": v for k, v in net.state_dict().items()}
    foreign["module.swinViT.layers1.0.blocks.0.attn.relative_position_index"] = torch.zeros(64, 64)
    foreign["module.decoder.weight"] = torch.zeros(1)
    net.load_state_dict(from_monai(foreign), strict=True)


def test_settings_survive_a_dictionary_and_name_what_is_wrong() -> None:
    assert SwinConfig.from_dict(SwinConfig.paper().to_dict()) == SwinConfig.paper()
    with pytest.raises(UsageError, match=r"SwinConfig\.heads"):
        SwinConfig(embed_dim=10, heads=(3, 4, 8, 16))
    with pytest.raises(UsageError, match=r"SwinConfig\.depths"):
        SwinConfig(depths=(2, 2))
