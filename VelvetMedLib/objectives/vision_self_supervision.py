"""Volume self-supervision on two corrupted views of a crop: contrast, quarter turns, restoration (methods.md 2.4c)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.heads import PooledHead, RestorationDecoder
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.objectives.base import (
    IMAGE_LOCAL_A,
    IMAGE_LOCAL_B,
    Features,
    LossTerm,
    Objective,
    StudyBatch,
    Terms,
    in_full_precision,
    wide,
)
from VelvetMedLib.objectives.context import Context

VIEWS = (IMAGE_LOCAL_A, IMAGE_LOCAL_B)


@dataclass(frozen=True, kw_only=True)
class ViewContrastSettings(Settings):
    """width: of the vectors that are compared. temperature: fixed divisor of the cosines."""

    width: int = 512
    temperature: float = 0.5

    def __post_init__(self) -> None:
        self.require(self.width >= 1, "width", "at least 1")
        self.require(self.temperature > 0, "temperature", "more than 0")


class ViewContrast(Objective):
    """NT-Xent (Chen et al. 2020) over the views of all processes; each view adds -log softmax at the other view of its crop.

    A view is not compared with itself, nor with views of other items of its group: they are no negatives (methods.md 1.4).
    """

    needs = frozenset(VIEWS)
    across = True

    def __init__(self, channels: int, settings: ViewContrastSettings | None = None) -> None:
        """channels: of the top map."""
        super().__init__()
        self.settings = settings or ViewContrastSettings()
        self.head = PooledHead(channels, self.settings.width)

    def counts(self, batch: StudyBatch, ctx: Context) -> dict[str, float]:
        return {"view_contrast_loss": 2.0 * len(batch)}

    def forward(self, model: VelvetModel, features: Features, batch: StudyBatch, ctx: Context) -> Terms:
        heads = [self.head(features[key].top) for key in VIEWS]
        with in_full_precision(heads[0]):
            views = [functional.normalize(wide(z), dim=-1) for z in heads]
            every = torch.cat([ctx.gather(z) for z in views])  # [2N, D], all first views and then all second ones
            group = ctx.gather_no_grad(batch.group)
            first, rows, items = ctx.first_row(len(batch)), len(batch), len(group)
            place = torch.arange(first, first + rows, device=group.device)
            same_crop = place[:, None] == torch.arange(items, device=group.device)[None, :]
            barred = (batch.group[:, None] == group[None, :]) & ~same_crop
            total, right = every.new_zeros(()), every.new_zeros(())
            for own, z in enumerate(views):
                # The own view is barred, the other view of the crop is the one right answer.
                halves = [barred | same_crop, barred] if own == 0 else [barred, barred | same_crop]
                logits = (z @ every.T / self.settings.temperature).masked_fill(torch.cat(halves, dim=1), -torch.inf)
                answer = place + (items if own == 0 else 0)
                total = total + functional.cross_entropy(logits, answer, reduction="sum")
                right = right + (logits.detach().argmax(dim=1) == answer).sum()
        metrics = {"view_contrast/r1": right / (2 * rows)}
        return Terms({"view_contrast_loss": LossTerm(total, 2.0 * rows)}, metrics)


class Rotation(Objective):
    """CE of the number of quarter turns, for both views."""

    needs = frozenset(VIEWS)

    def __init__(self, channels: int) -> None:
        """channels: of the top map."""
        super().__init__()
        self.head = PooledHead(channels, 4)

    def counts(self, batch: StudyBatch, ctx: Context) -> dict[str, float]:
        return {"rotation_loss": float(sum(len(batch.quarter_turns[key]) for key in VIEWS))}

    def forward(self, model: VelvetModel, features: Features, batch: StudyBatch, ctx: Context) -> Terms:
        logits = torch.cat([self.head(features[key].top) for key in VIEWS])
        turns = torch.cat([batch.quarter_turns[key] for key in VIEWS])
        with in_full_precision(logits):
            total = functional.cross_entropy(wide(logits), turns, reduction="sum")
        metrics = {"rotation/accuracy": (logits.detach().argmax(dim=1) == turns).sum() / max(1, len(turns))}
        return Terms({"rotation_loss": LossTerm(total, float(len(turns)))}, metrics)


class Restoration(Objective):
    """|restored - clean| over ALL voxels of both views, cut out or not; every voxel counts once."""

    needs = frozenset(VIEWS)

    def __init__(self, channels: int) -> None:
        """channels: of the top map."""
        super().__init__()
        self.decoder = RestorationDecoder(channels)

    def counts(self, batch: StudyBatch, ctx: Context) -> dict[str, float]:
        return {"restoration_loss": float(sum(batch.clean[key].numel() for key in VIEWS))}

    def forward(self, model: VelvetModel, features: Features, batch: StudyBatch, ctx: Context) -> Terms:
        totals: list[Tensor] = []
        for key in VIEWS:
            restored = self.decoder(features[key].top)
            with in_full_precision(restored):
                totals.append((wide(restored) - wide(batch.clean[key])).abs().sum())
        count = self.counts(batch, ctx)["restoration_loss"]
        return Terms({"restoration_loss": LossTerm(torch.stack(totals).sum(), count)})
