"""Parts that every contrast shares: targets that know groups, cross-entropy with soft targets, rows that are left out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def group_targets(own: Tensor, every: Tensor, kept: Tensor | None = None, *, smoothing: float = 0.0, like: Tensor) -> Tensor:
    """Target of each column for each row: (1 - smoothing) / |P| in the row's group, plus smoothing / N everywhere (methods.md 1.4).

    own: groups of the rows [R]; every: groups of the columns [N]; kept: [N], False = column left out (target 0, not
    counted in N or P). A row whose group has no kept column gets no positive mass; such rows must be left out.
    like: gives dtype and device. Returns [R, N].
    """
    columns = torch.ones_like(every, dtype=torch.bool) if kept is None else kept
    positive = ((own[:, None] == every[None, :]) & columns[None, :]).to(like.dtype)
    shared = columns.to(like.dtype) / columns.sum().clamp(min=1)
    return (1 - smoothing) * positive / positive.sum(dim=1, keepdim=True).clamp(min=1) + smoothing * shared


def soft_cross_entropy(logits: Tensor, targets: Tensor, kept: Tensor | None = None) -> Tensor:
    """-sum_j target_j log softmax(logits)_j for each row: [R, N] -> [R]; columns with kept [N] False are not in the soft-max."""
    if kept is not None:
        # A large finite number and not -inf: 0 * -inf in a target's place would be NaN.
        logits = logits.masked_fill(~kept[None, :], torch.finfo(logits.dtype).min)
    return -(targets * functional.log_softmax(logits, dim=1)).sum(dim=1)


@torch.no_grad()
def hits(logits: Tensor, own: Tensor, every: Tensor, kept: Tensor | None = None) -> Tensor:
    """Share of the rows whose best column is of their own group: recall@1 within the batch. An empty row set gives 0."""
    if kept is not None:
        logits = logits.masked_fill(~kept[None, :], torch.finfo(logits.dtype).min)
    if not len(logits):
        return logits.new_zeros(())
    return (every[logits.argmax(dim=1)] == own).to(logits.dtype).mean()
