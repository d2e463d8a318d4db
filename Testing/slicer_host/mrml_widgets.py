"""Stand-ins for the qMRML widgets: they follow a real vtkMRMLScene, but draw only a plain list."""

from __future__ import annotations

from typing import Any

from PySide6 import QtCore, QtWidgets

from . import manners
from .ctk_widgets import in_a_row

manners.install()

Signal, Property = QtCore.Signal, QtCore.Property


class qMRMLWidget(QtWidgets.QWidget):
    """A widget that knows a scene. The signal carries a plain object: a VTK type in its signature fails on emit."""

    mrmlSceneChanged = Signal(object)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)


class _SceneFollower(QtWidgets.QWidget):
    """Calls `_rebuild` whenever nodes of the scene come, go or are renamed."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._observations: list[tuple[Any, int]] = []

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        for observed, tag in self._observations:
            observed.RemoveObserver(tag)
        self._observations = []
        self._scene = scene
        if scene is not None:
            for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent, scene.EndImportEvent):
                self._observations.append((scene, scene.AddObserver(event, self._on_scene)))
        self._rebuild()

    def _on_scene(self, *_: Any) -> None:
        self._rebuild()

    def _rebuild(self) -> None:
        raise NotImplementedError


class qMRMLNodeComboBox(_SceneFollower):
    """Lists the nodes of some classes; keeps its choice while nodes come and go."""

    currentNodeChanged = Signal(object)
    currentNodeIDChanged = Signal(str)
    FLAGS = ("noneEnabled", "addEnabled", "removeEnabled", "renameEnabled", "editEnabled", "showHidden", "showChildNodeTypes")

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._combo = QtWidgets.QComboBox(self)
        # A long node name must not widen the panel, as in Slicer.
        self._combo.setSizeAdjustPolicy(QtWidgets.QComboBox.AdjustToMinimumContentsLengthWithIcon)
        self._combo.minimumContentsLength = 8
        in_a_row(self, self._combo)
        self._node_types: list[str] = []
        self._flags: dict[str, bool] = dict.fromkeys(self.FLAGS, False)
        self._combo.connect("currentIndexChanged(int)", self._announce)

    def _set_node_types(self, types_: list[str]) -> None:
        self._node_types = list(types_)
        self._rebuild()

    nodeTypes = Property("QStringList", lambda self: self._node_types, _set_node_types)

    def _set_flag(self, name: str, value: bool) -> None:
        self._flags[name] = bool(value)
        self._rebuild()

    noneEnabled = Property(bool, lambda s: s._flags["noneEnabled"], lambda s, v: s._set_flag("noneEnabled", v))
    addEnabled = Property(bool, lambda s: s._flags["addEnabled"], lambda s, v: s._set_flag("addEnabled", v))
    removeEnabled = Property(bool, lambda s: s._flags["removeEnabled"], lambda s, v: s._set_flag("removeEnabled", v))
    renameEnabled = Property(bool, lambda s: s._flags["renameEnabled"], lambda s, v: s._set_flag("renameEnabled", v))
    editEnabled = Property(bool, lambda s: s._flags["editEnabled"], lambda s, v: s._set_flag("editEnabled", v))
    showHidden = Property(bool, lambda s: s._flags["showHidden"], lambda s, v: s._set_flag("showHidden", v))
    showChildNodeTypes = Property(bool, lambda s: s._flags["showChildNodeTypes"], lambda s, v: s._set_flag("showChildNodeTypes", v))

    def _accepts(self, node: Any) -> bool:
        if node.GetHideFromEditors() and not self._flags["showHidden"]:
            return False
        if self._flags["showChildNodeTypes"]:
            return any(node.IsA(name) for name in self._node_types)
        return node.GetClassName() in self._node_types

    def _rebuild(self) -> None:
        before = self.currentNodeID
        scene = self._scene
        nodes = [scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes())] if scene is not None else []
        self._combo.blockSignals(True)
        self._combo.clear()
        if self._flags["noneEnabled"]:
            self._combo.addItem("None", "")
        for node in nodes:
            if self._accepts(node):
                self._combo.addItem(node.GetName(), node.GetID())
        index = self._combo.findData(before) if before else 0
        self._combo.setCurrentIndex(max(index, 0) if self._combo.count else -1)
        self._combo.blockSignals(False)
        if self.currentNodeID != before:
            self._announce()

    def _announce(self, *_: Any) -> None:
        self.currentNodeIDChanged.emit(self.currentNodeID)
        self.currentNodeChanged.emit(self.currentNode())

    @property
    def currentNodeID(self) -> str:
        index = self._combo.currentIndex
        return (self._combo.itemData(index) or "") if index >= 0 else ""

    def currentNode(self) -> Any:
        identifier = self.currentNodeID
        return self._scene.GetNodeByID(identifier) if identifier and self._scene is not None else None

    def setCurrentNode(self, node: Any) -> None:
        self.setCurrentNodeID(node.GetID() if node is not None else "")

    def setCurrentNodeID(self, identifier: str) -> None:
        self._combo.setCurrentIndex(self._combo.findData(identifier or ""))

    def nodeCount(self) -> int:
        return self._combo.count - int(self._flags["noneEnabled"])


class qMRMLSegmentsTableView(qMRMLWidget):
    """Names of the segments of a segmentation node, as a list."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._list = QtWidgets.QListWidget(self)
        self._node: Any = None
        in_a_row(self, self._list)

    def setSegmentationNode(self, node: Any) -> None:
        self._node = node
        self._list.clear()
        if node is not None:
            segmentation = node.GetSegmentation()
            self._list.addItems([segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())])

    def segmentationNode(self) -> Any:
        return self._node


WIDGETS: dict[str, type[QtWidgets.QWidget]] = {
    widget.__name__: widget for widget in (qMRMLWidget, qMRMLNodeComboBox, qMRMLSegmentsTableView)
}
