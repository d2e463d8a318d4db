"""Takes the reader to a place: slice views, crosshair, and the segment that is meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer
import vtk


def jump_to(center_ras_mm: Sequence[float]) -> None:
    """Moves every slice view to a point and puts the crosshair there. A view in which the point lies outside is centred on it."""
    point = tuple(float(value) for value in center_ras_mm)
    scene = slicer.mrmlScene
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceNode")):
        node = scene.GetNthNodeByClass(index, "vtkMRMLSliceNode")
        node.JumpSliceByOffsetting(*point)
        if not _in_view(node, point):
            node.JumpSliceByCentering(*point)
    crosshair = scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    if crosshair is not None:
        crosshair.SetCrosshairRAS(*point)
        crosshair.SetCrosshairMode(slicer.vtkMRMLCrosshairNode.ShowBasic)


def _in_view(slice_node: Any, point: Sequence[float]) -> bool:
    """Whether a point lies in the middle nine tenths of a slice view."""
    to_view = vtk.vtkMatrix4x4()
    vtk.vtkMatrix4x4.Invert(slice_node.GetXYToRAS(), to_view)
    x, y = to_view.MultiplyPoint((*point, 1.0))[:2]
    width, height = slice_node.GetDimensions()[:2]
    return 0.05 * width <= x <= 0.95 * width and 0.05 * height <= y <= 0.95 * height


def show_segment(segmentation_node: Any, segment_id: str) -> None:
    """Makes one segment visible, whatever else is shown."""
    if segmentation_node is None or segmentation_node.GetSegmentation().GetSegment(segment_id) is None:
        return
    display = segmentation_node.GetDisplayNode()
    if display is not None:
        display.SetVisibility(True)
        display.SetSegmentVisibility(segment_id, True)
