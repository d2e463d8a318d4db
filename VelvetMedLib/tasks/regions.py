"""Vectors of organs: the fine sweep's region tokens, standardised as the reader standardises them, as unit vectors by organ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.errors import UsageError
from VelvetMedLib.reports import ontology
from VelvetMedLib.tasks.abilities import has_heads, need_heads
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.evidence import Evidence

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle


def region_dimension(bundle: Bundle) -> int:
    """Length of region vectors; 0 where the bundle's model has no organs."""
    return int(bundle.model.reader.config.region_features) if has_heads(bundle) else 0


def region_vectors(encoding: Encoding, bundle: Bundle) -> dict[str, NDArray[np.float32]]:
    """Organ to its unit vector, for organs of which enough is in view (`Evidence.seen`); none from a model without heads."""
    if not has_heads(bundle):
        return {}
    import torch

    from VelvetMedLib.models.reader import standardised

    fine, reader = encoding.need_fine(), bundle.model.reader
    evidence = Evidence(fine, bundle.config.lesion_thresholds)
    with torch.inference_mode():
        raw, mask = torch.from_numpy(fine.region_tokens), torch.from_numpy(fine.region_mask)
        tokens = standardised(raw, reader.region_mean.cpu(), reader.region_scale.cpu(), mask)
        units = torch.nn.functional.normalize(tokens, dim=-1).numpy()
    seen = [s for s in ontology().structures if fine.region_mask[s.label - 1] and evidence.seen(s.name)]
    return {s.name: units[s.label - 1] for s in seen if units[s.label - 1].any()}


def region_vector(encoding: Encoding, bundle: Bundle, organ: str) -> NDArray[np.float32]:
    """The vector of one organ. Raises UsageError where too little of it is in view, BundleError where the model has no organs."""
    need_heads(bundle, "vectors of organs")
    found = region_vectors(encoding, bundle)
    if organ not in found:
        raise UsageError(
            "The scan does not show enough of this organ to compare it.",
            found=f"no {organ}, or one that is cut off",
            expected="one of: " + ", ".join(found),
            next_step="Choose another organ, or compare the whole scans.",
        )
    return found[organ]
