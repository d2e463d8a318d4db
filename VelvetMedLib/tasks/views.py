"""The views of an Encoding; their arithmetic lives in `ct.views`, where training reads it too."""

from __future__ import annotations

from VelvetMedLib.ct.views import (
    BODY_MARGIN_MM,
    DEFAULT_FINE_SPACING_MM,
    DEFAULT_FINE_WINDOWS,
    DEFAULT_GLOBAL_SHAPE,
    DEFAULT_GLOBAL_WINDOW,
    OUTSIDE_HU,
    BoxRAS,
    FineView,
    GlobalView,
    Windows,
    fine_view,
    global_view,
    inside_scan,
    scaled,
    squeeze_box,
    windowed,
)

__all__ = [
    "BODY_MARGIN_MM",
    "DEFAULT_FINE_SPACING_MM",
    "DEFAULT_FINE_WINDOWS",
    "DEFAULT_GLOBAL_SHAPE",
    "DEFAULT_GLOBAL_WINDOW",
    "OUTSIDE_HU",
    "BoxRAS",
    "FineView",
    "GlobalView",
    "Windows",
    "fine_view",
    "global_view",
    "inside_scan",
    "scaled",
    "squeeze_box",
    "windowed",
]
