"""What is laid over the CT for one finding: its heat-map as the foreground of the slice views, and its callipers as markups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import vtk_to_numpy

from VelvetMedCore.callipers import Callipers, callipers, component_at
from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.errors import CaseError

if TYPE_CHECKING:
    from VelvetMedLib.shapes import Affine, ArrayKJI, Triple

ROLE = "VelvetMed.Role"
OF_CASE, OF_FINDING, MARKED = "VelvetMed.Case", "VelvetMed.Finding", "VelvetMed.Marked"
HEATMAP, AXIS = "heatmap", "axis"
COLORS = "vtkMRMLColorTableNodeIron"
LEAST_SHOWN, OPACITY = 0.15, 0.45
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


# heat-maps


def add_heatmap(path: Path, *, case_id: str, finding: str, title: str, marked: bool = True) -> Any:
    """The heat-map file of a grounding as a volume node on its own grid, which may be coarser than the scan's.

    marked: whether the model marks any voxel; kept with the node, which outlives the worker's answer.
    Raises CaseError when the file cannot be read.
    """
    try:
        image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    except RuntimeError:
        raise CaseError(
            _("The heat-map cannot be read."),
            found=_("a missing or damaged file"),
            expected=_("a map written by the worker"),
            next_step=_("Ask for it again."),
        ) from None
    to_lps = np.eye(4)
    to_lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    to_lps[:3, 3] = image.GetOrigin()
    scene = slicer.mrmlScene
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", scene.GenerateUniqueName(f"VelvetMed {title}"))
    slicer.util.updateVolumeFromArray(node, np.clip(sitk.GetArrayFromImage(image), 0.0, 1.0))
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(LPS_TO_RAS @ to_lps))
    for name, value in ((ROLE, HEATMAP), (OF_CASE, case_id), (OF_FINDING, finding), (MARKED, "yes" if marked else "no")):
        node.SetAttribute(name, value)
    node.SetDescription(RESEARCH_USE_ONLY)
    node.CreateDefaultDisplayNodes()
    _dress(node.GetDisplayNode())
    return node


def _dress(display: Any) -> None:
    was_modifying = display.StartModify()
    if slicer.mrmlScene.GetNodeByID(COLORS) is not None:
        display.SetAndObserveColorNodeID(COLORS)
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0.0, 1.0)
    display.SetInterpolate(True)
    display.SetAutoThreshold(False)
    display.SetThreshold(LEAST_SHOWN, 1.0)  # below, the CT alone is seen
    display.SetApplyThreshold(True)
    display.EndModify(was_modifying)


def find_heatmap(case_id: str, finding: str) -> Any:
    """The heat-map that the scene already holds for a finding, or None."""
    for node in _ours("vtkMRMLScalarVolumeNode", HEATMAP):
        if (node.GetAttribute(OF_CASE), node.GetAttribute(OF_FINDING)) == (case_id, finding):
            return node
    return None


def is_marked(heatmap: Any) -> bool:
    """Whether the model marks any voxel of a heat-map's finding."""
    return bool(heatmap.GetAttribute(MARKED) != "no")


def show_over(heatmap: Any) -> None:
    """Lays a heat-map over the background of every slice view; None takes ours away and leaves anybody else's foreground."""
    ours = {node.GetID() for node in _ours("vtkMRMLScalarVolumeNode", HEATMAP)}
    for composite in _nodes("vtkMRMLSliceCompositeNode"):
        if heatmap is not None:
            composite.SetForegroundVolumeID(heatmap.GetID())
            composite.SetForegroundOpacity(OPACITY)
        elif composite.GetForegroundVolumeID() in ours:
            composite.SetForegroundVolumeID(None)


# callipers


def lesion_callipers(segmentation_node: Any, segment_id: str, point_ras_mm: Triple) -> Callipers | None:
    """Long and short axis of the part of a segment that lies at a point; None without such a segment or with nothing near."""
    read = _segment_mask(segmentation_node, segment_id)
    if read is None:
        return None
    mask_kji, ijk_to_ras = read
    return callipers(component_at(mask_kji, ijk_to_ras, point_ras_mm), ijk_to_ras)


def _segment_mask(node: Any, segment_id: str) -> tuple[ArrayKJI, Affine] | None:
    """A segment's own voxels (k, j, i) and their matrix; nothing is exported, so that it is fast on a whole chest."""
    if node is None or node.GetSegmentation().GetSegment(segment_id) is None:
        return None
    image = node.GetBinaryLabelmapInternalRepresentation(segment_id)
    if image is None or image.GetPointData().GetScalars() is None:
        return None
    i, j, k = image.GetDimensions()
    labels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(k, j, i)
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    to_world = np.array(slicer.util.arrayFromVTKMatrix(matrix))
    x0, _x1, y0, _y1, z0, _z1 = image.GetExtent()
    to_world[:3, 3] += to_world[:3, :3] @ np.array([x0, y0, z0], dtype=float)
    parent = node.GetParentTransformNode()
    if parent is not None and parent.IsTransformToWorldLinear():
        parent.GetMatrixTransformToWorld(matrix)
        to_world = slicer.util.arrayFromVTKMatrix(matrix) @ to_world
    return labels == node.GetSegmentation().GetSegment(segment_id).GetLabelValue(), to_world


def add_axes(axes: Callipers, *, case_id: str, finding: str) -> tuple[Any, Any]:
    """Two line markups; the axes shown before are replaced, so that the scene does not fill with lines."""
    clear_axes()
    lines = ((_("long axis"), axes.long_ras_mm, (0.95, 0.75, 0.2)), (_("short axis"), axes.short_ras_mm, (0.35, 0.75, 0.95)))
    first, second = (_add_line(title, ends, color, case_id, finding) for title, ends, color in lines)
    return first, second


def _add_line(title: str, ends: Sequence[Triple], color: tuple[float, float, float], case_id: str, finding: str) -> Any:
    scene = slicer.mrmlScene
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsLineNode", scene.GenerateUniqueName(title))
    for point in ends:
        node.AddControlPoint(vtk.vtkVector3d(*point))
    # Markups write their measurements into the description, so the notice is an attribute.
    for name, value in ((ROLE, AXIS), (OF_CASE, case_id), (OF_FINDING, finding), ("VelvetMed.Notice", RESEARCH_USE_ONLY)):
        node.SetAttribute(name, value)
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetSelectedColor(*color)
    display.SetPropertiesLabelVisibility(True)
    display.SetPointLabelsVisibility(False)
    return node


def clear_axes() -> None:
    """Takes our lines out of the scene."""
    for node in list(_ours("vtkMRMLMarkupsLineNode", AXIS)):
        for index in reversed(range(node.GetNumberOfDisplayNodes())):
            slicer.mrmlScene.RemoveNode(node.GetNthDisplayNode(index))
        slicer.mrmlScene.RemoveNode(node)


def _nodes(class_name: str) -> list[Any]:
    scene = slicer.mrmlScene
    return [scene.GetNthNodeByClass(index, class_name) for index in range(scene.GetNumberOfNodesByClass(class_name))]


def _ours(class_name: str, role: str) -> Iterator[Any]:
    return (node for node in _nodes(class_name) if node.GetAttribute(ROLE) == role)
