"""VelvetMedLib: from a CT scan to segments, findings, a draft report and answers. Research use only.

The names below are loaded on first use: importing the package is instant and pulls no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

RESEARCH_USE_ONLY = "Research use only. Not for clinical use."
DRAFT_DISCLAIMER = "AI-generated draft - not for clinical use. Unverified."

if TYPE_CHECKING:
    from VelvetMedLib.bundle import load_bundle
    from VelvetMedLib.case import Case, read_case
    from VelvetMedLib.ct import Volume, read
    from VelvetMedLib.tasks import analyze

_PUBLIC = {
    "Volume": "VelvetMedLib.ct",
    "read": "VelvetMedLib.ct",
    "Case": "VelvetMedLib.case",
    "read_case": "VelvetMedLib.case",
    "load_bundle": "VelvetMedLib.bundle",
    "analyze": "VelvetMedLib.tasks",
}

__all__ = ["DRAFT_DISCLAIMER", "RESEARCH_USE_ONLY", "Case", "Volume", "__version__", "analyze", "load_bundle", "read", "read_case"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
