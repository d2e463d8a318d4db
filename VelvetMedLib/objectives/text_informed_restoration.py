"""Text-informed restoration: what was masked of a crop, told from what is left of it and from the report (methods.md 4.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.heads import RestorationDecoder
from VelvetMedLib.models.t3d import T3dModel
from VelvetMedLib.models.text_informed import as_map, cells
from VelvetMedLib.objectives.base import TEXT_CLEAN, Features, LossTerm, Objective, StudyBatch, Terms, in_full_precision, wide
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.sentence_subsets import whole_report

IMAGE_CORRUPT_A = "image.corrupt_a"
ASKED = f"asked.{IMAGE_CORRUPT_A}"
"""Name in `StudyBatch.extras` of the voxels to be restored: bool [B, 1, X, Y, Z], masked and inside the body."""


@dataclass(frozen=True, kw_only=True)
class TextInformedRestorationSettings(Settings):
    """diagnose_every: steps between looks at what the report is worth (two more decodings without gradient), 0 = never."""

    diagnose_every: int = 10

    def __post_init__(self) -> None:
        self.require(self.diagnose_every >= 0, "diagnose_every", "0 (never) or more")


class TextInformedRestoration(Objective):
    """|restored - clean| over the masked voxels of the body, and, as a term of its own, over all other voxels.

    The crop's tokens read the whole report, un-dropped; the decoder sees nothing but them. Diagnostic, every so many steps: the
    first term with the true report, with another study's, and with the null token. Text helps only if the first is lowest.
    """

    needs = frozenset({IMAGE_CORRUPT_A, TEXT_CLEAN})

    def __init__(self, channels: int, settings: TextInformedRestorationSettings | None = None) -> None:
        """channels: of the top map."""
        super().__init__()
        self.settings = settings or TextInformedRestorationSettings()
        self.decoder = RestorationDecoder(channels)

    def counts(self, batch: StudyBatch, ctx: Context) -> dict[str, float]:
        asked = batch.extras[ASKED]
        return {
            "text_informed_restoration_loss": float(asked.sum()),
            "text_informed_restoration_rest_loss": float(asked.numel() - asked.sum()),
        }

    def forward(self, model: T3dModel, features: Features, batch: StudyBatch, ctx: Context) -> Terms:
        top, states, kept = features[IMAGE_CORRUPT_A].top, features[TEXT_CLEAN].states, whole_report(batch.texts[TEXT_CLEAN])
        asked = batch.extras[ASKED]
        error = self._error(model, top, states, kept, batch.clean[IMAGE_CORRUPT_A])
        zero = torch.zeros((), dtype=error.dtype, device=error.device)
        sums = (torch.where(asked, error, zero).sum(), torch.where(asked, zero, error).sum())
        losses = {name: LossTerm(total, count) for total, (name, count) in zip(sums, self.counts(batch, ctx).items(), strict=True)}
        every = self.settings.diagnose_every
        if every == 0 or (ctx.step + 1) % every:
            return Terms(losses)
        return Terms(losses, self._diagnosed(model, sums[0].detach(), top.detach(), states.detach(), kept, batch, ctx))

    def _error(self, model: T3dModel, top: Tensor, states: Tensor, kept: Tensor, clean: Tensor) -> Tensor:
        """|restored - clean| of each voxel, [B, 1, X, Y, Z]."""
        informed = model.text_informed(cells(top), states, kept)
        restored = self.decoder(as_map(informed, top.shape[2:]))
        with in_full_precision(restored):
            return (wide(restored) - wide(clean)).abs()

    @torch.no_grad()
    def _diagnosed(
        self, model: T3dModel, told: Tensor, top: Tensor, states: Tensor, kept: Tensor, batch: StudyBatch, ctx: Context
    ) -> dict[str, Tensor]:
        """Mean error over the asked voxels of this process, by what was read; the swapped report is the next one of another group.

        told: the sum of errors with the true report."""
        every_states, every_kept = ctx.gather_no_grad(states), ctx.gather_no_grad(kept)
        swap, group = swapped_places(batch, ctx), ctx.gather_no_grad(batch.group)
        asked, clean = batch.extras[ASKED], batch.clean[IMAGE_CORRUPT_A]

        count = asked.sum().clamp(min=1)

        def mean_error(states: Tensor, kept: Tensor) -> Tensor:
            return torch.where(asked, self._error(model, top, states, kept, clean), 0.0).sum() / count

        found = {"true": told / count, "null": mean_error(states, torch.zeros_like(kept))}
        # Whether there is another group at all is the same on every process, so all log the same names.
        if bool((group != group[0]).any()):
            found["swapped"] = mean_error(every_states[swap], every_kept[swap])
        return {f"text_informed_restoration/{name}_report": value for name, value in found.items()}


def swapped_places(batch: StudyBatch, ctx: Context) -> Tensor:
    """[B]: for each study the place, in the gathered batch, of the next study of another group; its own place where there is none."""
    group = ctx.gather_no_grad(batch.group)
    n, rows = len(group), len(batch)
    first = ctx.first_row(rows)
    ahead = (torch.arange(first, first + rows, device=group.device)[:, None] + torch.arange(n, device=group.device)[None, :]) % n
    other = group[ahead] != batch.group[:, None]
    return ahead.gather(1, other.to(torch.uint8).argmax(dim=1, keepdim=True))[:, 0]
