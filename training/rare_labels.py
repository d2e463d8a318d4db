"""The loss of labels that few voxels have and that may share a voxel: lesions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

SPREAD_VOXELS = 200.0
"""Added to the number of labelled voxels by which the cross-entropy is divided: a crop without any must not weigh infinitely."""

RARE_START = -6.0
"""Constant of such a label's logits at the start, near the rate at which its voxels occur: from one half the first steps only unlearn."""


def rare_labels_loss(logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """Focal-weighted binary cross-entropy per labelled voxel plus soft Dice, over the whole batch, of the labels that it contains.

    The focal weight (Lin T-Y et al., ICCV 2017; squared) keeps millions of easy voxels from drowning a nodule of ten, and the division by
    what is labelled keeps the loss from vanishing with it. Dice of a label that the batch lacks would only push it towards nothing:
    with it, and with cross-entropy averaged over all voxels, fine-tunings on ten scans predicted no lesion at all after 400 steps.

    logits, targets [N, L] float32; weight [N]: how many voxels of the batch each row stands for, None = 1.
    """
    probability = logits.sigmoid()
    wrongness, squares = (probability - targets).detach().square(), probability.square()
    if weight is not None:
        wrongness = wrongness * weight[:, None]
    found = squares.sum(0) if weight is None else weight @ squares
    # softplus(z) - z*y is the cross-entropy of sigmoid(z) against y.
    focal = (wrongness * (F.softplus(logits) - logits * targets)).sum() / (targets.sum() + SPREAD_VOXELS)
    size = targets.sum(0)
    dice = (2 * (probability * targets).sum(0) + 1) / (found + size + 1)
    present = size > 0
    return focal + (1 - dice[present]).mean() if present.any() else focal
