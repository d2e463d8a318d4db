"""Takes the reader to a place, and tells the place the reader is at: slice views, crosshair, and the segment that is meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import slicer
import vtk

if TYPE_CHECKING:
    from VelvetMedLib.shapes import Triple


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


def crosshair_point() -> Triple:
    """Where the crosshair is, in RAS mm; the origin before it was ever moved."""
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    r, a, s = crosshair.GetCrosshairRAS() if crosshair is not None else (0.0, 0.0, 0.0)
    return float(r), float(a), float(s)


def segment_at(segmentation_node: Any, point_ras_mm: Sequence[float]) -> str | None:
    """Id of the segment at a point; None outside of all of them."""
    if segmentation_node is None:
        return None
    point = [float(value) for value in point_ras_mm]
    parent = segmentation_node.GetParentTransformNode()
    if parent is not None:
        from_world = vtk.vtkGeneralTransform()
        parent.GetTransformFromWorld(from_world)
        point = list(from_world.TransformPoint(point))
    segmentation = segmentation_node.GetSegmentation()
    for identifier in segmentation.GetSegmentIDs():
        image = segmentation_node.GetBinaryLabelmapInternalRepresentation(identifier)
        if image is None or 0 in image.GetDimensions():
            continue
        to_image = vtk.vtkMatrix4x4()
        image.GetWorldToImageMatrix(to_image)
        ijk = [round(value) for value in to_image.MultiplyPoint((*point, 1.0))[:3]]
        extent = image.GetExtent()
        inside = all(extent[2 * axis] <= ijk[axis] <= extent[2 * axis + 1] for axis in range(3))
        if inside and image.GetScalarComponentAsDouble(*ijk, 0) == segmentation.GetSegment(identifier).GetLabelValue():
            return str(identifier)
    return None
