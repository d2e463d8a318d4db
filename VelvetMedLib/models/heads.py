"""Small heads on shared features: masked words, match, global vectors of a map, and voxels from the top map."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from VelvetMedLib.errors import UsageError


class WordHead(nn.Module):
    """BERT's form of a word head (methods.md 2.4b): Linear, GELU, LayerNorm, Linear to the vocabulary, not tied to the embedding."""

    def __init__(self, width: int, vocab_size: int, *, norm_eps: float = 1e-12) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.words = nn.Linear(width, vocab_size)
        _bert_start(self)

    def forward(self, states: Tensor) -> Tensor:
        """[..., W] -> logits [..., V]."""
        return self.words(self.norm(functional.gelu(self.dense(states))))


class MatchHead(nn.Module):
    """Do image and text belong together? Linear on the fused state of [CLS]; logit 1 = yes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2)
        _bert_start(self)

    def forward(self, fused: Tensor) -> Tensor:
        """fused states [R, L, W] -> logits [R, 2]."""
        return self.linear(fused[:, 0])


class PooledHead(nn.Module):
    """Linear on the mean of a map."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, out)

    def forward(self, top: Tensor) -> Tensor:
        """[B, C, gx, gy, gz] -> [B, out]."""
        return self.linear(top.flatten(2).mean(dim=-1))


class RestorationDecoder(nn.Module):
    """Voxels from the top map alone: transposed convolutions of side and stride 2, nothing between them (methods.md 2.4c).

    768 -> 384 -> 192 -> 96 -> 48 -> 1 channels at the paper's sizes; in general halved until `doublings` are done.
    """

    def __init__(self, channels: int, *, doublings: int = 5, out_channels: int = 1) -> None:
        super().__init__()
        if channels % 2 ** (doublings - 1):
            raise UsageError(
                "The restoration decoder cannot halve the channels of the top map often enough.",
                found=f"{channels} channels, {doublings} doublings of the grid",
                expected=f"a multiple of {2 ** (doublings - 1)} channels",
                next_step="Choose SwinConfig.embed_dim so that 16 * embed_dim is such a multiple.",
            )
        widths = [channels >> step for step in range(doublings)] + [out_channels]
        self.layers = nn.Sequential(*(nn.ConvTranspose3d(a, b, kernel_size=2, stride=2) for a, b in pairwise(widths)))

    def forward(self, top: Tensor) -> Tensor:
        """[B, C, gx, gy, gz] -> [B, out_channels, gx * 2^doublings, ...]."""
        return self.layers(top)


def _bert_start(head: nn.Module) -> None:
    """N(0, 0.02) and zero bias, as BERT's own heads start."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
