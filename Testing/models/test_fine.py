"""The fine network: shapes, size, sight of single voxels, and settings that check themselves."""

from __future__ import annotations

import pytest
import torch

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.fine import FineConfig, FineNet, InstanceNorm

SMALL = FineConfig(channels=(8, 16, 24, 32), feature_channels=16, full_channels=8, head_channels=16)


def test_outputs_have_the_grid_of_the_input_and_features_have_half_of_it() -> None:
    out = FineNet(SMALL).eval()(torch.rand(2, 2, 32, 16, 48))
    assert out.organ_logits.shape == (2, 33, 32, 16, 48)
    assert out.lesion_logits.shape == (2, 17, 32, 16, 48)
    assert out.features.shape == (2, 16, 16, 8, 24)


def test_the_default_network_fits_its_share_of_the_bundle() -> None:
    net = FineNet(FineConfig())
    assert 2.5e6 < sum(p.numel() for p in net.parameters()) < 3.0e6
    assert net.config.feature_channels == 48 and net.config.stride == 16


def test_a_lesion_logit_feels_a_single_voxel_and_its_position() -> None:
    torch.manual_seed(0)
    net = FineNet(SMALL).eval()
    x = torch.full((1, 2, 32, 32, 32), 0.3)
    dot = x.clone()
    dot[:, :, 17, 12, 9] = 0.9
    with torch.no_grad():
        moved = (net(dot).lesion_logits - net(x).lesion_logits).abs().sum(dim=(0, 1))
    peak = torch.unravel_index(moved.argmax(), moved.shape)
    assert max(abs(int(p) - q) for p, q in zip(peak, (17, 12, 9), strict=True)) <= 2


def test_lesions_are_rare_before_anything_is_learnt() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        assert FineNet(SMALL)(torch.rand(1, 2, 32, 32, 32)).lesion_logits.sigmoid().mean() < 0.02


@pytest.mark.parametrize("shape", [(1, 2, 30, 32, 32), (1, 1, 32, 32, 32), (2, 32, 32, 32)])
def test_an_input_that_does_not_fit_is_refused_with_the_expected_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="multiples of 16"):
        FineNet(SMALL)(torch.rand(shape))


def test_settings_survive_a_dictionary_and_name_what_is_wrong() -> None:
    assert FineConfig.from_dict(SMALL.to_dict()) == SMALL
    with pytest.raises(UsageError, match="depth"):
        FineConfig.from_dict({"depth": 3})
    with pytest.raises(UsageError, match=r"FineConfig\.channels"):
        FineConfig(channels=(24, 50))


def test_bfloat16_autocast_and_gradients_reach_every_parameter() -> None:
    net = FineNet(SMALL)
    # The deepest grid has two cells a side, where torch's own kernel may read what was there before.
    dirty = [torch.full((n,), float("nan")) for n in (1_000, 30_000, 200_000, 1_000_000)]
    del dirty
    with torch.autocast("cpu", torch.bfloat16):
        out = net(torch.rand(1, 2, 32, 32, 32))
    (out.organ_logits.float().mean() + out.lesion_logits.float().mean() + out.features.float().mean()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_instance_norm_equals_torchs_own_in_output_and_gradient() -> None:
    torch.manual_seed(0)
    ours, theirs = InstanceNorm(5), torch.nn.InstanceNorm3d(5, affine=True)
    with torch.no_grad():
        for parameter in (*ours.parameters(), *theirs.parameters()):
            parameter.copy_(torch.linspace(0.5, 1.5, 5))
    x = torch.randn(3, 5, 4, 3, 6)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours(a).square().sum().backward()
    theirs(b).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_the_smallest_tile_runs_although_its_deepest_level_is_one_voxel() -> None:
    out = FineNet(SMALL).eval()(torch.rand(1, 2, 16, 16, 16))
    assert torch.isfinite(out.organ_logits).all()
