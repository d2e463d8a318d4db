"""Primus with its published decoder: widths, what the encoder sees, and that it can learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.primus import PrimusConfig
from VelvetMedLib.models.primus_segmenter import ChannelNorm, PrimusSegmenter, PrimusSegmenterConfig

MICRO = PrimusConfig(width=24, depth=1, heads=2, ffn=32, drop_path=0.0)


def test_the_decoder_has_the_published_widths() -> None:
    # (864 / (2 * 3)) ** (1 / 3) = 5.24; 864 / 5.24 = 164.8 and 864 / 5.24^2 = 31.4, to multiples of 8.
    assert PrimusSegmenterConfig(image=PrimusConfig.paper(), classes=3).widths == (864, 168, 32, 3)
    with pytest.raises(UsageError, match=r"PrimusSegmenterConfig\.image"):
        PrimusSegmenterConfig(image=PrimusConfig(patch=6), classes=2)


def test_the_norm_is_a_layer_norm_over_channels_voxel_by_voxel() -> None:
    x = torch.randn(2, 5, 3, 2, 4, dtype=torch.float64)
    norm = ChannelNorm(5).double()
    with torch.no_grad():
        norm.weight.copy_(torch.rand(5))
        norm.bias.copy_(torch.rand(5))
    voxel = x[1, :, 2, 0, 3]
    expected = (voxel - voxel.mean()) / (voxel.var(unbiased=False) + 1e-6).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(x)[1, :, 2, 0, 3], expected)


def test_every_voxel_gets_logits_and_the_encoder_reads_minus_one_to_one() -> None:
    torch.manual_seed(0)
    net = PrimusSegmenter(PrimusSegmenterConfig(image=MICRO, classes=3))
    seen: list[Tensor] = []

    def note(_: Any, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0])

    net.encoder.register_forward_pre_hook(note)
    x = torch.rand(1, 1, 16, 24, 32)
    assert net(x).shape == (1, 3, 16, 24, 32)
    torch.testing.assert_close(seen[0], 2 * x - 1)


def test_it_learns_to_tell_bright_from_dark_inside_a_patch() -> None:
    torch.manual_seed(0)
    net = PrimusSegmenter(PrimusSegmenterConfig(image=MICRO, classes=2))
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    x = torch.nn.functional.interpolate((torch.rand(2, 1, 4, 4, 4) > 0.5).float(), scale_factor=4)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), x[:, 0].long())
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
