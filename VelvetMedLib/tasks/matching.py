"""Match re-rank: how well a text and each of the nearest scans belong together, by the fusion layers and the match head.

methods.md 2.6 as published: the positive logit of the match head on the fused [CLS] is added to the cosine of the best candidates.
Only for bundles that carry a trained match head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.bundle.config import refuse
from VelvetMedLib.tasks.abilities import takes_one_crop
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.text_vectors import LONGEST_TEXT_TOKENS

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

MOST_CANDIDATES = 256
ROWS = 32
"""Pairs that go through the fusion layers at once."""


def matches(bundle: Bundle) -> bool:
    """Whether the bundle has a trained match head."""
    return not takes_one_crop(bundle) and bundle.model.match is not None


def need_match_head(bundle: Bundle) -> None:
    """Raises BundleError where there is none."""
    if not matches(bundle):
        raise refuse(
            f"The bundle {bundle.config.id!r} cannot re-rank by match.",
            found="a model without a trained match head",
            expected="a bundle of a pre-training with image-text matching",
            next_step="Search without re-ranking, or choose another bundle.",
        )


def match_tokens(encoding: Encoding, bundle: Bundle) -> NDArray[np.float16] | None:
    """What the fusion layers see of a scan, [V, W]; None without a match head."""
    if not matches(bundle):
        return None
    import torch

    from VelvetMedLib.models.velvet import GlobalFeatures

    seen = encoding.need_global()
    with torch.inference_mode():
        bottom, middle, top = (torch.from_numpy(m)[None].to(bundle.device) for m in (seen.bottom, seen.middle, seen.top))
        features = GlobalFeatures(bottom, middle, top, torch.tensor([seen.view_spacing_mm], device=bundle.device))
        tokens: NDArray[np.float16] = bundle.model.visual_tokens(features)[0].half().cpu().numpy()
    return tokens


def match_logits(sentences: Sequence[str], tokens: Sequence[NDArray[np.float16]], bundle: Bundle) -> NDArray[np.float32]:
    """The match head's positive logit for one text with each of several scans, [len(tokens)]."""
    import torch

    model = bundle.model
    with torch.inference_mode():
        layout = bundle.tokenizer.layout([list(sentences)], LONGEST_TEXT_TOKENS).to(bundle.device)
        states = model.tribert.text(layout.ids, layout.type_ids, layout.pad_mask)
        every = torch.from_numpy(np.stack(tokens)).float().to(bundle.device)
        parts = [
            model.match(model.tribert.fuse(*(x.expand(len(part), *x.shape[1:]) for x in (states, layout.type_ids, layout.pad_mask)), part))[
                :, 1
            ]
            for part in every.split(ROWS)
        ]
        logits: NDArray[np.float32] = torch.cat(parts).float().cpu().numpy()
    return logits
