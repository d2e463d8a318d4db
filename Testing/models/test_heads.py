"""The small heads: their sizes, what they read, and how they start."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.heads import MatchHead, PooledHead, RestorationDecoder, WordHead


def test_the_restoration_decoder_has_the_published_widths_and_gives_one_voxel_back_per_voxel() -> None:
    shapes = [tuple(p.shape) for n, p in RestorationDecoder(768).named_parameters() if n.endswith("weight")]
    assert shapes == [(768, 384, 2, 2, 2), (384, 192, 2, 2, 2), (192, 96, 2, 2, 2), (96, 48, 2, 2, 2), (48, 1, 2, 2, 2)]
    assert RestorationDecoder(16)(torch.zeros(2, 16, 1, 2, 3)).shape == (2, 1, 32, 64, 96)


def test_the_restoration_decoder_is_linear_in_the_map_as_nothing_stands_between_its_layers() -> None:
    torch.manual_seed(0)
    decoder = RestorationDecoder(16).double()
    a, b, zero = torch.randn(1, 16, 1, 1, 1).double(), torch.randn(1, 16, 1, 1, 1).double(), torch.zeros(1, 16, 1, 1, 1).double()
    assert torch.allclose(decoder(a + b) - decoder(zero), decoder(a) + decoder(b) - 2 * decoder(zero))


def test_channels_that_cannot_be_halved_are_refused_with_the_setting_to_change() -> None:
    with pytest.raises(UsageError, match="halve the channels"):
        RestorationDecoder(24)


def test_the_word_head_is_linear_gelu_norm_linear_and_starts_as_bert_does() -> None:
    torch.manual_seed(0)
    head = WordHead(64, 500)
    x = torch.randn(3, 64)
    by_hand = functional.layer_norm(functional.gelu(x @ head.dense.weight.T), [64], eps=1e-12) @ head.words.weight.T
    assert torch.allclose(head(x), by_hand, atol=1e-6) and head(x).shape == (3, 500)
    assert abs(float(head.words.weight.detach().std()) - 0.02) < 0.001 and not head.words.bias.any()


def test_the_match_head_reads_only_the_first_token_and_the_pooled_head_the_mean_cell() -> None:
    torch.manual_seed(0)
    fused = torch.randn(2, 5, 8)
    other = torch.cat([fused[:, :1], torch.randn(2, 4, 8)], dim=1)
    match = MatchHead(8)
    assert torch.equal(match(fused), match(other)) and match(fused).shape == (2, 2)
    pooled = PooledHead(8, 4)
    top = torch.randn(2, 8, 2, 2, 2)
    assert torch.allclose(pooled(top), pooled(top.flip(2, 4)), atol=1e-6) and pooled(top).shape == (2, 4)
