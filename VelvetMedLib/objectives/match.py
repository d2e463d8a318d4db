"""Image-text matching: does this report belong to this scan? Hard negatives are drawn from all processes (methods.md 2.4b)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.heads import MatchHead
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


@dataclass(frozen=True, kw_only=True)
class MatchSettings(Settings):
    """epsilon: added to the probability of every legal negative, so that none is out of reach.

    chunk_rows: pairs that go through the fusion layers at once and are computed again in backward; 0 = all, and kept.
    """

    epsilon: float = 1e-4
    chunk_rows: int = 0

    def __post_init__(self) -> None:
        self.require(self.epsilon > 0, "epsilon", "more than 0")
        self.require(self.chunk_rows >= 0, "chunk_rows", "0 (all at once) or more")


class Negatives(NamedTuple):
    """images, texts: [B], places in the gathered batch of the wrong image for each own text and the wrong text for each own image.

    legal: [B], False = every study of the batch is of the item's own group; its places mean nothing.
    """

    images: Tensor
    texts: Tensor
    legal: Tensor


class Match(Objective):
    """CE of match / no match on the fused [CLS] for (text_b, image_b), (text_b, wrong image), (wrong text, image_b).

    Each item adds one positive and two negative rows; an item without a legal negative adds the positive only. Text enters
    as the states of the last text layer of the unmasked report; a negative text brings its own types and mask. Partners'
    states come from all processes, with gradient.
    """

    needs = frozenset({IMAGE_GLOBAL, TEXT_CLEAN})
    across = True

    def __init__(self, width: int, settings: MatchSettings | None = None) -> None:
        """width: of the text encoder's states."""
        super().__init__()
        self.settings = settings or MatchSettings()
        self.head = MatchHead(width)

    def counts(self, batch: StudyBatch, ctx: Context) -> dict[str, float]:
        return {"match_loss": float(len(batch) + 2 * _legal(batch.group, ctx.gather_no_grad(batch.group)).any(dim=1).sum())}

    def forward(self, model: VelvetModel, features: Features, batch: StudyBatch, ctx: Context) -> Terms:
        layout, states = batch.texts[TEXT_CLEAN], features[TEXT_CLEAN].states
        with torch.no_grad():
            image = model.project_image(features[IMAGE_GLOBAL], ["report"])["report"]
            text = model.project_text(states, layout, ["report"])["report"]
            with in_full_precision(image):
                drawn = draw_negatives(image, text, wide(model.contrast_scale()), batch, ctx, self.settings)
        visual = model.visual_tokens(features[IMAGE_GLOBAL])
        every_visual, every_states = ctx.gather(visual), ctx.gather(states)
        every_type, every_real = ctx.gather_no_grad(layout.type_ids), ctx.gather_no_grad(layout.pad_mask)
        first = ctx.first_row(len(batch))
        own = torch.arange(first, first + len(batch), device=states.device)
        # Items without a negative run with a dummy of weight 0: the work is the same on every process, whatever was drawn.
        texts, images = torch.cat([own, own, drawn.texts]), torch.cat([own, drawn.images, own])

        def told(texts: Tensor, images: Tensor, states: Tensor, visual: Tensor) -> Tensor:
            return self.head(model.tribert.fuse(states[texts], every_type[texts], every_real[texts], visual[images]))

        size = self.settings.chunk_rows or len(texts)
        chunks = zip(texts.split(size), images.split(size), strict=True)
        if self.settings.chunk_rows and torch.is_grad_enabled():
            logits = torch.cat([checkpoint(told, t, i, every_states, every_visual, use_reentrant=False) for t, i in chunks])
        else:
            logits = torch.cat([told(t, i, every_states, every_visual) for t, i in chunks])
        answer = torch.zeros(3 * len(batch), dtype=torch.long, device=logits.device)
        answer[: len(batch)] = 1
        counted = torch.cat([torch.ones_like(drawn.legal), drawn.legal, drawn.legal])
        with in_full_precision(logits):
            each = functional.cross_entropy(wide(logits), answer, reduction="none")
            total = (each * counted).sum()
        right = (logits.detach().argmax(dim=1) == answer) & counted
        metrics = {"match/accuracy": right.sum() / counted.sum().clamp(min=1)}
        return Terms({"match_loss": LossTerm(total, float(counted.sum()))}, metrics)


@torch.no_grad()
def draw_negatives(image: Tensor, text: Tensor, scale: Tensor, batch: StudyBatch, ctx: Context, settings: MatchSettings) -> Negatives:
    """Hard negatives in proportion to the soft-max of the report logits over the global batch, never of the own group.

    image, text: this process's unit vectors [B, D]; scale: exp(s).
    """
    every_study, every_group = ctx.gather_no_grad(batch.study), ctx.gather_no_grad(batch.group)
    legal = _legal(batch.group, every_group)

    def drawn(anchors: Tensor, candidates: Tensor, purpose: str) -> Tensor:
        chances = (scale * anchors @ candidates.T).double().softmax(dim=1)
        noise = ctx.uniform(purpose, batch.study[:, None], every_study[None, :])
        return gumbel_choice(chances + settings.epsilon, legal, noise)

    images = drawn(text, ctx.gather_no_grad(image), "match.wrong_image")
    texts = drawn(image, ctx.gather_no_grad(text), "match.wrong_text")
    return Negatives(images, texts, legal.any(dim=1))


def gumbel_choice(weights: Tensor, legal: Tensor, uniform: Tensor) -> Tensor:
    """argmax_j of log weight_j - log(-log u_j) among the legal j: column j is chosen with chance weight_j / sum of legal weights.

    weights, legal, uniform: [R, N]. A row without a legal column gives 0.
    """
    gumbel = -torch.log(-torch.log(uniform))
    return (weights.log() + gumbel).masked_fill(~legal, -torch.inf).argmax(dim=1)


def _legal(own: Tensor, every: Tensor) -> Tensor:
    return own[:, None] != every[None, :]
