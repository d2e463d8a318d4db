"""The causal decoder: reads the scan's memory tokens and writes report sentences and answers, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.attention import DecoderBlock, KeyValue
from VelvetMedLib.models.config import Settings


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Settings):
    """Settings of `CausalDecoder`. positions: longest sequence, prefix included. memory_width: 0 = same as width."""

    vocab_size: int
    width: int = 192
    layers: int = 4
    heads: int = 4
    ffn: int = 768
    positions: int = 128
    memory_width: int = 0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads", "ffn", "positions"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.width % self.heads == 0, "heads", f"a divisor of width ({self.width})")
        self.require(self.memory_width >= 0, "memory_width", "0 (same as width) or the reader's width")
        self.require(0.0 <= self.dropout < 1.0, "dropout", "0 or more, less than 1")


class Generation(NamedTuple):
    """ids [B, n] with the end token included and repeated behind it; logprobs [B, n], zero behind the end token."""

    ids: Tensor
    logprobs: Tensor


class CausalDecoder(nn.Module):
    """Pre-norm transformer decoder with learned positions; the output matrix is the embedding matrix transposed."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Embedding(config.positions, config.width)
        self.memory_in = nn.Linear(config.memory_width or config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        blocks = [DecoderBlock(config.width, config.heads, config.ffn, config.dropout) for _ in range(config.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.width)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, ids: Tensor, memory: Tensor, memory_mask: Tensor, asked: Tensor | None = None) -> Tensor:
        """ids: [B, L] padded on the right; memory: [B, M, W]; memory_mask: [B, M], True = valid. Returns logits [B, L, V].

        Position l sees ids 0..l, so logits[:, l] are about id l + 1 and padding behind it cannot matter. asked: [B, L], True = wanted;
        then only those positions' logits are formed, [number of them, V], row by row.
        """
        states, _ = self._run(ids, torch.ones_like(ids, dtype=torch.bool), self._memory(memory), memory_mask, None)
        return self._logits(states if asked is None else states[asked])

    @torch.no_grad()
    def generate(
        self,
        prefix_ids: Tensor,
        memory: Tensor,
        memory_mask: Tensor,
        max_new: int,
        eos_id: int,
        *,
        prefix_mask: Tensor | None = None,
        forbidden_ids: Sequence[int] = (),
        cancel: Callable[[], None] | None = None,
        on_token: Callable[[int, list[int]], None] | None = None,
    ) -> Generation:
        """Greedy continuation of `prefix_ids` [B, L], each earlier position computed once (key-value cache).

        prefix_mask: [B, L], True = real; rows of unequal length are padded on the LEFT. cancel: called before each
        token, raises to stop. on_token(step, ids): the new id of each row, after each token. Ends when every row has
        written `eos_id`, after `max_new` tokens, or when the positions are used up.
        """
        length = prefix_ids.shape[1]
        if length == 0 or length > self.config.positions:
            raise UsageError(
                "The decoder cannot start from this prefix.",
                found=f"{length} tokens",
                expected=f"1 to {self.config.positions} tokens",
                next_step="Shorten the question.",
            )
        valid = torch.ones_like(prefix_ids, dtype=torch.bool) if prefix_mask is None else prefix_mask.bool()
        if not bool(valid[:, -1].all()):
            raise ValueError("rows of unequal length are padded on the left: the last column of prefix_mask must be True")
        cross = self._memory(memory)
        step_ids, past = prefix_ids, None
        done = torch.zeros(len(prefix_ids), dtype=torch.bool, device=prefix_ids.device)
        ids: list[Tensor] = []
        logprobs: list[Tensor] = []
        for step in range(min(max_new, self.config.positions - length)):
            if cancel is not None:
                cancel()
            states, past = self._run(step_ids, valid, cross, memory_mask, past)
            scores = self._logits(states[:, -1]).float()
            if forbidden_ids:
                scores[:, list(forbidden_ids)] = -torch.inf
            best, choice = functional.log_softmax(scores, dim=-1).max(dim=-1)
            choice = choice.masked_fill(done, eos_id)
            ids.append(choice)
            logprobs.append(best.masked_fill(done, 0.0))
            if on_token is not None:
                on_token(step, choice.tolist())
            done = done | (choice == eos_id)
            if bool(done.all()):
                break
            step_ids = choice[:, None]
            valid = torch.cat([valid, torch.ones_like(valid[:, :1])], dim=1)
        if not ids:
            return Generation(prefix_ids.new_zeros(len(prefix_ids), 0), memory.new_zeros(len(prefix_ids), 0, dtype=torch.float32))
        return Generation(torch.stack(ids, dim=1), torch.stack(logprobs, dim=1))

    def _memory(self, memory: Tensor) -> list[KeyValue]:
        projected = self.memory_in(memory)
        return [cast(DecoderBlock, block).cross.keys_values(projected) for block in self.blocks]

    def _run(
        self, ids: Tensor, valid: Tensor, cross: list[KeyValue], memory_mask: Tensor, past: list[KeyValue] | None
    ) -> tuple[Tensor, list[KeyValue]]:
        """ids: [B, L] new positions; valid: [B, N] over all N = past + L; left padding does not move a row's positions."""
        new, total = ids.shape[1], valid.shape[1]
        if total > self.config.positions:
            raise UsageError(
                "The text is longer than the decoder can hold.",
                found=f"{total} tokens",
                expected=f"at most {self.config.positions} tokens",
                next_step="Shorten the text, or use a model with more positions.",
            )
        positions = (valid.long().cumsum(dim=1) - 1).clamp(min=0)[:, total - new :]
        x = self.dropout(self.token(ids) + self.position(positions))
        causal = torch.ones(new, total, dtype=torch.bool, device=ids.device).tril(total - new)
        mask = causal & valid[:, None, None, :]
        grown = []
        for layer, block in enumerate(self.blocks):
            x, kept = block(x, mask, cross[layer], memory_mask[:, None, None, :], None if past is None else past[layer])
            grown.append(kept)
        return x, grown

    def _logits(self, states: Tensor) -> Tensor:
        return functional.linear(self.norm(states), self.token.weight, self.bias)
