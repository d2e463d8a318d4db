"""TriBERT: one BERT-shaped encoder that gives a report, its sentences and its words, and fuses them with visual tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.attention import Attention
from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.text import TextLayout


@dataclass(frozen=True, kw_only=True)
class TriBertConfig(Settings):
    """Settings of `TriBert`. text_layers come first and see text only; fusion_layers follow and also see visual tokens.

    positions: longest sequence. visual_width: channels of the visual map before the adapter that brings its tokens to
    `width`, 0 = same as width. word_merge: how the states of a word's pieces become one ("sum" is the published way).
    """

    vocab_size: int
    width: int = 192
    heads: int = 4
    ffn: int = 768
    text_layers: int = 3
    fusion_layers: int = 1
    positions: int = 256
    max_sentences: int = 50
    visual_width: int = 0
    dropout: float = 0.1
    norm_eps: float = 1e-12
    word_merge: str = "sum"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "heads", "ffn", "text_layers", "positions", "max_sentences"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.width % self.heads == 0, "heads", f"a divisor of width ({self.width})")
        self.require(self.fusion_layers >= 0, "fusion_layers", "0 or more")
        self.require(self.visual_width >= 0, "visual_width", "0 (same as width) or more")
        self.require(0.0 <= self.dropout < 1.0, "dropout", "0 or more, less than 1")
        self.require(self.norm_eps > 0, "norm_eps", "more than 0")
        self.require(self.word_merge in ("sum", "mean"), "word_merge", '"sum" or "mean"')

    @classmethod
    def paper(cls, vocab_size: int = 30_572) -> Self:
        """VELVET-Med, variant Bt: 12 text and 6 fusion layers, about 165.7 M parameters."""
        return cls(vocab_size=vocab_size, width=768, heads=12, ffn=3072, text_layers=12, fusion_layers=6, positions=512)

    @classmethod
    def from_bert(cls, bert: Mapping[str, Any], *, vocab_size: int, fusion_layers: int, heads: int | None = None) -> Self:
        """Depth, widths, positions and heads of a BERT checkpoint's own `config.json`."""
        return cls(
            vocab_size=vocab_size,
            width=bert["hidden_size"],
            heads=heads or bert["num_attention_heads"],
            ffn=bert["intermediate_size"],
            text_layers=bert["num_hidden_layers"],
            fusion_layers=fusion_layers,
            positions=bert["max_position_embeddings"],
            dropout=bert.get("hidden_dropout_prob", 0.1),
            norm_eps=bert.get("layer_norm_eps", 1e-12),
        )


class ReadOut(NamedTuple):
    """report [B, W]; sentences [B, S, W] with sentence_mask [B, S]; words [B, N, W] with word_mask [B, N]; masks True = real."""

    report: Tensor
    sentences: Tensor
    sentence_mask: Tensor
    words: Tensor
    word_mask: Tensor


class Layer(nn.Module):
    """Post-norm: LN(x + SelfAttention(x)), in fusion layers LN(x + CrossAttention(x, visual)), then LN(x + FFN(x))."""

    def __init__(self, config: TriBertConfig, *, fusion: bool) -> None:
        super().__init__()
        width, eps, dropout = config.width, config.norm_eps, config.dropout
        self.attention = Attention(width, config.heads, dropout=dropout)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.cross = Attention(width, config.heads, dropout=dropout) if fusion else None
        self.cross_norm = nn.LayerNorm(width, eps=eps) if fusion else None
        self.ffn_in = nn.Linear(width, config.ffn)
        self.ffn_out = nn.Linear(config.ffn, width)
        self.ffn_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, visual: Tensor | None = None, visual_mask: Tensor | None = None) -> Tensor:
        """x: [B, L, W]; mask: [B, 1, L, L]; visual: [B, V, W]; visual_mask: [B, 1, 1, V]."""
        x = self.attention_norm(x + self.dropout(self.attention(x, mask=mask)))
        if self.cross is not None and self.cross_norm is not None:
            x = self.cross_norm(x + self.dropout(self.cross(x, visual, visual_mask)))
        return self.ffn_norm(x + self.dropout(self.ffn_out(functional.gelu(self.ffn_in(x)))))


class TriBert(nn.Module):
    """Text layers, then fusion layers, under one attention rule (methods.md 2.3).

    `recompute_activations` trades time for memory while gradients are on: layers are run again in the backward pass, with the
    random numbers of the first time, so dropout leaves out the same numbers.
    """

    def __init__(self, config: TriBertConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute_activations = False
        self.token = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Embedding(config.positions, config.width)
        # Row 0 is the type of padding: `padding_idx` holds it at zero.
        self.token_type = nn.Embedding(config.max_sentences + 1, config.width, padding_idx=0)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.text_layers = nn.ModuleList(Layer(config, fusion=False) for _ in range(config.text_layers))
        self.fusion_layers = nn.ModuleList(Layer(config, fusion=True) for _ in range(config.fusion_layers))
        # BERT's 0.02 is meant for its 768 channels. In a narrower net the same number makes layers that pass little on: at 192
        # channels the [CLS] of any two reports had a cosine of 0.9999, and contrast stood still for its first ninety steps.
        std = 0.02 * math.sqrt(768 / config.width)
        self.apply(lambda module: _bert_init(module, std))

    def text(self, ids: Tensor, type_ids: Tensor, pad_mask: Tensor) -> Tensor:
        """ids, type_ids: [B, L]; pad_mask: [B, L], True = real. Returns the states of the last text layer [B, L, W]."""
        length = ids.shape[1]
        if length > self.config.positions:
            raise UsageError(
                "The report is longer than the text encoder can hold.",
                found=f"{length} tokens",
                expected=f"at most {self.config.positions} tokens",
                next_step="Lay the report out with max_length at or below TriBertConfig.positions.",
            )
        places = self.position(torch.arange(length, device=ids.device))
        x = self.dropout(self.norm(self.token(ids) + places + self.token_type(type_ids)))
        mask = attention_rule(type_ids, pad_mask)
        for layer in self.text_layers:
            x = self._through(layer, x, mask)
        return x

    def fuse(self, states: Tensor, type_ids: Tensor, pad_mask: Tensor, visual: Tensor, visual_mask: Tensor | None = None) -> Tensor:
        """Run the fusion layers on states of `text`; visual: [B, V, W], visual_mask: [B, V], True = valid, None = all."""
        mask = attention_rule(type_ids, pad_mask)
        seen = None if visual_mask is None else visual_mask.bool()[:, None, None, :]
        for layer in self.fusion_layers:
            states = self._through(layer, states, mask, visual, seen)
        return states

    def _through(self, layer: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.recompute_activations and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=True))
        return cast(Tensor, layer(*inputs))

    def read_out(self, states: Tensor, layout: TextLayout) -> ReadOut:
        """Report, sentence and word vectors from states [B, L, W], without a loop.

        Pieces are merged to entries ([CLS], [SEN_i] and words); report = entry of [CLS]; sentence i = mean of the
        entries of [SEN_i] and of its words; words = every other entry, punctuation included.
        """
        entries = _scatter_sum(states, layout.word_index, layout.entry_sentence.shape[1])
        if self.config.word_merge == "mean":
            ones = torch.ones_like(states[..., :1])
            entries = entries / _scatter_sum(ones, layout.word_index, entries.shape[1]).clamp(min=1)
        count = layout.sentence_mask.shape[1]
        belongs = layout.entry_sentence - 1  # entry 0, [CLS], belongs to no sentence and has 0 there
        sums = _scatter_sum(entries, belongs, count)
        sizes = _scatter_sum(torch.ones_like(entries[..., :1]), belongs, count)
        words = entries.gather(1, layout.word_entry.clamp(min=0)[..., None].expand(-1, -1, entries.shape[-1]))
        return ReadOut(
            entries[:, 0], sums / sizes.clamp(min=1), layout.sentence_mask, words * layout.word_mask[..., None], layout.word_mask
        )


def attention_rule(type_ids: Tensor, pad_mask: Tensor) -> Tensor:
    """Which query may attend to which key: [B, 1, L, L], True = may.

    [SEN_i] rows see [CLS] and the tokens of sentence i; every other row sees every real token. A [SEN_i] is where the
    type id changes, and position 1, since [CLS] shares the type of the first sentence. Rows of padding do not matter.
    """
    real = pad_mask.bool()
    length = type_ids.shape[1]
    place = torch.arange(length, device=type_ids.device)
    changes = functional.pad(type_ids[:, 1:] != type_ids[:, :-1], (1, 0))
    heads_sentence = real & ((place == 1) | (changes & (place > 1)))
    same_sentence = (type_ids[:, :, None] == type_ids[:, None, :]) | (place == 0)
    return (real[:, None, :] & (~heads_sentence[:, :, None] | same_sentence))[:, None]


def load_bert_weights(
    model: TriBert,
    tensors: Mapping[str, Tensor],
    *,
    cls_id: int,
    sentence_ids: Sequence[int],
    fusion_init: Literal["random", "copy_last"] = "random",
) -> None:
    """Fill `model` from a BERT state dictionary with the usual names (`bert.` in front or not); pooler and heads are not used.

    cls_id: row of [CLS] in the checkpoint's vocabulary, copied to the rows `sentence_ids` of [SEN_1], [SEN_2], ... Type
    rows 1... become copies of the checkpoint's row 0. Fusion layers keep their random start, or with "copy_last" take
    self-attention and FFN of the last text layers. A missing tensor or a wrong shape is a `UsageError`; nothing is half-loaded.
    """
    source = {_modern(name): value for name, value in tensors.items()}
    depth, fusion = len(model.text_layers), len(model.fusion_layers)
    if fusion_init == "copy_last" and fusion > depth:
        raise _misfit("the fusion layers", f"{fusion} fusion layers", f"at most {depth} (the text layers) with fusion_init copy_last")
    target = model.state_dict()
    filled: dict[str, Tensor] = {}

    def take(ours: str, theirs: str) -> None:
        filled[ours] = _tensor(source, theirs, target[ours].shape)

    for ours, theirs in (("norm", "embeddings.LayerNorm"), *_layer_names("text_layers", range(depth), range(depth))):
        take(f"{ours}.weight", f"{theirs}.weight")
        take(f"{ours}.bias", f"{theirs}.bias")
    if fusion_init == "copy_last":
        for ours, theirs in _layer_names("fusion_layers", range(fusion), range(depth - fusion, depth)):
            take(f"{ours}.weight", f"{theirs}.weight")
            take(f"{ours}.bias", f"{theirs}.bias")
    words = _tensor(source, "embeddings.word_embeddings.weight", (None, model.config.width))
    places = _tensor(source, "embeddings.position_embeddings.weight", (None, model.config.width))
    types = _tensor(source, "embeddings.token_type_embeddings.weight", (None, model.config.width))
    if len(words) > model.config.vocab_size:
        raise _misfit("the vocabulary", f"{len(words)} word rows in the checkpoint", f"at most {model.config.vocab_size} (vocab_size)")
    if len(places) < model.config.positions:
        raise _misfit("the positions", f"{len(places)} positions in the checkpoint", f"at least {model.config.positions} (positions)")
    token = target["token.weight"].clone()
    token[: len(words)] = words
    token[list(sentence_ids)] = words[cls_id].to(token.dtype)
    kinds = types[:1].repeat(model.config.max_sentences + 1, 1)
    kinds[0] = 0
    filled |= {"token.weight": token, "position.weight": places[: model.config.positions], "token_type.weight": kinds}
    model.load_state_dict(target | filled)


_PARTS = (
    ("attention.query", "attention.self.query"),
    ("attention.key", "attention.self.key"),
    ("attention.value", "attention.self.value"),
    ("attention.out", "attention.output.dense"),
    ("attention_norm", "attention.output.LayerNorm"),
    ("ffn_in", "intermediate.dense"),
    ("ffn_out", "output.dense"),
    ("ffn_norm", "output.LayerNorm"),
)
"""Our name of each part of a layer, and BERT's."""


def _layer_names(group: str, ours: range, theirs: range) -> list[tuple[str, str]]:
    return [(f"{group}.{i}.{a}", f"encoder.layer.{j}.{b}") for i, j in zip(ours, theirs, strict=True) for a, b in _PARTS]


def _modern(name: str) -> str:
    """Checkpoints of 2018 call the two numbers of a LayerNorm gamma and beta."""
    return name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _tensor(source: Mapping[str, Tensor], name: str, shape: Sequence[int | None]) -> Tensor:
    if name not in source:
        raise _misfit(f"the tensor {name}", "it is missing in the checkpoint", "every tensor of a BERT encoder of this depth")
    value = source[name]
    if value.ndim != len(shape) or any(want is not None and got != want for got, want in zip(value.shape, shape, strict=True)):
        raise _misfit(f"the tensor {name}", f"shape {tuple(value.shape)}", f"shape {tuple(shape)}")
    return value


def _misfit(what: str, found: str, expected: str) -> UsageError:
    return UsageError(
        f"The BERT checkpoint does not fit the text encoder: {what}.",
        found=found,
        expected=expected,
        next_step="Build the settings with TriBertConfig.from_bert on the checkpoint's own configuration.",
    )


def _bert_init(module: nn.Module, std: float) -> None:
    """N(0, std) and zero bias; the type of padding stays zero."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=std)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=std)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()


def _scatter_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum the rows of [B, N, W] that share an index of [B, N] into [B, size, W]; rows with a negative index are left out."""
    out = values.new_zeros(values.shape[0], size + 1, values.shape[2])
    kept = torch.where(index < 0, size, index)
    return out.scatter_add(1, kept[..., None].expand(-1, -1, values.shape[2]), values)[:, :size]
