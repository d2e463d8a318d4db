"""BERT's encoder with the tensor names of its published checkpoints, and its tokenizer from a vocabulary: the text half of COLIPRI."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from torch import Tensor, nn
from torch.nn import functional

from VelvetMedLib.errors import BundleError, UsageError
from VelvetMedLib.models.config import Settings


@dataclass(frozen=True, kw_only=True)
class BertConfig(Settings):
    """Settings of `Bert`. positions: longest sequence; kinds: rows of the token-type table, of which only row 0 is used here."""

    vocab_size: int = 30_522
    width: int = 768
    depth: int = 12
    heads: int = 12
    ffn: int = 3072
    positions: int = 512
    kinds: int = 2
    norm_eps: float = 1e-12
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "heads", "ffn", "positions", "kinds"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.depth >= 0, "depth", "0 or more")
        self.require(self.width % self.heads == 0, "heads", f"a divisor of width ({self.width})")
        self.require(self.norm_eps > 0, "norm_eps", "more than 0")
        self.require(0.0 <= self.dropout < 1.0, "dropout", "0 or more, less than 1")

    @classmethod
    def paper(cls) -> Self:
        """BERT base with CXR-BERT's vocabulary."""
        return cls()

    @classmethod
    def tiny(cls, vocab_size: int) -> Self:
        """For two CPU cores."""
        return cls(vocab_size=vocab_size, width=96, depth=2, heads=4, ffn=192, positions=128)


class _Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.width)
        self.position_embeddings = nn.Embedding(config.positions, config.width)
        self.token_type_embeddings = nn.Embedding(config.kinds, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor) -> Tensor:
        places = self.position_embeddings.weight[: ids.shape[1]] + self.token_type_embeddings.weight[0]
        return cast(Tensor, self.dropout(self.LayerNorm(self.word_embeddings(ids) + places)))


class _SelfAttention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(config.width, config.width) for _ in range(3))


class _Output(nn.Module):
    """LN(dropout(W x) + what went in)."""

    def __init__(self, inside: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inside, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return cast(Tensor, self.LayerNorm(self.dropout(self.dense(x)) + before))


class _Attention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.self = _SelfAttention(config)
        self.output = _Output(config.width, config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.self.query, self.self.key, self.self.value))
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return cast(Tensor, self.output(mixed.transpose(1, 2).flatten(2), x))


class _Intermediate(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.ffn)


class _Layer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Intermediate(config)
        self.output = _Output(config.ffn, config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, mask)
        return cast(Tensor, self.output(functional.gelu(self.intermediate.dense(x)), x))


class _Layers(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.depth))


class Bert(nn.Module):
    """Post-norm transformer over word pieces (Devlin et al., 2019), without pooler and heads."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = _Layers(config)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids: [B, L]; mask: [B, L], True = real. Returns states [B, L, W]; those of padding mean nothing."""
        if ids.shape[1] > self.config.positions:
            raise UsageError(
                "The text is longer than the text encoder can hold.",
                found=f"{ids.shape[1]} tokens",
                expected=f"at most {self.config.positions} tokens",
                next_step="Shorten the text.",
            )
        x = self.embeddings(ids)
        seen = mask.bool()[:, None, None, :]
        for layer in self.encoder.layer:
            x = layer(x, seen)
        return cast(Tensor, x)


class BertTokenizer:
    """Lower-case BERT word pieces: [CLS] text [SEP], cut at the end, padded on the right."""

    def __init__(self, tokenizer_json: str, *, positions: int = 512) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # tokenizers raises plain Exception
            raise _unreadable(type(error).__name__) from None
        if missing := [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if self._tokenizer.token_to_id(token) is None]:
            raise _unreadable(f"no {', '.join(missing)}")
        self.positions = positions
        self.pad_id: int = self._tokenizer.token_to_id("[PAD]") or 0
        self._tokenizer.enable_truncation(positions)
        self._tokenizer.no_padding()

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding table needs."""
        return int(max(self._tokenizer.get_vocab().values())) + 1

    def batch(self, texts: Sequence[str], *, whole: bool = False) -> tuple[Tensor, Tensor]:
        """ids [B, L] and mask [B, L] (True = real). L: the longest text's, or with `whole` all positions, as the published package pads."""
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        length = self.positions if whole else max(len(row) for row in rows)
        ids = torch.full((len(rows), length), self.pad_id)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for n, row in enumerate(rows):
            ids[n, : len(row)] = torch.tensor(row)
            mask[n, : len(row)] = True
        return ids, mask


def tokenizer_from_vocabulary(vocabulary: str) -> str:
    """The JSON text of a BERT tokenizer from the text of a `vocab.txt`: one piece per line, its id the number of the line from 0."""
    pieces = vocabulary.splitlines()
    table = {piece: n for n, piece in enumerate(pieces)}
    if len(table) != len(pieces) or not {"[PAD]", "[UNK]", "[CLS]", "[SEP]"} <= set(table):
        raise _unreadable("a vocabulary with a piece twice, or without [PAD], [UNK], [CLS] or [SEP]")
    tokenizer = Tokenizer(WordPiece(table, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", table["[SEP]"]), ("[CLS]", table["[CLS]"]))
    tokenizer.add_special_tokens([t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if t in table])
    data: dict[str, Any] = json.loads(tokenizer.to_str())
    return json.dumps(data, ensure_ascii=False)


def _unreadable(found: str) -> BundleError:
    return BundleError(
        "The tokenizer of the text encoder cannot be read.",
        found=found,
        expected="the vocab.txt or tokenizer.json of a BERT word-piece tokenizer",
        next_step="Fetch the files beside the weights again.",
    )
