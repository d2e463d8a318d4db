"""Takes the reader to a place: slice views, crosshair, and the segment that is meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer


def jump_to(center_ras_mm: Sequence[float]) -> None:
    """Centres every slice view and the crosshair on a point."""
    r, a, s = (float(value) for value in center_ras_mm)
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, r, a, s, slicer.vtkMRMLSliceNode.CenteredJumpSlice)
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    if crosshair is not None:
        crosshair.SetCrosshairRAS(r, a, s)
        crosshair.SetCrosshairMode(slicer.vtkMRMLCrosshairNode.ShowSmallBasic)


def show_segment(segmentation_node: Any, segment_id: str) -> None:
    """Makes one segment visible, whatever else is shown."""
    if segmentation_node is None or segmentation_node.GetSegmentation().GetSegment(segment_id) is None:
        return
    display = segmentation_node.GetDisplayNode()
    if display is not None:
        display.SetVisibility(True)
        display.SetSegmentVisibility(segment_id, True)
