"""Which tokens of a report a view is told: a random part of its sentences, all of them, or nothing (methods.md 4.1, 4.2)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from VelvetMedLib.models.text import TextLayout


def sentence_of_tokens(layout: TextLayout) -> Tensor:
    """[B, L]: number of the sentence of each token from 1; 0 for [CLS], [SEP] and padding."""
    found = layout.entry_sentence.gather(1, layout.word_index.clamp(min=0))
    return torch.where(layout.word_index >= 0, found, 0)


def whole_report(layout: TextLayout) -> Tensor:
    """bool [B, L]: every token of every sentence. [CLS] is left out: it has read the whole report, whatever a view is told."""
    return sentence_of_tokens(layout) > 0


def drawn_subset(
    layout: TextLayout, draw: np.random.Generator, *, least_share: float = 0.5, most_share: float = 1.0, nothing: float = 0.0
) -> Tensor:
    """bool [1, L] for ONE report: the tokens of a random part of its sentences, or none with chance `nothing` (text dropout).

    The part is uniform in least_share..most_share, rounded to whole sentences, at least one. Every number is drawn whether it
    is used or not, so that one setting does not move the others.
    """
    if len(layout.ids) != 1:
        raise ValueError(f"a subset is drawn for one report at a time, not for {len(layout.ids)}")
    sentence = sentence_of_tokens(layout)
    count = int(sentence.max())
    drops, share, order = draw.random(), draw.uniform(least_share, most_share), draw.permutation(count)
    if drops < nothing or not count:
        return torch.zeros_like(sentence, dtype=torch.bool)
    kept = torch.from_numpy(order[: max(1, round(share * count))] + 1)
    return torch.isin(sentence, kept)
