"""The segmentation network equals MONAI's SwinUNETR in value and gradient, name by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.image_encoders import take_over
from VelvetMedLib.models.swin import SwinConfig, SwinEncoder
from VelvetMedLib.models.swin_unetr import SwinUnetr, SwinUnetrConfig, instance_norm


def made(classes: int = 3, **changes: Any) -> SwinUnetr:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"embed_dim": 12, "depths": (1, 1, 1, 2), "heads": (1, 2, 4, 8), "window": 7, "legacy_relative_index": True}
    net = SwinUnetr(SwinUnetrConfig(swin=SwinConfig(**(settings | changes)), classes=classes))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    return net


def test_logits_and_gradients_equal_monai_and_all_names_agree() -> None:
    pytest.importorskip("einops", reason="MONAI needs it for its Swin")
    nets = pytest.importorskip("monai.networks.nets", reason="MONAI is the oracle")
    ours = made()
    theirs = nets.SwinUNETR(1, 3, depths=(1, 1, 1, 2), num_heads=(1, 2, 4, 8), feature_size=12)
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected and all(name.endswith("relative_position_index") for name in missing)
    x = torch.rand(1, 1, 32, 32, 64)
    a, b = ours(x), theirs(x)
    assert a.shape == (1, 3, 32, 32, 64)
    torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
    weight = torch.randn_like(a)
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    other = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        assert p.grad is not None, name
        scale = float(p.grad.abs().max()) + 1e-3
        torch.testing.assert_close(p.grad / scale, other[name].grad / scale, atol=5e-3, rtol=0, msg=name)


def test_a_single_voxel_at_the_bottom_has_no_spread_and_the_network_still_runs() -> None:
    assert made(window=2)(torch.rand(1, 1, 32, 32, 32)).isfinite().all()
    x = torch.randn(2, 3, 4, 1, 2)
    torch.testing.assert_close(instance_norm(x), functional.instance_norm(x))
    assert (instance_norm(torch.rand(2, 3, 1, 1, 1)) == 0).all()


def test_bfloat16_gradients_stay_close_to_float32_down_to_grids_of_two_cells_whatever_memory_held_before() -> None:
    net, x = made(window=2), torch.rand(1, 1, 64, 32, 32)
    gradients = []
    for bf16 in (False, True, True):
        # What the allocator hands out next is full of huge numbers: memory that is read before it is written shows.
        dirty = [torch.full((n,), 3e30) for n in (1_000, 30_000, 200_000, 1_000_000)]
        del dirty
        net.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = net(x)
        logits.float().log_softmax(1)[:, 1].mean().backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    exact = gradients[0]
    largest = max(float(g.abs().max()) for g in exact.values())
    for rough in gradients[1:]:
        for name, g in exact.items():
            assert float((rough[name] - g).abs().max()) < 0.1 * largest, name


def test_an_encoder_is_loaded_strictly_and_whole_or_not_at_all() -> None:
    net = made()
    other = SwinEncoder(net.config.swin)
    take_over(net.encoder, other.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(net.swinViT.parameters(), other.parameters(), strict=True))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    tensors = dict(made().swinViT.state_dict())
    tensors["layers2.0.blocks.0.norm1.bias"] = torch.zeros(5)
    with pytest.raises(UsageError, match=r"layers2\.0\.blocks\.0\.norm1\.bias"):
        take_over(net.encoder, tensors)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_settings_survive_a_dictionary_and_refuse_no_class() -> None:
    config = SwinUnetrConfig(swin=SwinConfig.paper(), classes=14)
    assert SwinUnetrConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UsageError, match=r"SwinUnetrConfig\.classes"):
        SwinUnetrConfig(classes=0)
