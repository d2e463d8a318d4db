"""What panels share: loading their .ui file, and the words and signs for states, sides, places, errors and times."""

from __future__ import annotations

from html import escape
from typing import Any

import slicer
from slicer.i18n import tr as _

from VelvetMedCore.library import MODULE_FOLDER
from VelvetMedLib.errors import VelvetMedError
from VelvetMedLib.reports import ontology

STATE_ORDER = {"present": 0, "uncertain": 1, "absent": 2, "not_assessed": 3}
STATE_SIGNS = {"present": "●", "uncertain": "◐", "absent": "○", "not_assessed": "–"}
STATE_COLORS = {"present": "#d1495b", "uncertain": "#c98a1b", "absent": "#5b8c5a", "not_assessed": "#8a8a8a"}
"""Mid-tones: readable on light and on dark palettes."""


def load_into(section: Any, name: str) -> Any:
    """Loads `Resources/UI/<name>.ui` into a section's layout; returns its named widgets as attributes."""
    root = slicer.util.loadUI(str(MODULE_FOLDER / "Resources" / "UI" / f"{name}.ui"))
    section.layout().addWidget(root)
    ui = slicer.util.childWidgetVariables(root)
    ui.root = root
    return ui


def state_word(state: str) -> str:
    """The state in the user's language."""
    words = {"present": _("present"), "uncertain": _("uncertain"), "absent": _("absent"), "not_assessed": _("not assessed")}
    return words.get(state, state)


def side_word(side: str | None) -> str:
    """The patient's side in the user's language; empty where there is none."""
    words = {"left": _("left"), "right": _("right"), "both": _("both")}
    return words.get(side, side) if side else ""


def place_word(site: str | None) -> str:
    """A site's display name; a vertebral level or an unknown site as it is."""
    if not site:
        return ""
    names = {structure.name: structure.display for structure in ontology().structures}
    return names.get(site, site.replace("_", " "))


def percent(value: float | None) -> str:
    """Whole per cent with a space that no line is broken at; empty where there is no value."""
    return "" if value is None else f"{100 * value:.0f}\u00a0%"


def error_text(error: VelvetMedError) -> str:
    """The four parts, one a line; the worker's last lines, if any, are in the tool tip (`error_details`)."""
    parts = (
        error.what,
        _("Found: {text}").format(text=error.found),
        _("Expected: {text}").format(text=error.expected),
        _("Next: {text}").format(text=error.next_step),
    )
    return "\n".join(parts)


def error_details(error: VelvetMedError) -> str:
    return "\n".join(getattr(error, "__notes__", []))


def time_left(seconds: float | None) -> str:
    """Rounded as a person would say it; empty when unknown."""
    if seconds is None:
        return ""
    if seconds < 1.5:
        return _("about a second left")
    if seconds < 90:
        return _("about {n} s left").format(n=round(seconds) if seconds < 20 else 5 * round(seconds / 5))
    return _("about {n} min left").format(n=round(seconds / 60))


def mark(state: str) -> str:
    """A state as a coloured sign, in HTML."""
    color = STATE_COLORS.get(state, "#8a8a8a")
    return f'<span style="color:{color}" title="{escape(state_word(state))}">{STATE_SIGNS.get(state, "")}</span>'
