"""The decoder's prompts, in one place: training writes its targets after exactly these ids.

Report sentence:  [BOS] [REPORT] [F:name] [S:state] ([D:side]) ([P:site]) ([V:severity]) ([SIZE]) ([COUNT]) ([VALUE]) [SEP] sentence [EOS]
Answer:           [BOS] [ANSWER] question words [SEP] answer [EOS]

Parts in round brackets stand only where the record has them ([COUNT] only from two on; [VALUE] only if a value was
measured; a side, site or severity only if it has a token). They tell the decoder which slots can be filled: the
sentence that follows is *slotted*, it says [SIZE], [COUNT], [VALUE] instead of numbers. Numbers come from measurement.
"""

from __future__ import annotations

import contextlib
from typing import Protocol

from VelvetMedLib.reports import FindingRecord

SLOTS = ("[SIZE]", "[COUNT]", "[VALUE]")
QUESTION_WORD_PIECES = 48


class Tokenizer(Protocol):
    """What a prompt needs of `models.text.ReportTokenizer`."""

    def encode(self, text: str) -> list[int]: ...

    def id(self, token: str) -> int: ...


def _known(tokenizer: Tokenizer, tokens: list[str]) -> list[int]:
    """Ids of those tokens that the tokenizer has; a vertebral level, say, has none and is left to the slots."""
    ids = []
    for token in tokens:
        with contextlib.suppress(KeyError):
            ids.append(tokenizer.id(token))
    return ids


def available_slots(record: FindingRecord) -> list[str]:
    """The slots that this record can fill."""
    return [
        slot
        for slot, there in (
            ("[SIZE]", record.size_mm is not None),
            ("[COUNT]", record.count is not None and record.count >= 2),
            ("[VALUE]", record.value is not None),
        )
        if there
    ]


def report_prefix(tokenizer: Tokenizer, record: FindingRecord) -> list[int]:
    """Ids up to and with [SEP], after which the decoder writes one slotted sentence about `record`."""
    parts = [f"[F:{record.name}]", f"[S:{record.state}]"]
    if record.state in ("present", "uncertain"):
        parts += [f"[{kind}:{value}]" for kind, value in (("D", record.side), ("P", record.site), ("V", record.severity)) if value]
        parts += available_slots(record)
    return [tokenizer.id("[BOS]"), tokenizer.id("[REPORT]"), *_known(tokenizer, parts), tokenizer.id("[SEP]")]


def answer_prefix(tokenizer: Tokenizer, question: str) -> list[int]:
    """Ids up to and with [SEP], after which the decoder writes one slotted answer. Long questions lose their end."""
    words = list(tokenizer.encode(question))[:QUESTION_WORD_PIECES]
    return [tokenizer.id("[BOS]"), tokenizer.id("[ANSWER]"), *words, tokenizer.id("[SEP]")]
