"""Exports: what leaves a Case folder for other eyes. Today the offline review pages; research use only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from VelvetMedLib.exports.site import review

__all__ = ["review"]


def __getattr__(name: str) -> Any:
    # On first use, so that fetching the viewer script needs nothing but the standard library.
    if name == "review":
        from VelvetMedLib.exports.site import review

        return review
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
