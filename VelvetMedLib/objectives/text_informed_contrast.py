"""Text-informed contrast: views of one study against views of others, all of which have read the anchor's own report (methods.md 4.3)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.t3d import T3dModel
from VelvetMedLib.models.text_informed import TextInformed, cells
from VelvetMedLib.objectives.base import (
    IMAGE_LOCAL_A,
    IMAGE_LOCAL_B,
    TEXT_CLEAN,
    Features,
    LossTerm,
    Objective,
    StudyBatch,
    Terms,
    in_full_precision,
)
from VelvetMedLib.objectives.context import Context

TWO_CROPS = (IMAGE_LOCAL_A, IMAGE_LOCAL_B)
NEGATIVES = ("anchor_text", "own_text")


def told(view: str) -> str:
    """Name in `StudyBatch.extras` of what a view may read: bool [B, L] over the tokens of "text.clean"; none = the null token."""
    return f"told.{view}"


@dataclass(frozen=True, kw_only=True)
class TextInformedContrastSettings(Settings):
    """temperature: divisor of the cosines. most_negatives: studies that an anchor is told from, drawn from the global batch.

    negatives: "anchor_text": candidates read the report of the anchor's study, so that no candidate can be known by its text;
    "own_text": each reads its own (the naive form, for ablation). chunk_anchors: studies whose candidates go through the
    blocks at once and are computed again in backward; 0 = all, and kept.
    """

    temperature: float = 0.1
    most_negatives: int = 31
    negatives: str = "anchor_text"
    chunk_anchors: int = 1

    def __post_init__(self) -> None:
        self.require(self.temperature > 0, "temperature", "more than 0")
        self.require(self.most_negatives >= 1, "most_negatives", "at least 1")
        self.require(self.negatives in NEGATIVES, "negatives", " or ".join(f'"{name}"' for name in NEGATIVES))
        self.require(self.chunk_anchors >= 0, "chunk_anchors", "0 (all at once) or more")


class Candidates(NamedTuple):
    """places: [B, 1 + K] in the gathered batch, the anchor's own study first; legal: bool [B, 1 + K], False = not in the sum."""

    places: Tensor
    legal: Tensor


def draw_candidates(batch: StudyBatch, ctx: Context, most_negatives: int) -> Candidates:
    """For each study itself and at most `most_negatives` studies outside its group, drawn evenly from the global batch.

    The noise is keyed by the pair of studies: the draw is the same for any number of processes and any order.
    """
    study, group = ctx.gather_no_grad(batch.study), ctx.gather_no_grad(batch.group)
    legal = batch.group[:, None] != group[None, :]
    noise = ctx.uniform("text_informed.negatives", batch.study[:, None], study[None, :])
    order = noise.masked_fill(~legal, 2.0).argsort(dim=1, stable=True)[:, :most_negatives]
    first = ctx.first_row(len(batch))
    own = torch.arange(first, first + len(batch), device=order.device)[:, None]
    return Candidates(torch.cat([own, order], dim=1), torch.cat([torch.ones_like(own, dtype=torch.bool), legal.gather(1, order)], dim=1))


def anchors_with_negative(batch: StudyBatch, ctx: Context) -> float:
    """How many studies of this process have a study outside their group in the global batch."""
    group = ctx.gather_no_grad(batch.group)
    return float((batch.group[:, None] != group[None, :]).any(dim=1).sum())


def view_info_nce(vectors: Sequence[Tensor], candidates: Candidates, temperature: float) -> tuple[Tensor, Tensor]:
    """Sum over studies with a negative, and hits: over the same, how often a view's nearest candidate is of its own study.

    vectors: for each view unit vectors [B, 1 + K, D] of the candidates, the own study first. With V views, the view v of study i
    as anchor and s(u, j) = <v_i, u_j> / temperature for every other view u of candidate j:
    -1 / (V - 1) sum over u of log exp s(u, i) / sum over u' and j of exp s(u', j); the mean of this over the V anchors. For
    V = 2 this is InfoNCE with one positive, both directions halved.
    """
    width = vectors[0].shape[1]
    total, right = vectors[0].new_zeros(()), vectors[0].new_zeros(())
    counted = candidates.legal[:, 1:].any(dim=1)
    for v, anchor in enumerate(vectors):
        others = torch.cat([other for u, other in enumerate(vectors) if u != v], dim=1)
        barred = ~candidates.legal.repeat(1, len(vectors) - 1)
        logits = torch.einsum("bd,bkd->bk", anchor[:, 0], others) / temperature
        logs = functional.log_softmax(logits.masked_fill(barred, torch.finfo(logits.dtype).min), dim=1)
        positives = logs[:, ::width]
        total = total - (positives.mean(dim=1) * counted).sum() / len(vectors)
        right = right + ((logs.detach().argmax(dim=1) % width == 0) & counted).sum() / len(vectors)
    return total, right


class ViewContrast(Objective):
    """Base: InfoNCE of the views of a study against those of others. A study adds the mean over its views as anchors
    (`view_info_nce`) and counts once if it has a negative; members of its group are left out."""

    across = True
    name: str
    reads_text = False

    def __init__(self, settings: TextInformedContrastSettings | None = None, *, views: Sequence[str] = TWO_CROPS) -> None:
        """views: feature keys of two or more views of a study."""
        super().__init__()
        if len(views) < 2:
            raise ValueError(f"contrast needs two views of a study, got {list(views)}")
        self.settings = settings or TextInformedContrastSettings()
        self.views = tuple(views)
        self.needs = frozenset({*views, *([TEXT_CLEAN] if self.reads_text else [])})

    def counts(self, batch: StudyBatch, ctx: Context) -> dict[str, float]:
        return {f"{self.name}_loss": anchors_with_negative(batch, ctx)}

    def forward(self, model: T3dModel, features: Features, batch: StudyBatch, ctx: Context) -> Terms:
        candidates = draw_candidates(batch, ctx, self.settings.most_negatives)
        vectors = [self.vectors(view, model.text_informed, features, batch, candidates.places, ctx) for view in self.views]
        with in_full_precision(vectors[0]):
            total, right = view_info_nce(vectors, candidates, self.settings.temperature)
        count = float(candidates.legal[:, 1:].any(dim=1).sum())
        metrics = {f"{self.name}/r1": right / max(1.0, count)}
        if self.reads_text:
            metrics[f"{self.name}/gate"] = model.text_informed.gates().detach()
        return Terms({f"{self.name}_loss": LossTerm(total, count)}, metrics)

    @abstractmethod
    def vectors(self, view: str, block: TextInformed, features: Features, batch: StudyBatch, places: Tensor, ctx: Context) -> Tensor:
        """Unit vectors [B, 1 + K, D] of one view of the candidates at `places` [B, 1 + K] of the gathered batch."""


class TextInformedContrast(ViewContrast):
    """Views that have read a report: z_v(i|i) against z_u(j|i), j = i or one of N_i, which read what view u of i is told.

    z_u(j|i): view u of study j conditioned on the token set of (i, u), the very one of the positive z_u(i|i); so an anchor's
    candidates differ in their images alone, and if text dropout drew the null token for (i, u), all of them read it. N_i: at
    most 31 studies outside the group of i (`draw_candidates`). What a view may read is in the batch's extras (`told`).
    """

    name = "text_informed_contrast"
    reads_text = True

    def vectors(self, view: str, block: TextInformed, features: Features, batch: StudyBatch, places: Tensor, ctx: Context) -> Tensor:
        tokens, states, kept = cells(features[view].top), features[TEXT_CLEAN].states, batch.extras[told(view)]
        if self.settings.negatives == "own_text":
            return ctx.gather(block.project(block(tokens, states, kept)))[places]
        every = ctx.gather(tokens)

        def conditioned(places: Tensor, states: Tensor, kept: Tensor) -> Tensor:
            # Image tokens do not see one another: all candidates of an anchor stand in one row and share its text's keys and values.
            row = every[places].flatten(1, 2)
            return block.project(block(row, states, kept).unflatten(1, (places.shape[1], -1)))

        size = self.settings.chunk_anchors or len(places)
        chunks = zip(places.split(size), states.split(size), kept.split(size), strict=True)
        if self.settings.chunk_anchors and torch.is_grad_enabled():
            return torch.cat([checkpoint(conditioned, *chunk, use_reentrant=False) for chunk in chunks])
        return torch.cat([conditioned(*chunk) for chunk in chunks])


class VisualOnlyContrast(ViewContrast):
    """Views that have read nothing: the mean of X itself through the same MLP (keeps the encoder useful alone)."""

    name = "visual_only_contrast"

    def vectors(self, view: str, block: TextInformed, features: Features, batch: StudyBatch, places: Tensor, ctx: Context) -> Tensor:
        return ctx.gather(block.project(cells(features[view].top)))[places]
