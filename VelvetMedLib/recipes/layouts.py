"""One report as the text encoder reads it: a layout with sentence tokens, or the one of a plain BERT."""

from __future__ import annotations

import numpy as np
import torch

from VelvetMedLib.models.text import ReportTokenizer, TextLayout
from VelvetMedLib.recipes.parts import ReportSettings


def lay_out(
    tokenizer: ReportTokenizer, sentences: list[str], settings: ReportSettings, *, sentence_tokens: bool, draw: np.random.Generator | None
) -> TextLayout:
    """One report. draw: chooses among too many sentences in training; None = evaluation, which keeps the first ones."""
    longest = settings.max_tokens if sentence_tokens else settings.max_tokens - 1  # room for [SEP]
    layout = tokenizer.layout([sentences], longest, draw is not None, draw, max_sentences=settings.max_sentences)
    return layout if sentence_tokens else without_sentence_tokens(layout, tokenizer)


def without_sentence_tokens(layout: TextLayout, tokenizer: ReportTokenizer) -> TextLayout:
    """One report as `[CLS] words [SEP]`, type 1 everywhere (methods.md 2.7): the layout of a plain BERT.

    Sentences can still be read out, as the mean of their words; [SEP] is neither a word nor part of a sentence.
    """
    ids = layout.ids[0][layout.pad_mask[0]].tolist()
    entries = layout.word_index[0][layout.pad_mask[0]].tolist()
    sentence_of = layout.entry_sentence[0].tolist()
    kept = [n for n, token in enumerate(ids) if token not in tokenizer.sentence_ids]
    renumbered = {entry: new for new, entry in enumerate(dict.fromkeys(entries[n] for n in kept))}
    new_ids = [ids[n] for n in kept] + [tokenizer.id("[SEP]")]
    word_index = [renumbered[entries[n]] for n in kept] + [len(renumbered)]
    words = [renumbered[entry] for entry in layout.word_entry[0][layout.word_mask[0]].tolist()] or [-1]
    word_entry = torch.tensor([words])
    return TextLayout(
        ids=torch.tensor([new_ids]),
        type_ids=torch.ones(1, len(new_ids), dtype=torch.long),
        pad_mask=torch.ones(1, len(new_ids), dtype=torch.bool),
        word_index=torch.tensor([word_index]),
        entry_sentence=torch.tensor([[sentence_of[entry] for entry in renumbered] + [0]]),
        sentence_mask=layout.sentence_mask,
        word_entry=word_entry,
        word_mask=word_entry >= 0,
    )
