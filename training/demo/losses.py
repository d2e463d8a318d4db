"""The supervised losses of the demo training: organs and lesions by voxel, contents of cells, findings by study and by sentence, words."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from VelvetMedLib.models.decoder import CausalDecoder
from VelvetMedLib.objectives.base import NOT_ASKED, LossTerm, in_full_precision, wide


def organ_loss(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy over the given rows plus soft Dice, averaged over the structures that the batch contains.

    logits [N, O] float32, labels [N] int64 with 0 = background, weight [N]: how many voxels of the batch each row stands
    for. Dice counts voxels; cross-entropy counts rows, so that what is drawn more often weighs more.
    """
    log_probability = logits.log_softmax(1)
    of_label = log_probability.gather(1, labels[:, None])[:, 0]
    size = torch.bincount(labels, weight, minlength=logits.shape[1])
    hit = torch.zeros_like(size).index_add_(0, labels, of_label.exp() * weight)
    dice = (2 * hit + 1) / (weight @ log_probability.exp() + size + 1)
    inside = size[1:] > 0
    return 1 - of_label.mean() - dice[1:][inside].mean() if inside.any() else -of_label.mean()


def known_findings(targets: Tensor) -> float:
    """How many entries of [B, F] are not NaN."""
    return float(torch.isfinite(targets).sum())


def findings_term(logits: Tensor, targets: Tensor, positive_weight: Tensor) -> LossTerm:
    """Binary cross-entropy over the known entries of [B, F]. targets: 1 present, 0 absent, NaN unknown; positive_weight [F]."""
    known = torch.isfinite(targets)
    raw = F.binary_cross_entropy_with_logits(logits, torch.nan_to_num(targets), pos_weight=positive_weight, reduction="none")
    return LossTerm((raw * known).sum(), known_findings(targets))


def prompt_term(study: Tensor, text: Tensor, scale: Tensor, targets: Tensor, positive_weight: Tensor) -> LossTerm:
    """Is the study nearer to the sentence that affirms a finding or to the one that denies it? Cross-entropy over known findings.

    study [B, D] and text [2 F, D] unit vectors, text alternating affirmed and denied; scale: the contrast's; targets [B, F]
    as in `findings_term`.
    """
    with in_full_precision(study):
        scores = wide(study) @ wide(text).T
        return findings_term(wide(scale) * (scores[:, 0::2] - scores[:, 1::2]), targets, positive_weight)


def said_term(logits: Tensor, said: Tensor, positive_weight: Tensor) -> LossTerm:
    """What a text or a study says of each finding: binary cross-entropies of affirming and of denying it, counted in findings.

    logits [N, 2 F]: affirmed, then denied; said [N, F]: 1 affirmed, 0 denied, NaN neither; positive_weight [F]: of what is affirmed.
    """
    affirmed, denied = logits.chunk(2, 1)
    on_affirmed = F.binary_cross_entropy_with_logits(affirmed, (said == 1).float(), pos_weight=positive_weight, reduction="sum")
    on_denied = F.binary_cross_entropy_with_logits(denied, (said == 0).float(), reduction="sum")
    return LossTerm(on_affirmed + on_denied, float(said.numel()))


def cells_term(logits: Tensor, shares: Tensor) -> LossTerm:
    """Cross-entropy between what a cell holds and what is said of it, summed over structures and lesions, counted in cells.

    logits, shares [B, S, X, Y, Z]; a share is the part of the cell that is filled, 0..1.
    """
    total = F.binary_cross_entropy_with_logits(logits, shares, reduction="none").sum()
    return LossTerm(total, float(shares[:, 0].numel()))


def words_term(decoder: CausalDecoder, memory: Tensor, mask: Tensor, packs: list[tuple[Tensor, Tensor, Tensor]]) -> LossTerm:
    """Cross-entropy of the next token, counted in target tokens. packs: as `texts.packed` makes them."""
    total = memory.new_zeros((), dtype=torch.float32)
    for owner, ids, targets in packs:
        logits = decoder(ids, memory[owner], mask[owner])
        flat = logits.float().flatten(0, 1)
        total = total + F.cross_entropy(flat, targets.flatten(), ignore_index=NOT_ASKED, reduction="sum")
    return LossTerm(total, target_tokens(packs))


def target_tokens(packs: list[tuple[Tensor, Tensor, Tensor]]) -> float:
    return float(sum(int((targets != NOT_ASKED).sum()) for _, _, targets in packs))
