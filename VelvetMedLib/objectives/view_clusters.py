"""Clusters of views: each view predicts to which prototypes another view of its study is assigned (methods.md 4.5, option `tma`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.t3d import T3dModel
from VelvetMedLib.models.text_informed import cells
from VelvetMedLib.objectives.base import Features, LossTerm, Objective, StudyBatch, Terms, in_full_precision, wide
from VelvetMedLib.objectives.context import Context


@dataclass(frozen=True, kw_only=True)
class ViewClustersSettings(Settings):
    """prototypes: cluster centres. rounds: of Sinkhorn. sharpness: divisor of the scores before it; temperature: of the prediction."""

    prototypes: int = 512
    rounds: int = 3
    sharpness: float = 0.05
    temperature: float = 0.1

    def __post_init__(self) -> None:
        for name in ("prototypes", "rounds"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("sharpness", "temperature"):
            self.require(getattr(self, name) > 0, name, "more than 0")


class ViewClusters(Objective):
    """CE of the balanced assignment of view u under the prediction from view v, over all ordered pairs v != u of a study.

    Scores are <z, c / |c|>; the assignment is Sinkhorn's over all views of the gathered batch, without gradient (SwAV, Caron et
    al. 2020). z has read nothing: with the report in both views it could be told from the text alone.
    """

    across = True

    def __init__(self, width: int, views: Sequence[str], settings: ViewClustersSettings | None = None) -> None:
        """width: of the vectors that are compared. views: feature keys of two or more views of a study."""
        super().__init__()
        self.settings = settings or ViewClustersSettings()
        self.views = tuple(views)
        self.needs = frozenset(views)
        self.prototypes = nn.Parameter(torch.randn(self.settings.prototypes, width) * width**-0.5)

    def counts(self, batch: StudyBatch, ctx: Context) -> dict[str, float]:
        return {"view_clusters_loss": float(len(batch) * len(self.views) * (len(self.views) - 1))}

    def forward(self, model: T3dModel, features: Features, batch: StudyBatch, ctx: Context) -> Terms:
        vectors = torch.stack([model.text_informed.project(cells(features[view].top)) for view in self.views], dim=1)
        with in_full_precision(vectors):
            scores = vectors @ functional.normalize(wide(self.prototypes), dim=-1).T  # [B, V, prototypes]
            # Assignments are targets: the other processes' scores are needed for the balance alone, without gradient.
            every = ctx.gather_no_grad(scores)
            shares = balanced(every.flatten(0, 1) / self.settings.sharpness, self.settings.rounds).unflatten(0, every.shape[:2])
            first = ctx.first_row(len(batch))
            own = shares[first : first + len(batch)]
            logs = functional.log_softmax(scores / self.settings.temperature, dim=-1)
            each = -torch.einsum("bup,bvp->buv", own, logs)
            total = each.sum() - each.diagonal(dim1=1, dim2=2).sum()
        return Terms({"view_clusters_loss": LossTerm(total, self.counts(batch, ctx)["view_clusters_loss"])})


@torch.no_grad()
def balanced(scores: Tensor, rounds: int) -> Tensor:
    """Sinkhorn: rows of exp(scores) [N, P] scaled in turn so that every column has 1 / P and every row 1 / N of the mass; rows
    of what is returned sum to 1. In logarithms, so that no score is too large."""
    logs = scores - scores.logsumexp(dim=(0, 1))
    for _ in range(rounds):
        logs = logs - logs.logsumexp(dim=0, keepdim=True)
        logs = logs - logs.logsumexp(dim=1, keepdim=True)
    return logs.exp()
