"""From a Case to nodes in the scene, and back: segments, findings table, report text, and the Case itself as text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.case import Case, read_segmentation, report_markdown
from VelvetMedLib.case.store import SEGMENTATION
from VelvetMedLib.errors import CaseError

if TYPE_CHECKING:
    from VelvetMedLib.case import Segment
    from VelvetMedLib.shapes import Affine, LabelsKJI

ROLE = "VelvetMed.Role"
VOLUME_ROLE = "volume"
"""By which the node of a Case knows the scan that was analysed, whatever is chosen for the next analysis."""
NAME_PREFIX = "VelvetMed"
FINDING_COLUMNS = ("Finding", "State", "Probability", "Side", "Place", "Size (mm)", "R (mm)", "A (mm)", "S (mm)", "By")
ORGAN_CATEGORY = ("123037004", "SCT", "Anatomical Structure")
LESION_CATEGORY = ("49755003", "SCT", "Morphologically Altered Structure")
SIDES = {"left": ("7771000", "SCT", "Left"), "right": ("24028007", "SCT", "Right")}


@dataclass(frozen=True, kw_only=True)
class ResultNodes:
    """The nodes of one analysis; a node that the user has deleted is None."""

    segmentation: Any
    findings: Any
    report: Any
    case: Any


def insert_case(case: Case, folder: Path, volume_node: Any) -> ResultNodes:
    """Adds the nodes of a finished Case to the scene, all of them or none; no segmentation where none was asked for."""
    added: list[Any] = []
    try:
        if SEGMENTATION in case.files:
            labels_kji, grid = read_segmentation(folder)
            added.append(add_segmentation(case.segments, labels_kji, grid.ijk_to_ras, volume_node))
        added.append(add_findings_table(case))
        added.append(_add_text(f"{NAME_PREFIX} report", "report", report_markdown(case)))
        added.append(_add_text(f"{NAME_PREFIX} case", "case", case_to_text(case), hidden=True))
    except BaseException:
        for node in added:
            _remove(node)
        raise
    *segmentation, findings, report, kept = added
    if volume_node is not None:
        kept.SetNodeReferenceID(VOLUME_ROLE, volume_node.GetID())
    return ResultNodes(segmentation=segmentation[0] if segmentation else None, findings=findings, report=report, case=kept)


def add_segmentation(segments: tuple[Segment, ...], labels_kji: LabelsKJI, ijk_to_ras: Affine, volume_node: Any) -> Any:
    """One ImportLabelmapToSegmentationNode call: fast, one shared layer, names, colours and codes of ours."""
    by_label = {segment.label: segment for segment in segments}
    counts = sum(np.bincount(slice_ji.ravel(), minlength=256) for slice_ji in labels_kji)  # by slices: bincount copies what it counts
    present = [int(label) for label in np.flatnonzero(counts) if label in by_label]
    identifiers = vtk.vtkStringArray()
    for label in present:  # the ids name the labels present, in ascending order
        identifiers.InsertNextValue(by_label[label].name)
    scene = slicer.mrmlScene
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", scene.GenerateUniqueName(f"{NAME_PREFIX} segments"))
    node.SetAttribute(ROLE, "segmentation")
    node.CreateDefaultDisplayNodes()
    if volume_node is not None and volume_node.GetParentTransformNode() is None:
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
    label_map = _temporary_label_map(labels_kji, present, ijk_to_ras)
    try:
        if present and not slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(label_map, node, identifiers):
            raise RuntimeError("the segments could not be added to the scene")
    except BaseException:
        _remove(node)
        raise
    finally:
        scene.RemoveNode(label_map)
    for label in present:
        _dress(node.GetSegmentation().GetSegment(by_label[label].name), by_label[label])
    return node


def _remove(node: Any) -> None:
    """With its display nodes, which the scene would keep."""
    if node.IsA("vtkMRMLDisplayableNode"):
        for index in reversed(range(node.GetNumberOfDisplayNodes())):
            slicer.mrmlScene.RemoveNode(node.GetNthDisplayNode(index))
    slicer.mrmlScene.RemoveNode(node)


def _temporary_label_map(labels_kji: LabelsKJI, present: list[int], ijk_to_ras: Affine) -> Any:
    """A hidden label map node whose labels are 1, 2, 3, ... in the order of `present`; any other label is background.

    When ids are given, the import counts its segments from 1 and does not look at the labels' own values (seen in slicer-core 5.13).
    """
    number = np.zeros(int(labels_kji.max(initial=0)) + 1, np.uint8 if len(present) < 256 else np.uint16)
    number[present] = np.arange(1, len(present) + 1)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", f"{NAME_PREFIX} labels")
    node.SetHideFromEditors(True)
    slicer.util.updateVolumeFromArray(node, np.take(number, labels_kji))
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(ijk_to_ras))
    return node


def _dress(segment: Any, description: Segment) -> None:
    segment.SetName(description.display)
    segment.SetColor(*(channel / 255 for channel in description.color))
    segment.SetTag("VelvetMed.Label", str(description.label))
    segment.SetTag("VelvetMed.Notice", RESEARCH_USE_ONLY)
    segment.SetTag(segment.GetTerminologyEntryTagName(), terminology_entry(description))


def terminology_entry(segment: Segment) -> str:
    """Slicer's serialised terminology: category, type from the segment's code, and the side as its modifier."""
    category = ORGAN_CATEGORY if segment.kind == "organ" else LESION_CATEGORY
    code = segment.code  # without a value where no code is known for certain
    type_triple = (code.value, code.scheme, code.meaning) if code.value else ("", "", segment.display)
    first_word = segment.display.split()[0].lower() if segment.display else ""
    modifier = SIDES.get(first_word, ("", "", ""))
    nothing = ("", "", "")
    return slicer.vtkSlicerTerminologiesModuleLogic.SerializeTerminologyEntry(
        "Segmentation category and type - 3D Slicer General Anatomy list", *category, *type_triple, *modifier, "", *nothing, *nothing
    )


def add_findings_table(case: Case) -> Any:
    """One row a finding, readable without this module; numbers stay empty where there are none."""
    scene = slicer.mrmlScene
    node = scene.AddNewNodeByClass("vtkMRMLTableNode", scene.GenerateUniqueName(f"{NAME_PREFIX} findings"))
    node.SetAttribute(ROLE, "findings")
    node.SetDescription(RESEARCH_USE_ONLY)
    fill_findings_table(node, case)
    return node


def fill_findings_table(node: Any, case: Case) -> None:
    """Writes the findings of a Case into their table anew."""
    node.RemoveAllColumns()
    table = node.GetTable()
    for title in FINDING_COLUMNS:
        column = vtk.vtkStringArray()
        column.SetName(title)
        table.AddColumn(column)
    for finding in case.findings:
        center = finding.link.center_ras_mm if finding.link is not None else (None, None, None)
        values = (
            finding.display,
            finding.state.replace("_", " "),
            _number(finding.probability, 2),
            finding.side or "",
            (finding.site or "").replace("_", " "),
            _number(finding.size_mm, 0),
            *(_number(value, 1) for value in center),
            "model" if finding.overruling is None else "user" if finding.by_person else "model, thresholds of the user",
        )
        row = table.InsertNextBlankRow()
        for index, value in enumerate(values):
            table.GetColumn(index).SetValue(row, value)
    node.Modified()


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _add_text(name: str, role: str, text: str, *, hidden: bool = False) -> Any:
    scene = slicer.mrmlScene
    node = scene.AddNewNodeByClass("vtkMRMLTextNode", scene.GenerateUniqueName(name))
    node.SetAttribute(ROLE, role)
    node.SetDescription(RESEARCH_USE_ONLY)
    node.SetHideFromEditors(hidden)
    node.SetText(text)
    return node


def case_to_text(case: Case) -> str:
    """The Case as one line of JSON, for the scene."""
    return json.dumps(case.as_dict(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def case_from_text(text: str) -> Case:
    """Inverse of `case_to_text`; raises CaseError when another version wrote it or it is damaged."""
    try:
        return Case.from_dict(json.loads(text))
    except (ValueError, TypeError) as problem:
        raise CaseError(
            _("The analysis in this scene cannot be read."),
            found=type(problem).__name__,
            expected=_("an analysis written by this version of VelvetMed"),
            next_step=_("The segments, table and report text in the scene remain; press Apply for a new analysis."),
        ) from None
