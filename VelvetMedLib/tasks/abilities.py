"""What a bundle's model can do: with heads it makes an analysis; without, it puts scans and texts into one space, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from VelvetMedLib.bundle.config import COLIPRI, refuse

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

HEADS = ("fine", "reader", "findings")
"""Parts of a model without which it segments nothing and finds nothing: a pre-training has none of them yet."""
STAGES_OF_HEADS = frozenset({"fine", "tokens", "reader", "segmentation", "report"})


def takes_one_crop(bundle: Bundle) -> bool:
    """Whether the bundle's model looks at one cube of a scan and at nothing else."""
    return bool(bundle.config.family == COLIPRI)


def has_heads(bundle: Bundle) -> bool:
    """Whether the model has any part of an analysis: what else it lacks is named where it is needed."""
    return not takes_one_crop(bundle) and any(getattr(bundle.model, name, None) is not None for name in HEADS)


def need_heads(bundle: Bundle, what: str) -> None:
    """Raise BundleError where `what` needs trained heads and the bundle's model has none."""
    if not has_heads(bundle):
        raise refuse(
            f"The bundle {bundle.config.id!r} cannot make {what}.",
            found="a model of vectors of scans and texts, without trained heads",
            expected="a bundle made for analysis",
            next_step="Choose another bundle; 'velvetmed models list' names them.",
        )


def stages_of(bundle: Bundle, weights: Mapping[str, float]) -> dict[str, float]:
    """Expected shares of the time of those stages that this bundle's model has: a crop stands for everything that needs heads."""
    if has_heads(bundle):
        return dict(weights)
    left = {name: share for name, share in weights.items() if name not in STAGES_OF_HEADS}
    return {name: share for name, share in left.items() if name != "global"} | {"crop": 2.0} if takes_one_crop(bundle) else left
