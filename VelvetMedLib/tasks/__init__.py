"""What can be done with a scan and a bundle, all from one Encoding. Names are loaded on first use: importing this pulls no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from VelvetMedLib.tasks.analysis import PARTS, Analysis, analyze, ask, case_encoding, run_analysis
    from VelvetMedLib.tasks.encoder import encode, forget_encodings
    from VelvetMedLib.tasks.encoding import Encoding, load_encoding, save_encoding
    from VelvetMedLib.tasks.findings import find
    from VelvetMedLib.tasks.grounding import Grounding, ground
    from VelvetMedLib.tasks.indexing import index_folder, search
    from VelvetMedLib.tasks.report import draft_report
    from VelvetMedLib.tasks.retrieval import Hit, Index
    from VelvetMedLib.tasks.revision import Revised, revise
    from VelvetMedLib.tasks.store import Where

_PLACES = {
    "PARTS": "analysis",
    "Analysis": "analysis", "analyze": "analysis", "ask": "analysis", "case_encoding": "analysis", "run_analysis": "analysis",
    "encode": "encoder", "forget_encodings": "encoder", "Encoding": "encoding", "load_encoding": "encoding", "save_encoding": "encoding",
    "find": "findings", "Grounding": "grounding", "ground": "grounding", "index_folder": "indexing", "search": "indexing",
    "Revised": "revision", "revise": "revision",
    "draft_report": "report", "Hit": "retrieval", "Index": "retrieval", "Where": "store",
}  # fmt: skip

__all__ = [
    "PARTS",
    "Analysis", "Encoding", "Grounding", "Hit", "Index", "Revised", "Where", "analyze", "ask", "case_encoding", "draft_report",
    "encode", "find", "forget_encodings", "ground", "index_folder", "load_encoding", "revise", "run_analysis", "save_encoding", "search",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
