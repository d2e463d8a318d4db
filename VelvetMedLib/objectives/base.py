"""The contract between objectives and the engine: batch, features, (sum, count) terms, and what an objective promises.

One step, as the engine runs it (methods.md 1.4):

    n        = sum over micro-batches of objective.counts(batch, ctx), all-reduced over ranks, before the first backward
    features = encode(model, batch, keys)                     per micro-batch; keys = all that the objectives need
    terms    = objective(model, features, batch, ctx).losses
    loss     = normalised(terms, n, world_size=W)             then backward; DDP's mean over ranks does the rest

Cached gradients (methods.md 2.4e; `cached.py`): objectives with `across = True` compare the studies of a batch with each other.
They run once, on the features of the whole effective batch kept as leaves; all others run per micro-batch in the second pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from VelvetMedLib.models.text import TextLayout
from VelvetMedLib.objectives.context import Context

IMAGE_GLOBAL = "image.global"
IMAGE_LOCAL_A = "image.local_a"
IMAGE_LOCAL_B = "image.local_b"
IMAGE_DISRUPTED = "image.disrupted"
DISRUPTED_CHANNELS = "disrupted.kept"
"""Extra of `disruptive_restoration`: bool [B, embed_dim, bx, by, bz], which blocks of tokens keep which channel."""
TEXT_CLEAN = "text.clean"
TEXT_MASKED_MM = "text.masked_mm"
TEXT_MASKED_UNI = "text.masked_uni"

NOT_ASKED = -100
"""Label of a token that no masked-language loss asks for."""


class LocalFeatures(NamedTuple):
    """top: map of a local view, [B, 16e, X/32, Y/32, Z/32], channels normalised."""

    top: Tensor


class TextFeatures(NamedTuple):
    """states of the last text layer, [B, L, W]; their layout is `StudyBatch.texts[key]`."""

    states: Tensor


Feature: TypeAlias = tuple[Tensor, ...]
"""A NamedTuple of tensors [B, ...]. Fields that its static method `alone()` names, if it has one, are not read by objectives
that compare studies: they need not wait for the whole batch where gradients are cached."""
Features: TypeAlias = Mapping[str, Any]
"""Feature key (methods.md 1.5) -> its feature; of a VelvetModel: `models.velvet.GlobalFeatures` for "image.global", LocalFeatures for
"image.local_*", TextFeatures for "text.*"."""


@dataclass(frozen=True, kw_only=True)
class StudyBatch:
    """B items (a volume and its report) with all that encoders and objectives read of them. Dictionaries are keyed by feature key.

    study: int64 [B], `groups.study_key` of the study; keys the noise, so it must not depend on epoch, rank or place. Two
        series of one study share their noise: as wrong partners of another study, the likelier one stands for both.
    group: int64 [B], `groups.close_groups` over the WHOLE cohort; equal = one another's positives, never negatives.
    images: encoder inputs [B, 1, X, Y, Z]. view_spacing_mm: [B, 3] of the global view.
    texts: layouts as the text encoder reads them; those of "text.masked_*" hold the masked ids.
    labels: int64 [B, L] for "text.masked_*", the true id where it is asked for, else `NOT_ASKED`.
    clean: [B, 1, X, Y, Z] for "image.local_*", the view rotated but not cut: what restoration must give back.
    quarter_turns: int64 [B] for "image.local_*", 0 to 3.
    extras: anything further that an objective of a recipe reads, [B, ...], by a name that the objective gives. A name that ends
        in a dot and a feature key goes along with that key; only such extras reach objectives with `across`.
    """

    study: Tensor
    group: Tensor
    images: dict[str, Tensor] = field(default_factory=dict)
    view_spacing_mm: Tensor | None = None
    texts: dict[str, TextLayout] = field(default_factory=dict)
    labels: dict[str, Tensor] = field(default_factory=dict)
    clean: dict[str, Tensor] = field(default_factory=dict)
    quarter_turns: dict[str, Tensor] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.study)

    def to(self, device: Any) -> Self:
        """The same batch on another device."""

        def moved(values: dict[str, Any]) -> dict[str, Any]:
            return {key: value.to(device) for key, value in values.items()}

        return replace(
            self,
            study=self.study.to(device),
            group=self.group.to(device),
            images=moved(self.images),
            view_spacing_mm=None if self.view_spacing_mm is None else self.view_spacing_mm.to(device),
            texts=moved(self.texts),
            labels=moved(self.labels),
            clean=moved(self.clean),
            quarter_turns=moved(self.quarter_turns),
            extras=moved(self.extras),
        )


@dataclass(frozen=True)
class LossTerm:
    """total: float32 (or wider) scalar with gradient, the SUM over this process's items; count: how many were summed, 0 allowed."""

    total: Tensor
    count: float


@dataclass(frozen=True)
class Terms:
    """losses: names end in `_loss`; metrics: detached scalars of this process's share of the batch, for the log only."""

    losses: dict[str, LossTerm]
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """Turns features into (sum, count) terms. Owns small heads at most; the shared model comes as an argument.

    needs: feature keys it reads. reads: names of the batch's `extras` (and their labels) that it reads beside them.
    across: it compares the studies of a batch with one another, so that its features are
    what cached gradients keep as leaves (and its values depend on the size of the batch).
    """

    needs: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    across: bool = False

    @abstractmethod
    def counts(self, batch: StudyBatch, ctx: Context) -> dict[str, float]:
        """The counts that `forward` will give, from the batch alone: same names, same numbers. May gather, so call it on every rank."""

    @abstractmethod
    def forward(self, model: Any, features: Features, batch: StudyBatch, ctx: Context) -> Terms:
        """model: the shared encoders, undivided (not the DDP wrapper); call from inside the wrapped module's forward."""


def normalised(
    losses: Mapping[str, LossTerm], totals: Mapping[str, float], *, world_size: int, weights: Mapping[str, float] | None = None
) -> Tensor:
    """Sum over terms of weight * world_size * sum / max(1, n_tot), totals: n_tot of the step over ranks and micro-batches.

    With gradients averaged over ranks (DDP) this gives exactly the gradient of (sum of sums) / n_tot. An engine that sums
    gradients itself passes world_size=1.
    """
    parts = [
        term.total * (world_size * (1.0 if weights is None else weights.get(name, 1.0)) / max(1.0, totals[name]))
        for name, term in losses.items()
    ]
    return torch.stack(parts).sum()


def wide(x: Tensor) -> Tensor:
    """float32, or float64 as it is: the arithmetic of losses (methods.md 1.1)."""
    return x if x.dtype == torch.float64 else x.float()


def in_full_precision(x: Tensor) -> torch.autocast:
    """A block in which autocast, if it is on, does not touch the arithmetic of a loss. x: any tensor on the device."""
    return torch.autocast(x.device.type, enabled=False)


def joined_layout(layouts: Sequence[TextLayout]) -> TextLayout:
    """Several layouts as one batch, padded on the right to the longest: 0 for ids, types and masks, -1 for indices."""
    filler = {"word_index": -1, "word_entry": -1}
    names = tuple(TextLayout.__dataclass_fields__)
    return TextLayout(**{name: joined_rows([getattr(layout, name) for layout in layouts], filler.get(name, 0)) for name in names})


def joined_rows(tensors: Sequence[Tensor], filler: float = 0) -> Tensor:
    """Tensors [B_i, ...] one after the other, every further dimension filled up behind to the largest."""
    largest = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
    rows = []
    for t in tensors:
        behind = [pad for have, want in zip(reversed(t.shape[1:]), reversed(largest), strict=True) for pad in (0, want - have)]
        rows.append(functional.pad(t, behind, value=filler) if any(behind) else t)
    return torch.cat(rows)
