"""Contrast of every pair of image and report by itself: a pairwise sigmoid in place of a soft-max over the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from VelvetMedLib.models.config import Settings
from VelvetMedLib.objectives.base import (
    IMAGE_GLOBAL,
    TEXT_CLEAN,
    Features,
    LossTerm,
    Objective,
    StudyBatch,
    Terms,
    in_full_precision,
    wide,
)
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.contrast import hits


@dataclass(frozen=True, kw_only=True)
class SigmoidContrastSettings(Settings):
    """start_bias: of the logits; with it, a start where nearly every pair is a wrong one costs little."""

    start_bias: float = -10.0


class SigmoidContrast(Objective):
    """-(1/B) sum_ij log sigma(z_ij (exp(s) <v_i, t_j> + b)); z = 1 within a group, else -1; i: own images, j: all reports.

    s: the model's `logit_scale`, b: learned, B: images over all processes. Source: SigLIP (Zhai et al., ICCV 2023); groups ours.
    """

    needs = frozenset({IMAGE_GLOBAL, TEXT_CLEAN})
    across = True

    def __init__(self, settings: SigmoidContrastSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or SigmoidContrastSettings()
        self.bias = nn.Parameter(torch.tensor(self.settings.start_bias))

    def counts(self, batch: StudyBatch, ctx: Context) -> dict[str, float]:
        return {"sigmoid_contrast_loss": float(len(batch))}

    def forward(self, model: Any, features: Features, batch: StudyBatch, ctx: Context) -> Terms:
        image = model.project_image(features[IMAGE_GLOBAL], ["report"])["report"]
        text = model.project_text(features[TEXT_CLEAN].states, batch.texts[TEXT_CLEAN], ["report"])["report"]
        with in_full_precision(image):
            scale = wide(model.contrast_scale())
            cosines = image @ ctx.gather(text).T
            every = ctx.gather_no_grad(batch.group)
            logits = scale * cosines + wide(self.bias)
            sign = torch.where(batch.group[:, None] == every[None, :], 1.0, -1.0).to(logits.dtype)
            total = -functional.logsigmoid(sign * logits).sum()
        metrics = {
            "sigmoid_contrast/image_to_text_r1": hits(cosines, batch.group, every),
            "sigmoid_contrast/scale": scale.detach(),
            "sigmoid_contrast/bias": self.bias.detach(),
        }
        return Terms({"sigmoid_contrast_loss": LossTerm(total, float(len(batch)))}, metrics)
