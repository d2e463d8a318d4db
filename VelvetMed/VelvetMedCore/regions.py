"""Regions of interest in the scene as boxes to ask about: their place in the patient, also under transforms, and news of their changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import slicer
import vtk

from VelvetMedCore.navigation import crosshair_point
from VelvetMedLib.case import About

CLASS = "vtkMRMLMarkupsROINode"
NEW_SIZE_MM = 40.0
BENT_MM = 0.5
"""A transform that moves a corner by more than this from where its edges lead makes the box no box."""


def new_box() -> Any:
    """A region of interest around the crosshair."""
    node = slicer.mrmlScene.AddNewNodeByClass(CLASS, slicer.mrmlScene.GenerateUniqueName("R"))
    node.CreateDefaultDisplayNodes()
    node.SetCenter(*crosshair_point())
    node.SetSize(NEW_SIZE_MM, NEW_SIZE_MM, NEW_SIZE_MM)
    return node


def box_of(node: Any) -> About | None:
    """The box of a region of interest in world RAS mm; None while it has no extent. Raises ValueError where a transform bends it."""
    size = np.array(node.GetSize(), np.float64)
    if node.GetNumberOfDefinedControlPoints() == 0 or not (size > 0).all():
        return None
    to_node = slicer.util.arrayFromVTKMatrix(node.GetObjectToNodeMatrix())

    def world(signs: tuple[int, int, int]) -> np.ndarray:
        out = [0.0, 0.0, 0.0]
        node.TransformPointToWorld((to_node[:3, :3] @ (np.array(signs) * size / 2) + to_node[:3, 3]).tolist(), out)
        return np.array(out)

    matrix = np.eye(4)
    matrix[:3, 3] = world((0, 0, 0))
    matrix[:3, :3] = np.stack([world(axis) for axis in ((1, 0, 0), (0, 1, 0), (0, 0, 1))], axis=1) - matrix[:3, 3:]
    for corner in ((1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, -1)):
        if np.linalg.norm(world(corner) - (matrix[:3, :3] @ corner + matrix[:3, 3])) > BENT_MM:
            raise ValueError("a transform bends this region")
    return About(box_to_ras=matrix.tolist())


class BoxWatch:
    """Calls `changed` whenever the watched region moves, grows or gets another transform; watches one at a time."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._node: Any = None
        self._tag = 0

    def watch(self, node: Any) -> None:
        """None: no region any more."""
        if node is self._node:
            return
        if self._node is not None:
            self._node.RemoveObserver(self._tag)
        self._node = node
        if node is not None:
            self._tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._changed())
