"""What a report fine-tuning trains, and how its best weights are chosen: by the likelihood of sentences on validation studies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from finetuning.report_data import PromptBatch
from finetuning.report_settings import WritingSettings
from VelvetMedLib.engine.trainable import Trainable
from VelvetMedLib.engine.trainer import Selection
from VelvetMedLib.objectives.base import LossTerm, Terms
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.tasks.writers.soft_prompt import PromptedModel

LOSS = "writing_loss"


class WritingStage(Trainable):
    """The Linear and LoRA. The frozen language model is no part of what is saved."""

    def __init__(self, model: PromptedModel, settings: WritingSettings, facts: dict[str, Any]) -> None:
        super().__init__(settings.optimiser, settings.loop)
        object.__setattr__(self, "model", model)
        # The same parameters under names without dots, which a module does not allow.
        self.adapted = nn.ParameterDict({name.replace(".", "|"): value for name, value in model.adapted().items()})
        self.rate_factors = {"adapted.prompt|": settings.prompt_rate}
        self.facts = facts

    def train(self, mode: bool = True) -> WritingStage:
        super().train(mode)
        self.model.train(mode)  # type: ignore[union-attr]
        return self

    def counts(self, batch: PromptBatch, ctx: Context) -> dict[str, float]:
        return {LOSS: batch.tokens}

    def forward(self, batch: PromptBatch, ctx: Context) -> Terms:
        model: PromptedModel = self.model  # type: ignore[assignment]
        logs, _ = model.log_likelihood(batch.states, batch.valid, batch.answers)
        return Terms({LOSS: LossTerm(-logs.sum(), batch.tokens)})


def mean_log_likelihood(stage: WritingStage, batches: Sequence[PromptBatch]) -> float:
    """Of an answer's token, end tokens included."""
    stage.eval()
    device = next(stage.parameters()).device
    with torch.no_grad():
        total = sum(float(-stage(batch.to(device), None).losses[LOSS].total) for batch in batches)
    stage.train()
    return total / sum(batch.tokens for batch in batches)


def by_likelihood(batches: Sequence[PromptBatch]) -> Selection:
    """The best weights find the validation sentences likeliest."""
    return Selection(lambda stage: {"log_likelihood": mean_log_likelihood(stage, batches)}, ("log_likelihood",))
