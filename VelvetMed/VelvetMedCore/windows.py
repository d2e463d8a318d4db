"""Display windows of CT: which one fits a finding, and setting it on a volume."""

from __future__ import annotations

from typing import Any

from VelvetMedLib.reports import ontology

WINDOWS = {"lung": (1500.0, -600.0), "soft_tissue": (400.0, 40.0), "bone": (1800.0, 400.0)}
"""Name to (width, centre) in HU, as radiology departments commonly set them."""
_OF_SECTION = {"lungs": "lung", "bones": "bone"}
_OF_FINDING = {"pneumothorax": "lung"}


def fitting_window(finding: str) -> str:
    """Name of the window in which a finding is best seen; soft tissue for what is not known."""
    if finding in _OF_FINDING:
        return _OF_FINDING[finding]
    section = next((entry.section for entry in ontology().findings if entry.name == finding), "")
    return _OF_SECTION.get(section, "soft_tissue")


def set_window(volume_node: Any, window: str) -> None:
    """Shows a volume in a named window; the volume's voxels are not touched."""
    if volume_node is None or window not in WINDOWS:
        return
    if volume_node.GetDisplayNode() is None:
        volume_node.CreateDefaultDisplayNodes()
    display = volume_node.GetDisplayNode()
    width, centre = WINDOWS[window]
    was_modifying = display.StartModify()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(width, centre)
    display.EndModify(was_modifying)
