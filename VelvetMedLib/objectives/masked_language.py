"""Masked words, told from the text alone or from text and scan together (methods.md 2.4b and 2.4d)."""

from __future__ import annotations

from torch.nn import functional

from VelvetMedLib.models.heads import WordHead
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.objectives.base import (
    IMAGE_GLOBAL,
    NOT_ASKED,
    TEXT_MASKED_MM,
    TEXT_MASKED_UNI,
    Features,
    LossTerm,
    Objective,
    StudyBatch,
    Terms,
    in_full_precision,
    wide,
)
from VelvetMedLib.objectives.context import Context


class MaskedLanguage(Objective):
    """CE of the true word piece at the positions asked for; each asked position counts once.

    Multi-modal: through the text layers and the fusion layers with cross-attention to the scan's tokens. Text-only:
    through the text layers. The two have their own heads and are given their own masks.
    """

    def __init__(self, width: int, vocab_size: int, *, multi_modal: bool) -> None:
        """width: of the text encoder's states."""
        super().__init__()
        self.key = TEXT_MASKED_MM if multi_modal else TEXT_MASKED_UNI
        self.loss_name = "masked_language_mm_loss" if multi_modal else "masked_language_text_loss"
        self.multi_modal = multi_modal
        self.needs = frozenset({self.key, IMAGE_GLOBAL} if multi_modal else {self.key})
        self.head = WordHead(width, vocab_size)

    def counts(self, batch: StudyBatch, ctx: Context) -> dict[str, float]:
        return {self.loss_name: float((batch.labels[self.key] != NOT_ASKED).sum())}

    def forward(self, model: VelvetModel, features: Features, batch: StudyBatch, ctx: Context) -> Terms:
        layout, labels, states = batch.texts[self.key], batch.labels[self.key], features[self.key].states
        if self.multi_modal:
            states = model.tribert.fuse(states, layout.type_ids, layout.pad_mask, model.visual_tokens(features[IMAGE_GLOBAL]))
        asked = labels != NOT_ASKED
        logits, truth = self.head(states[asked]), labels[asked]
        with in_full_precision(logits):
            total = functional.cross_entropy(wide(logits), truth, reduction="sum")
        metrics = {f"{self.loss_name.removesuffix('_loss')}/accuracy": (logits.detach().argmax(dim=1) == truth).sum() / max(1, len(truth))}
        return Terms({self.loss_name: LossTerm(total, float(len(truth)))}, metrics)
