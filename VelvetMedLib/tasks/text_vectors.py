"""Texts as vectors in the space that they share with scans, whichever model the bundle has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.bundle.config import refuse
from VelvetMedLib.tasks.abilities import takes_one_crop

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

LONGEST_TEXT_TOKENS = 160


def text_vectors(texts: Sequence[Sequence[str]], bundle: Bundle) -> NDArray[np.float32]:
    """Report-level unit vectors [len(texts), D], comparable with study vectors. texts: each as its sentences.

    Raises BundleError for an image half alone.
    """
    import torch

    if bundle.tokenizer is None:
        raise refuse(
            f"The bundle {bundle.config.id!r} cannot read text.",
            found="the image half of the model alone",
            expected="a bundle with a text half",
            next_step="Add the model again from weights that hold the text encoder too.",
        )
    with torch.inference_mode():
        if takes_one_crop(bundle):
            # Where padding is pooled with the text, it has to be there: all of it, as the published package pads.
            ids, mask = bundle.tokenizer.batch([" ".join(text) for text in texts], whole=not bundle.model.config.text_pool_mask)
            found = bundle.model.embed_text(ids.to(bundle.device), mask.to(bundle.device))
        else:
            found = bundle.model.embed_text(bundle.tokenizer.layout([list(text) for text in texts], LONGEST_TEXT_TOKENS).to(bundle.device))
        vectors: NDArray[np.float32] = found.float().cpu().numpy()
    return vectors
