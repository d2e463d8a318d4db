"""Which words a masked-language loss asks for, and what stands in their place (methods.md 2.4b)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from VelvetMedLib.models.text import ReportTokenizer, TextLayout
from VelvetMedLib.objectives.base import NOT_ASKED


@dataclass(frozen=True, kw_only=True)
class MaskingRule:
    """share of the ordinary tokens is asked for; of these 80 % become [MASK], 10 % a random ordinary token, 10 % stay.

    Only ordinary tokens (words and pieces of words) are ever asked for or put in: [CLS], [SEN_i], [SEP], [PAD] and every
    other special token stay where they are. At least one token of a report is asked for if it has an ordinary one.
    """

    mask_id: int
    ordinary_ids: tuple[int, ...]
    share: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1

    @classmethod
    def of(cls, tokenizer: ReportTokenizer, *, share: float = 0.15) -> Self:
        """The rule for a tokenizer's own ids."""
        return cls(mask_id=tokenizer.id("[MASK]"), ordinary_ids=tokenizer.ordinary_ids, share=share)

    def masked(self, layout: TextLayout, draws: list[np.random.Generator]) -> tuple[TextLayout, Tensor]:
        """The layout with ids masked, and labels [B, L]: the true id where it is asked for, else `NOT_ASKED`.

        draws: one generator per report, keyed by (seed, epoch, study, purpose), so that a report's mask does not depend
        on the batch it is in. Everything but the ids stays as it was: a masked piece still belongs to its word.
        """
        if len(draws) != len(layout.ids):
            raise ValueError(f"{len(layout.ids)} reports but {len(draws)} generators")
        ids, labels = layout.ids.clone(), torch.full_like(layout.ids, NOT_ASKED)
        ordinary = np.asarray(self.ordinary_ids)
        for row, draw in enumerate(draws):
            real = layout.ids[row][layout.pad_mask[row]].cpu().numpy()
            places = np.flatnonzero(np.isin(real, ordinary))
            if not len(places):
                continue
            # As many numbers are drawn for a token whether or not it is asked for: one report, one stream.
            asked, kind = draw.random(len(places)) < self.share, draw.random(len(places))
            replacements = ordinary[draw.integers(len(ordinary), size=len(places))]
            spare = int(draw.integers(len(places)))
            if not asked.any():
                asked[spare] = True
            new = np.where(kind < self.mask_share, self.mask_id, real[places])
            randomised = (kind >= self.mask_share) & (kind < self.mask_share + self.random_share)
            new = np.where(randomised, replacements, new)
            at = torch.from_numpy(places[asked]).to(ids.device)
            labels[row, at] = layout.ids[row, at]
            ids[row, at] = torch.from_numpy(new[asked]).to(ids)
        return replace(layout, ids=ids), labels
