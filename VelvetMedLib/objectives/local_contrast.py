"""Local contrast: cells of the middle map against sentences, cells of the bottom map against words (methods.md 2.4a)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.text import TextLayout
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
class LocalContrastSettings(Settings):
    """Constants of the local score.

    tau1: sharpness of a unit's attention over cells. tau2: sharpness over units. tau3: scale of the logits. agg: "sum"
    is the published way and favours long reports by about tau3 log K, "mean" divides by K. skip_text_softmax: attention
    from the cosines themselves. local_tau: attention from cosine / local_tau, which skips the text soft-max too, 0 = off.
    chunk_texts: texts scored at once and computed again in backward; 0 = all at once and kept.
    """

    tau1: float = 4.0
    tau2: float = 5.0
    tau3: float = 10.0
    agg: str = "mean"
    skip_text_softmax: bool = False
    local_tau: float = 0.0
    chunk_texts: int = 2

    def __post_init__(self) -> None:
        for name in ("tau1", "tau2", "tau3"):
            self.require(getattr(self, name) > 0, name, "more than 0")
        self.require(self.agg in ("sum", "mean"), "agg", '"sum" or "mean"')
        self.require(self.local_tau >= 0, "local_tau", "more than 0, or 0 = off")
        self.require(self.chunk_texts >= 0, "chunk_texts", "0 (all at once) or more")


class LocalContrast(Objective):
    """The local score S[i, j] of image i and text j (below), logits tau3 S, and CE over rows and over columns, halved.

    Targets are even over the group, without smoothing. A report without units at this level is left out of rows,
    columns and the count. Each process scores its own images against the texts of all, and then gathers the scores:
    the column of a text needs only numbers [N, N], so that no cell ever leaves its process. Gradient and value are
    those of scoring everything everywhere.
    """

    needs = frozenset({IMAGE_GLOBAL, TEXT_CLEAN})
    across = True

    def __init__(self, level: Literal["sentence", "word"], settings: LocalContrastSettings | None = None) -> None:
        super().__init__()
        self.level = level
        self.settings = settings or LocalContrastSettings()
        self.loss_name = f"{level}_contrast_loss"

    def counts(self, batch: StudyBatch, ctx: Context) -> dict[str, float]:
        return {self.loss_name: float(self._unit_mask(batch.texts[TEXT_CLEAN]).any(dim=1).sum())}

    def forward(self, model: VelvetModel, features: Features, batch: StudyBatch, ctx: Context) -> Terms:
        cells = model.project_image(features[IMAGE_GLOBAL], [self.level])[self.level]
        units = model.project_text(features[TEXT_CLEAN].states, batch.texts[TEXT_CLEAN], [self.level])[self.level]
        mask = self._unit_mask(batch.texts[TEXT_CLEAN])
        with in_full_precision(cells):
            cells, units = wide(cells), wide(units)
            every_mask = ctx.gather_no_grad(mask)
            every_group = ctx.gather_no_grad(batch.group)
            scores = local_scores(cells, ctx.gather(units), every_mask, self.settings)
            first = ctx.first_row(len(batch))
            rows = self.settings.tau3 * scores
            columns = self.settings.tau3 * ctx.gather(scores)[:, first : first + len(batch)].T
            mine, kept = mask.any(dim=1), every_mask.any(dim=1)
            targets = group_targets(batch.group, every_group, kept, like=rows)
            each = 0.5 * (soft_cross_entropy(rows, targets, kept) + soft_cross_entropy(columns, targets, kept))
            # Left-out rows are multiplied away and not cut out: every process must send a gradient through the gathers.
            total = (each * mine).sum()
        metrics = {
            f"{self.level}_contrast/image_to_text_r1": hits(rows[mine], batch.group[mine], every_group, kept),
            f"{self.level}_contrast/text_to_image_r1": hits(columns[mine], batch.group[mine], every_group, kept),
            f"{self.level}_contrast/attention_peak": attention_peak(cells, units, mask, self.settings),
        }
        return Terms({self.loss_name: LossTerm(total, float(mine.sum()))}, metrics)

    def _unit_mask(self, layout: TextLayout) -> Tensor:
        return layout.sentence_mask if self.level == "sentence" else layout.word_mask


def local_scores(cells: Tensor, units: Tensor, unit_mask: Tensor, settings: LocalContrastSettings) -> Tensor:
    """S [B, N] of B images and N texts; cells: unit vectors [B, M, D], units: unit vectors [N, K, D], unit_mask: [N, K].

    a[m, k] = <v_m, t_k>; p = softmax over the units k of a; w[k, m] = softmax over the cells m of tau1 p;
    c_k = sum_m w[k, m] v_m; S = log sum_k exp(tau2 cos(c_k, t_k)), with agg "mean" minus log K.
    Source: GLoRIA (Huang et al., ICCV 2021) with the constants of VELVET-Med's code. A text without units gets a finite
    score that means nothing. Memory: B * chunk * M * K numbers, not B * N * M * K.
    """
    # Padding of the first unit is opened for texts without any, so that no soft-max is empty.
    first = torch.zeros_like(unit_mask)
    first[:, 0] = True
    mask = unit_mask | (first & ~unit_mask.any(dim=1, keepdim=True))
    if not settings.chunk_texts:
        return _block_scores(cells, units, mask, settings)
    chunks = zip(units.split(settings.chunk_texts), mask.split(settings.chunk_texts), strict=True)
    return torch.cat([cast(Tensor, _Recomputed.apply(cells, u, m, settings)) for u, m in chunks], dim=1)


def local_attention(cosines: Tensor, mask: Tensor, settings: LocalContrastSettings, *, cells_dim: int = -2) -> Tensor:
    """Attention of each unit over the cells; cosines: [..., M, ..., K] with the cells along `cells_dim`, units last; mask: [..., K].

    Sums to 1 over the cells, for every unit. The mask is broadcast against the cosines; True = real unit.
    """
    if settings.local_tau:
        return (cosines / settings.local_tau).softmax(dim=cells_dim)
    if settings.skip_text_softmax:
        return (settings.tau1 * cosines).softmax(dim=cells_dim)
    p = cosines.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return (settings.tau1 * p).softmax(dim=cells_dim)


@torch.no_grad()
def attention_peak(cells: Tensor, units: Tensor, unit_mask: Tensor, settings: LocalContrastSettings) -> Tensor:
    """How sharp attention is for matching pairs: mean over real units of (largest weight) * M; 1 = flat, M = one cell."""
    any_unit = unit_mask.any(dim=1)
    if not bool(any_unit.any()):
        return cells.new_ones(())
    mask = unit_mask[any_unit]
    w = local_attention(cells[any_unit] @ units[any_unit].transpose(1, 2), mask[:, None, :], settings)
    return (w.amax(dim=1) * cells.shape[1])[mask].mean()


def _block_scores(cells: Tensor, units: Tensor, mask: Tensor, settings: LocalContrastSettings) -> Tensor:
    """`local_scores` of some texts, none of them without units: [B, M, D], [n, K, D], [n, K] -> [B, n]."""
    images, texts, longest = len(cells), len(units), units.shape[1]
    # [B, M, n, K]: in this order neither soft-max nor either product has to copy the block.
    cosines = (cells @ units.flatten(0, 1).T).unflatten(-1, (texts, longest))
    w = local_attention(cosines, mask, settings, cells_dim=1)
    contexts = (w.flatten(2).transpose(1, 2) @ cells).view(images, texts, longest, -1)
    similarity = (functional.normalize(contexts, dim=-1) * units).sum(dim=-1)
    scores = (settings.tau2 * similarity).masked_fill(~mask, -torch.inf).logsumexp(dim=-1)
    if settings.agg == "mean":
        scores = scores - mask.sum(dim=1).to(scores.dtype).log()
    return scores


class _Recomputed(torch.autograd.Function):
    """`_block_scores` that keeps its inputs only and computes the rest again in backward.

    In place of torch's own checkpointing: there is no random number to replay, and the first call of the other loads
    half of torch's compiler.
    """

    @staticmethod
    def forward(ctx: Any, cells: Tensor, units: Tensor, mask: Tensor, settings: LocalContrastSettings) -> Tensor:
        ctx.save_for_backward(cells, units, mask)
        ctx.settings = settings
        return _block_scores(cells, units, mask, settings)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        cells, units, mask = ctx.saved_tensors
        with torch.enable_grad(), in_full_precision(grad):
            cells, units = cells.detach().requires_grad_(), units.detach().requires_grad_()
            gradients = torch.autograd.grad(_block_scores(cells, units, mask, ctx.settings), (cells, units), grad)
        return gradients[0], gradients[1], None, None
