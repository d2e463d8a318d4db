"""Reports as token tensors: the special tokens, the tokenizer, and TriBERT's one-sequence layout of many sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from VelvetMedLib.errors import BundleError
from VelvetMedLib.reports.records import STATES

if TYPE_CHECKING:
    from VelvetMedLib.reports import Ontology

MAX_SENTENCES = 50
MAX_SENTENCE_PIECES = 200
"""Longest sentence, its two special tokens counted."""
SLOTS = ("[SIZE]", "[COUNT]", "[VALUE]")
"""Stand for measured numbers; the only special tokens that ordinary text may contain."""
SPECIALS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *(f"[SEN_{i}]" for i in range(1, MAX_SENTENCES + 1)),
    "[BOS]",
    "[EOS]",
    "[REPORT]",
    "[ANSWER]",
    *SLOTS,
)


def special_tokens(ontology: Ontology) -> list[str]:
    """`SPECIALS`, then one token per finding, state, side, site and severity; the order is that of the vocabulary."""
    sites = dict.fromkeys(site for finding in ontology.findings for site in finding.sites)
    return [
        *SPECIALS,
        *(f"[F:{finding.name}]" for finding in ontology.findings),
        *(f"[S:{state}]" for state in STATES),
        *(f"[D:{side}]" for side in ("left", "right", "both")),
        *(f"[P:{site}]" for site in sites),
        *(f"[V:{severity}]" for severity in ("mild", "moderate", "severe")),
    ]


@dataclass(frozen=True, kw_only=True)
class TextLayout:
    """A batch of reports as TriBERT reads them. B reports, L positions, E entries, S sentences, N words.

    An entry is [CLS], a [SEN_i], or a word with its pieces merged.
    ids [B, L]; type_ids [B, L]: sentence number from 1, [CLS] has 1, padding 0; pad_mask [B, L]: True = real token;
    word_index [B, L]: entry of each token, -1 for padding; entry_sentence [B, E]: sentence number of each entry, 0 for
    [CLS] and unused entries; sentence_mask [B, S]; word_entry [B, N]: entry of each word, -1 for none; word_mask [B, N].
    S and N are at least 1, so that a batch of empty reports keeps its shape.
    """

    ids: Tensor
    type_ids: Tensor
    pad_mask: Tensor
    word_index: Tensor
    entry_sentence: Tensor
    sentence_mask: Tensor
    word_entry: Tensor
    word_mask: Tensor

    def to(self, device: Any) -> Self:
        """The same layout on another device."""
        return type(self)(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


class ReportTokenizer:
    """A WordPiece vocabulary with the special tokens above; every id is looked up by its token."""

    def __init__(self, tokenizer_json: Path | str) -> None:
        """tokenizer_json: the file, or its text."""
        try:
            text = tokenizer_json.read_text(encoding="utf-8") if isinstance(tokenizer_json, Path) else tokenizer_json
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises plain Exception
            raise BundleError(
                "The tokenizer cannot be read.",
                found=type(error).__name__,
                expected="the JSON text of a WordPiece tokenizer",
                next_step="Fetch or build the model bundle again.",
            ) from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        missing = [token for token in SPECIALS if self._tokenizer.token_to_id(token) is None]
        if missing:
            raise BundleError(
                "The tokenizer lacks special tokens.",
                found=f"no {', '.join(missing[:5])}" + (" ..." if len(missing) > 5 else ""),
                expected=f"all {len(SPECIALS)} special tokens of this version",
                next_step="Fetch or build the model bundle again.",
            )
        self.pad_id, self.unk_id, self.cls_id = self.id("[PAD]"), self.id("[UNK]"), self.id("[CLS]")
        self.sentence_ids = tuple(self.id(f"[SEN_{i}]") for i in range(1, MAX_SENTENCES + 1))
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        self._reserved = self.special_ids - {self.id(slot) for slot in SLOTS}
        self._continues = {n for token, n in self._tokenizer.get_vocab().items() if token.startswith("##") and len(token) > 2}

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding table needs."""
        return max(self._tokenizer.get_vocab().values()) + 1

    @property
    def ordinary_ids(self) -> tuple[int, ...]:
        """Ids of words and pieces of words: no special token, no row that BERT vocabularies keep unused."""
        rows = self._tokenizer.get_vocab().items()
        return tuple(sorted(n for token, n in rows if n not in self.special_ids and not re.fullmatch(r"\[unused\d+\]", token)))

    def id(self, token: str) -> int:
        """Raises KeyError for a token that the vocabulary does not have."""
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise KeyError(token)
        return int(number)

    def encode(self, text: str) -> list[int]:
        """Word pieces of `text`, no special token added. Text that spells a special token other than a slot gets [UNK] there."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self.unk_id if n in self._reserved else n for n in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Readable text: pieces joined, punctuation closed up, sentences begun with a capital. Slots stay, other specials go."""
        words: list[str] = []
        for n in ids:
            token = self._tokenizer.id_to_token(int(n))
            if token is None or int(n) in self._reserved:
                continue
            if int(n) in self._continues and words:
                words[-1] += token[2:]
            else:
                words.append(token)
        return _tidy(" ".join(words))

    def layout(
        self,
        reports: Sequence[Sequence[str]],
        max_length: int,
        training: bool = False,
        rng: np.random.Generator | None = None,
        *,
        max_sentences: int = MAX_SENTENCES,
    ) -> TextLayout:
        """Lay out reports, each a sequence of sentences: [CLS] [SEN_1] pieces [SEN_2] pieces ... [PAD].

        Of more than `max_sentences` the first are kept, with `training` a random subset in order (drawn from `rng`).
        A report longer than `max_length` loses whole sentences at its end; a first sentence that is too long by itself is cut.
        A plain string in place of a sequence of sentences raises TypeError: it would be read letter by letter.
        """
        if isinstance(reports, str) or any(isinstance(report, str) for report in reports):
            raise TypeError("layout takes a list of reports, each a list of sentences; split the text into sentences first")
        if not reports:
            raise ValueError("layout needs at least one report")
        if not 1 <= max_sentences <= MAX_SENTENCES:
            raise ValueError(f"max_sentences is {max_sentences}, must be 1 to {MAX_SENTENCES}")
        if max_length < 3:
            raise ValueError(f"max_length is {max_length}, must be at least 3")
        return self._pack([self._sentences(report, max_length, max_sentences, training, rng) for report in reports])

    def _sentences(
        self, report: Sequence[str], max_length: int, max_sentences: int, training: bool, rng: np.random.Generator | None
    ) -> list[list[int]]:
        """Pieces of each kept sentence, empty ones left out."""
        sentences = [pieces for pieces in map(self.encode, report) if pieces]
        if len(sentences) > max_sentences:
            chosen = list(range(max_sentences))
            if training:
                if rng is None:
                    raise ValueError("a random subset of sentences needs rng")
                chosen = sorted(rng.choice(len(sentences), max_sentences, replace=False).tolist())
            sentences = [sentences[i] for i in chosen]
        kept: list[list[int]] = []
        room = max_length - 1
        for pieces in sentences:
            pieces = pieces[: MAX_SENTENCE_PIECES - 2]
            if len(pieces) + 1 > room:
                if not kept:
                    kept.append(pieces[: room - 1])
                break
            kept.append(pieces)
            room -= len(pieces) + 1
        return kept

    def _pack(self, reports: list[list[list[int]]]) -> TextLayout:
        rows: list[dict[str, list[int]]] = []
        for sentences in reports:
            ids, types, index, entry_sentence = [self.cls_id], [1], [0], [0]
            words: list[int] = []
            for number, pieces in enumerate(sentences, start=1):
                entry_sentence.append(number)
                ids.append(self.sentence_ids[number - 1])
                index.append(len(entry_sentence) - 1)
                for place, piece in enumerate(pieces):
                    if place == 0 or piece not in self._continues:
                        entry_sentence.append(number)
                        words.append(len(entry_sentence) - 1)
                    ids.append(piece)
                    index.append(len(entry_sentence) - 1)
                types += [number] * (len(pieces) + 1)
            rows.append({"ids": ids, "types": types, "index": index, "sentence": entry_sentence, "words": words})
        sentence_counts = torch.tensor([len(sentences) for sentences in reports])
        word_entry = _pad([row["words"] for row in rows], -1)
        word_index = _pad([row["index"] for row in rows], -1)
        return TextLayout(
            ids=_pad([row["ids"] for row in rows], self.pad_id),
            type_ids=_pad([row["types"] for row in rows], 0),
            pad_mask=word_index >= 0,
            word_index=word_index,
            entry_sentence=_pad([row["sentence"] for row in rows], 0),
            sentence_mask=torch.arange(max(1, int(sentence_counts.max()))) < sentence_counts[:, None],
            word_entry=word_entry,
            word_mask=word_entry >= 0,
        )


def _pad(rows: list[list[int]], filler: int) -> Tensor:
    out = torch.full((len(rows), max(1, max(len(row) for row in rows))), filler, dtype=torch.long)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return out


def _tidy(text: str) -> str:
    text = re.sub(r"(?<=\d) ([.,]) (?=\d)", r"\1", text)
    text = re.sub(r" ([.,;:!?%)])", r"\1", text)
    text = re.sub(r"(\() ", r"\1", text)
    text = re.sub(r"(?<=\w) ([-/']) (?=\w)", r"\1", text)
    return re.sub(r"(^|[.!?] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)
