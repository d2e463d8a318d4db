"""The module's parameters in the scene: a dataclass read from and written to the scripted module node."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import slicer

from VelvetMedCore.drafting import DraftForm

MODULE_NAME = "VelvetMed"
PREFIX = "VelvetMed."
REFERENCE_ROLES = ("inputVolume", "segmentation", "findings", "report", "case")


@dataclass(frozen=True, kw_only=True)
class Parameters(DraftForm):
    """What the user chose. Node ids are None where nothing is chosen or the node is gone. parts: names with spaces between."""

    model: str = ""
    findings_filter: str = "relevant"
    parts: str = "segments findings report"
    inputVolume: str | None = None
    segmentation: str | None = None
    findings: str | None = None
    report: str | None = None
    case: str | None = None


def parameter_node() -> Any:
    """The one parameter node of this module in the scene; made when there is none."""
    node = slicer.mrmlScene.GetSingletonNode(MODULE_NAME, "vtkMRMLScriptedModuleNode")
    if node is None:
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)  # CreateNodeByClass hands over a reference of its own
        node.SetSingletonTag(MODULE_NAME)
        node.SetModuleName(MODULE_NAME)
        node.SetName(MODULE_NAME)
        node = slicer.mrmlScene.AddNode(node)
    elif node.GetModuleName() != MODULE_NAME:
        # Closing a scene keeps singleton nodes but resets them, the module's name included.
        node.SetModuleName(MODULE_NAME)
    return node


def read_parameters(node: Any) -> Parameters:
    """Missing or unreadable values become the defaults and unknown ones are ignored: scenes outlive versions."""
    defaults = Parameters()
    values: dict[str, Any] = {}
    for item in fields(Parameters):
        if item.name in REFERENCE_ROLES:
            referenced = node.GetNodeReference(item.name)
            values[item.name] = referenced.GetID() if referenced is not None else None
            continue
        text = node.GetParameter(PREFIX + item.name) or ""
        values[item.name] = text or getattr(defaults, item.name)
    return Parameters(**values)


def write_parameters(node: Any, parameters: Parameters) -> None:
    """Writes every field; parameters of other versions that the node carries stay untouched."""
    was_modifying = node.StartModify()
    try:
        for item in fields(Parameters):
            value = getattr(parameters, item.name)
            if item.name in REFERENCE_ROLES:
                node.SetNodeReferenceID(item.name, value)
            else:
                node.SetParameter(PREFIX + item.name, value)
    finally:
        node.EndModify(was_modifying)
