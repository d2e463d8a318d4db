"""The opposite-sentence loss: an image is nearer to what its report says than to the same sentence denied (methods.md 3.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from VelvetMedLib.models.config import Settings
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, Features, LossTerm, Objective, StudyBatch, Terms, in_full_precision
from VelvetMedLib.objectives.context import Context

TEXT_OPPOSITE = "text.opposite"
"""Texts of 2 S rows per study: S true sentences, then their S opposites. Rows without a sentence are empty texts."""
ASKED = "opposite.asked"
"""Extra, bool [B, S]: which of a study's S places hold a pair of sentences."""


@dataclass(frozen=True, kw_only=True)
class OppositeSentencesSettings(Settings):
    """temperature: divides the difference of the cosines (ours)."""

    temperature: float = 0.07

    def __post_init__(self) -> None:
        self.require(self.temperature > 0, "temperature", "more than 0")


class OppositeSentences(Objective):
    """Each study adds the mean over its pairs of -log sigma((<e, u> - <e, u'>) / temperature); studies without a pair do not count.

    e: unit vector of the image, u and u': of a true sentence and of its opposite. The name is from COLIPRI's glossary; the
    formula is ours (methods.md 3.6).
    """

    needs = frozenset({IMAGE_GLOBAL, TEXT_OPPOSITE})
    reads = frozenset({ASKED})

    def __init__(self, settings: OppositeSentencesSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or OppositeSentencesSettings()

    def counts(self, batch: StudyBatch, ctx: Context) -> dict[str, float]:
        return {"opposite_sentences_loss": float(batch.extras[ASKED].any(dim=1).sum())}

    def forward(self, model: Any, features: Features, batch: StudyBatch, ctx: Context) -> Terms:
        asked = batch.extras[ASKED]
        image = model.project_image(features[IMAGE_GLOBAL], ["report"])["report"]
        texts: Tensor = model.project_text(features[TEXT_OPPOSITE].states, batch.texts[TEXT_OPPOSITE], ["report"])["report"]
        with in_full_precision(image):
            both = texts.unflatten(0, (len(batch), 2, asked.shape[1]))
            true, opposite = torch.einsum("bd,bksd->kbs", image, both)
            losses = -functional.logsigmoid((true - opposite) / self.settings.temperature)
            # Empty places are left out by a choice and not by a factor: nothing of them may reach a gradient.
            losses = torch.where(asked, losses, torch.zeros_like(losses))
            total = (losses.sum(dim=1) / asked.sum(dim=1).clamp(min=1)).sum()
        right = ((true > opposite) & asked).sum() / asked.sum().clamp(min=1)
        count = float(asked.any(dim=1).sum())
        return Terms({"opposite_sentences_loss": LossTerm(total, count)}, {"opposite_sentences/right": right.detach()})
