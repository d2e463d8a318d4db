"""The second look: how far each part of the lesion maps is to be believed, and what is dropped because it is not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.tasks.encoding import FinePart
from VelvetMedLib.tasks.tokens import LesionMeta, part_mask, threshold_bytes

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

DOUBTED = "doubted"
"""Name of its rule beside those of `cleaning.RULES`: a part of a lesion map that the bundle's verifier believes less than its kind asks
for is dropped, and so are parts that it did not look at because more than `tokens.MOST_LESIONS` came before them."""


def verified(part: FinePart, bundle: Bundle, *, cleaning: bool = True) -> FinePart:
    """The part with the verifier's logits of all lesion tokens and the trust in each part; unchanged where the bundle has no verifier.

    cleaning: drop what is doubted, from `lesions` and, in place, from the maps. The tokens stay: they are what the reader learnt to read.
    """
    import torch

    network = getattr(bundle.model, "verifier", None)
    if network is None:
        return part
    with torch.inference_mode():
        tokens = torch.from_numpy(part.lesion_tokens).to(bundle.device)
        logits: NDArray[np.float32] = network(tokens).float().cpu().numpy()
    metas = tuple(
        replace(meta, trust=round(float(1 / (1 + np.exp(-row[meta.channel]))), 4)) for meta, row in zip(part.lesions, logits, strict=True)
    )
    part = replace(part, lesion_logits=logits, lesions=metas)
    if not cleaning:
        return part
    entries = bundle.config.lesions
    kept = tuple(meta for meta in metas if meta.trust is not None and meta.trust >= entries[meta.channel].least_trust)
    dropped = _keep_only(part.lesions_cxyz, kept, [entry.threshold for entry in entries], [entry.least_trust > 0 for entry in entries])
    changed = {**(part.cleaned or {}), DOUBTED: round(dropped * part.grid.voxel_volume_ml, 3)}
    return replace(part, lesions=kept, cleaned=changed)


def _keep_only(lesions_cxyz: NDArray[np.uint8], kept: tuple[LesionMeta, ...], thresholds: list[float], doubts: list[bool]) -> int:
    """Take every voxel that counts as lesion but is of no kept part out of the maps. doubts: which kinds can be doubted at all."""
    dropped = 0
    for channel, lowest in enumerate(threshold_bytes(thresholds)):
        if not doubts[channel]:
            continue
        stays = np.zeros(lesions_cxyz.shape[1:], bool)
        for meta in kept:
            if meta.channel == channel:
                stays[meta.box_xyz] |= part_mask(lesions_cxyz[channel], meta, int(lowest))
        goes = (lesions_cxyz[channel] >= lowest) & ~stays
        lesions_cxyz[channel][goes] = 0
        dropped += int(np.count_nonzero(goes))
    return dropped
