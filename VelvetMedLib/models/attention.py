"""Multi-head attention on torch's fused kernel, and the pre-norm blocks that the reader and the decoder are made of."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

KeyValue: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values, each [B, heads, N, width / heads]."""


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(width / heads)) V with bias in all four maps; queries `[B, L, W]`, keys from `[B, N, W_kv]`.

    Masks are boolean, True = may attend, broadcastable to `[B, heads, L, N]`. A row that may attend to nothing
    attends to everything instead of giving NaN; its result must not be read.
    """

    def __init__(self, width: int, heads: int, *, memory_width: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(memory_width or width, width)
        self.value = nn.Linear(memory_width or width, width)
        self.out = nn.Linear(width, width)

    def keys_values(self, memory: Tensor) -> KeyValue:
        """Projected keys and values of `memory` [B, N, W_kv], to be kept by a caller that attends to it repeatedly."""
        return self._split(self.key(memory)), self._split(self.value(memory))

    def attend(self, x: Tensor, memory: KeyValue, mask: Tensor | None) -> Tensor:
        """x: [B, L, W] -> [B, L, W]."""
        if mask is not None:
            mask = mask | ~mask.any(dim=-1, keepdim=True)
        keys, values = memory
        mixed = functional.scaled_dot_product_attention(
            self._split(self.query(x)), keys, values, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Self-attention without `memory`, cross-attention with it."""
        return self.attend(x, self.keys_values(x if memory is None else memory), mask)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def feed_forward(width: int, hidden: int, dropout: float) -> nn.Sequential:
    """Linear, GELU, Linear."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width), nn.Dropout(dropout))


class EncoderBlock(nn.Module):
    """x + SelfAttention(LN x), then x + FFN(LN x)."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout=dropout)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = feed_forward(width, hidden, dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: [B, N, W]; mask: broadcastable to [B, heads, N, N], True = may attend."""
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.ffn(self.ffn_norm(x))


class DecoderBlock(nn.Module):
    """x + SelfAttention(LN x), x + CrossAttention(LN x, memory), x + FFN(LN x)."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout=dropout)
        self.cross_norm = nn.LayerNorm(width)
        self.cross = Attention(width, heads, dropout=dropout)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = feed_forward(width, hidden, dropout)

    def forward(
        self, x: Tensor, mask: Tensor, memory: KeyValue, memory_mask: Tensor, past: KeyValue | None = None
    ) -> tuple[Tensor, KeyValue]:
        """x: [B, L, W], the new positions only when `past` holds the keys and values of earlier ones.

        mask: [B, 1, L, N] over all N = past + L positions; memory_mask: [B, 1, 1, M]. Returns states and the grown keys and values.
        """
        normed = self.attention_norm(x)
        keys, values = self.attention.keys_values(normed)
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        x = x + self.attention.attend(normed, (keys, values), mask)
        x = x + self.cross.attend(self.cross_norm(x), memory, memory_mask)
        return x + self.ffn(self.ffn_norm(x)), (keys, values)
