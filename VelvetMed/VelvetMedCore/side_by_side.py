"""Another patient's scan beside the open one: a neutral name, laid over by the organs that both show, in linked views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.case import Case

ROLE = "VelvetMed.Role"
SIMILAR = "similar"
LEFT, RIGHT = "Red", "Yellow"
"""The two views of Slicer's side-by-side layout."""
LEAST_SHARED = 2


def offset_mm(mine: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> list[float] | None:
    """What to add to the other scan's RAS mm so that shared organs come to lie over each other: the median over organs.

    None where fewer than two organs are shared: one may be anywhere.
    """
    shared = sorted(mine.keys() & other.keys())
    if len(shared) < LEAST_SHARED:
        return None
    return [float(x) for x in np.median([np.subtract(mine[name], other[name]) for name in shared], axis=0)]


def organ_centers(case: Case) -> dict[str, tuple[float, float, float]]:
    """Where the organs of the open scan lie, of those that are wholly in view."""
    return {s.name: s.center_ras_mm for s in case.segments if s.kind == "organ" and not s.truncated}


def add_scan(npy: Path, ijk_to_ras: Sequence[Sequence[float]], number: int, shift_mm: Sequence[float] | None) -> Any:
    """The voxels that the worker wrote as a volume node, shifted by a transform of its own; the file is read whole and deleted."""
    try:
        voxels_kji = np.load(npy, allow_pickle=False)
    finally:
        npy.unlink(missing_ok=True)
    scene = slicer.mrmlScene
    node = slicer.util.addVolumeFromArray(voxels_kji, np.asarray(ijk_to_ras, np.float64), _("Similar scan {n}").format(n=number))
    node.SetAttribute(ROLE, SIMILAR)
    node.SetDescription(RESEARCH_USE_ONLY)
    node.CreateDefaultDisplayNodes()
    if shift_mm is not None:
        transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", _("Similar scan {n} laid over").format(n=number))
        transform.SetAttribute(ROLE, SIMILAR)
        matrix = np.eye(4)
        matrix[:3, 3] = shift_mm
        transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
        node.SetAndObserveTransformNodeID(transform.GetID())
    return node


class SideBySide:
    """Two linked views, the open scan left and another right; `close` brings back what was there before."""

    def __init__(self) -> None:
        self._before: dict[str, Any] = {}

    @property
    def is_open(self) -> bool:
        return any(True for _node in _similar_nodes())

    def open(self, mine: Any, other: Any) -> None:
        """Shows two volumes; one that was beside the open scan before goes away."""
        for node in _similar_nodes():
            if node is not other and node is not other.GetParentTransformNode():
                slicer.mrmlScene.RemoveNode(node)
        layout = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
        if layout is not None:
            self._before.setdefault("layout", layout.GetViewArrangement())
            layout.SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutSideBySideView)
        left, right = _view(LEFT), _view(RIGHT)
        if left is None or right is None:
            return  # no views, as in a script: the two volumes are in the scene all the same
        self._remember(left, right)
        _copy_window(mine, other)
        right[0].SetOrientationToAxial()
        left[0].SetOrientationToAxial()
        for (_slice_node, composite), volume in ((left, mine), (right, other)):
            composite.SetLinkedControl(False)  # unlinked first: a link would carry the left volume to the right
            composite.SetBackgroundVolumeID(volume.GetID())
        right[0].SetFieldOfView(*left[0].GetFieldOfView())
        right[0].GetSliceToRAS().DeepCopy(left[0].GetSliceToRAS())
        right[0].UpdateMatrices()
        for _slice_node, composite in (left, right):
            composite.SetLinkedControl(True)
            composite.SetHotLinkedControl(True)

    def close(self) -> None:
        """Removes the other scan and restores layout, backgrounds, orientations and links; harmless when nothing is open."""
        for node in list(_similar_nodes()):
            slicer.mrmlScene.RemoveNode(node)
        layout = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
        if layout is not None and "layout" in self._before:
            layout.SetViewArrangement(self._before["layout"])
        for name, (background, orientation, linked, hot) in self._before.get("views", {}).items():
            view = _view(name)
            if view is None:
                continue
            slice_node, composite = view
            composite.SetLinkedControl(linked)
            composite.SetHotLinkedControl(hot)
            composite.SetBackgroundVolumeID(background if background and slicer.mrmlScene.GetNodeByID(background) else None)
            if orientation != "Reformat":
                slice_node.SetOrientation(orientation)
        self._before = {}

    def forget(self) -> None:
        """The scene is closed: there is nothing to bring back."""
        self._before = {}

    def _remember(self, *views: tuple[Any, Any]) -> None:
        if "views" in self._before:
            return
        self._before["views"] = {
            slice_node.GetLayoutName(): (
                composite.GetBackgroundVolumeID(),
                slice_node.GetOrientation(),
                composite.GetLinkedControl(),
                composite.GetHotLinkedControl(),
            )
            for slice_node, composite in views
        }


def _similar_nodes() -> list[Any]:
    scene = slicer.mrmlScene
    found = []
    for kind in ("vtkMRMLScalarVolumeNode", "vtkMRMLLinearTransformNode"):
        for index in range(scene.GetNumberOfNodesByClass(kind)):
            node = scene.GetNthNodeByClass(index, kind)
            if node.GetAttribute(ROLE) == SIMILAR:
                found.append(node)
    return found


def _view(name: str) -> tuple[Any, Any] | None:
    """Slice node and composite node of a view by its layout name."""
    scene = slicer.mrmlScene
    pair = []
    for kind in ("vtkMRMLSliceNode", "vtkMRMLSliceCompositeNode"):
        nodes = [scene.GetNthNodeByClass(n, kind) for n in range(scene.GetNumberOfNodesByClass(kind))]
        pair.append(next((node for node in nodes if node.GetLayoutName() == name), None))
    return (pair[0], pair[1]) if all(node is not None for node in pair) else None


def _copy_window(mine: Any, other: Any) -> None:
    """The same window in both, or likeness cannot be seen."""
    source, target = mine.GetDisplayNode(), other.GetDisplayNode()
    if source is not None and target is not None:
        target.SetAutoWindowLevel(False)
        target.SetWindowLevel(source.GetWindow(), source.GetLevel())
