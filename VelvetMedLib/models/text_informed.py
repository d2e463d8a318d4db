"""Text-informed image features: image tokens query report tokens through gates that start closed (methods.md 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from VelvetMedLib.models.attention import Attention, feed_forward
from VelvetMedLib.models.config import Settings


@dataclass(frozen=True, kw_only=True)
class TextInformedConfig(Settings):
    """Settings of `TextInformed`.

    channels: of the image tokens (the top map of the vision encoder). text_width: of the report tokens. blocks: gated
    blocks one after the other. projection_dim: length of the vectors that are compared.
    """

    channels: int
    text_width: int
    heads: int = 8
    blocks: int = 2
    ffn_ratio: int = 4
    projection_dim: int = 256

    def __post_init__(self) -> None:
        for name in ("channels", "text_width", "heads", "blocks", "ffn_ratio", "projection_dim"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.channels % self.heads == 0, "heads", f"a divisor of the {self.channels} channels")


class GatedBlock(nn.Module):
    """X' = X + tanh(g) CrossAttention(LN(X), T);  X'' = X' + tanh(g2) FFN(LN(X')).  g, g2: scalars, held by `TextInformed`.

    Source of the gates: Flamingo (Alayrac et al. 2022). Every image token is treated by itself: how many stand in a row
    changes nothing for any of them.
    """

    def __init__(self, config: TextInformedConfig) -> None:
        super().__init__()
        self.cross_norm = nn.LayerNorm(config.channels)
        self.cross = Attention(config.channels, config.heads, memory_width=config.text_width)
        self.ffn_norm = nn.LayerNorm(config.channels)
        self.ffn = feed_forward(config.channels, config.ffn_ratio * config.channels, 0.0)

    def forward(self, x: Tensor, text: Tensor, may_read: Tensor, cross_gate: Tensor, ffn_gate: Tensor) -> Tensor:
        """x: [B, N, C]; text: [B, L, W]; may_read: bool [B, L]; gates: g and g2, scalars."""
        x = x + cross_gate.tanh() * self.cross(self.cross_norm(x), text, may_read[:, None, None, :])
        return x + ffn_gate.tanh() * self.ffn(self.ffn_norm(x))


class TextInformed(nn.Module):
    """Image tokens that have read a report, and the common space in which they are compared.

    Where no token of the report may be read (text dropout, an empty report, no text at hand) one learned null token
    stands in its place. The gates of all blocks, which start closed, lie here beside one another: a block is used only by calling it.
    """

    def __init__(self, config: TextInformedConfig) -> None:
        super().__init__()
        self.config = config
        self.null_token = nn.Parameter(torch.randn(config.text_width) * 0.02)
        self.blocks = nn.ModuleList(GatedBlock(config) for _ in range(config.blocks))
        self.cross_gate = nn.Parameter(torch.zeros(config.blocks))
        self.ffn_gate = nn.Parameter(torch.zeros(config.blocks))
        self.projection = nn.Sequential(
            nn.Linear(config.channels, config.channels), nn.GELU(), nn.Linear(config.channels, config.projection_dim)
        )

    def forward(self, x: Tensor, text: Tensor, kept: Tensor) -> Tensor:
        """X'' [B, N, C] of image tokens x [B, N, C] and report tokens text [B, L, W].

        kept: bool [B, L], the tokens that may be read; a row without any reads the null token. Image tokens do not see
        one another, so those of many images that read one text may stand in one row.
        """
        null = self.null_token.to(text.dtype).expand(len(text), 1, -1)
        text = torch.cat([null, text], dim=1)
        kept = kept.bool()
        may_read = torch.cat([~kept.any(dim=1, keepdim=True), kept], dim=1)
        for n, block in enumerate(self.blocks):
            x = block(x, text, may_read, self.cross_gate[n], self.ffn_gate[n])
        return x

    def without_text(self, x: Tensor) -> Tensor:
        """As `forward` where nothing may be read: [B, N, C] -> [B, N, C]."""
        nothing = x.new_zeros(len(x), 1, self.config.text_width)
        return cast(Tensor, self(x, nothing, torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)))

    def project(self, x: Tensor) -> Tensor:
        """Unit vectors, float32 (float64 where the model is): MLP of the mean over tokens, [..., N, C] -> [..., projection_dim]."""
        made = self.projection(x.mean(dim=-2))
        return functional.normalize(made if made.dtype == torch.float64 else made.float(), dim=-1)

    def gates(self) -> Tensor:
        """Mean of |tanh g| over the text gates: 0 = the report has no effect."""
        return self.cross_gate.tanh().abs().mean()


def cells(feature_map: Tensor) -> Tensor:
    """A map [B, C, X, Y, Z] as tokens [B, N, C], first axis slowest."""
    return feature_map.flatten(2).transpose(1, 2)


def as_map(tokens: Tensor, grid: torch.Size | tuple[int, ...]) -> Tensor:
    """Inverse of `cells`: [B, N, C] -> [B, C, *grid]."""
    return tokens.transpose(1, 2).unflatten(2, tuple(grid))
