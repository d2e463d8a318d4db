"""Report-level contrast: the pooled top map against [CLS], with group targets and a learnable scale (methods.md 2.4a)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.velvet import VelvetModel
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
from VelvetMedLib.objectives.contrast import group_targets, hits, soft_cross_entropy


@dataclass(frozen=True, kw_only=True)
class ReportContrastSettings(Settings):
    """label_smoothing: share of the target that is spread over all columns."""

    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        self.require(0.0 <= self.label_smoothing < 1.0, "label_smoothing", "0 or more, less than 1")


class ReportContrast(Objective):
    """logits[i, j] = exp(s) <v_i, t_j>; each item adds 0.5 CE(its row) + 0.5 CE(its column).

    v, t: unit vectors of images and reports, s the model's `logit_scale`. Columns come from all processes. Targets: the
    group shares 1 - smoothing evenly, smoothing is spread over all (source: VELVET-Med's code; groups ours).
    """

    needs = frozenset({IMAGE_GLOBAL, TEXT_CLEAN})
    across = True

    def __init__(self, settings: ReportContrastSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or ReportContrastSettings()

    def counts(self, batch: StudyBatch, ctx: Context) -> dict[str, float]:
        return {"report_contrast_loss": float(len(batch))}

    def forward(self, model: VelvetModel, features: Features, batch: StudyBatch, ctx: Context) -> Terms:
        image = model.project_image(features[IMAGE_GLOBAL], ["report"])["report"]
        text = model.project_text(features[TEXT_CLEAN].states, batch.texts[TEXT_CLEAN], ["report"])["report"]
        return report_terms(image, text, model.contrast_scale(), batch.group, ctx, smoothing=self.settings.label_smoothing)


def report_terms(image: Tensor, text: Tensor, scale: Tensor, group: Tensor, ctx: Context, *, smoothing: float) -> Terms:
    """The law of `ReportContrast` for any two sets of unit vectors [B, D], one row of each a study; group: int64 [B]."""
    with in_full_precision(image):
        scale = wide(scale)
        rows = scale * image @ ctx.gather(text).T
        columns = scale * text @ ctx.gather(image).T
        every = ctx.gather_no_grad(group)
        targets = group_targets(group, every, smoothing=smoothing, like=rows)
        total = 0.5 * (soft_cross_entropy(rows, targets) + soft_cross_entropy(columns, targets)).sum()
    metrics = {
        "report_contrast/image_to_text_r1": hits(rows, group, every),
        "report_contrast/text_to_image_r1": hits(columns, group, every),
        "report_contrast/scale": scale.detach(),
    }
    return Terms({"report_contrast_loss": LossTerm(total, float(len(group)))}, metrics)
