"""`slicer.app.coreIOManager()`: the calls that `slicer.util` makes, over slicer-core's real logics and storage nodes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import slicer


class FileManager:
    """Loads and saves volumes, segmentations and scenes."""

    def __init__(self, scene: Any) -> None:
        self._scene = scene

    def fileType(self, path: str) -> str:
        name = str(path)
        if name.endswith((".mrb", ".mrml")):
            return "SceneFile"
        return "SegmentationFile" if name.endswith(".seg.nrrd") else "VolumeFile"

    def loadNodes(self, file_type: str, properties: dict[str, Any], loaded: Any, messages: Any) -> bool:
        path = str(properties["fileName"])
        if file_type == "SceneFile":
            return self._load_scene(path)
        name = properties.get("name") or os.path.basename(path).split(".")[0]
        if file_type == "SegmentationFile":
            node = slicer.modules.segmentations.logic().LoadSegmentationFromFile(path, True, name)
        else:
            node = slicer.modules.volumes.logic().AddArchetypeVolume(path, name, 1 if properties.get("labelmap") else 0)
        if node is not None:
            loaded.AddItem(node)
        return node is not None

    def _load_scene(self, path: str) -> bool:
        absolute = str(Path(path).resolve())  # the archive reader fails on relative paths
        self._scene.Clear(0)
        self._scene.SetURL(absolute)
        self._scene.SetRootDirectory(os.path.dirname(absolute))
        if absolute.endswith(".mrb"):
            return bool(self._scene.ReadFromMRB(absolute))
        return bool(self._scene.Connect())

    def fileWriterFileType(self, node: Any) -> str:
        return node.GetClassName()

    def saveNodes(self, file_type: str, properties: dict[str, Any], messages: Any) -> bool:
        path = str(Path(properties["fileName"]).resolve())
        if file_type == "SceneFile":
            self._scene.SetURL(path)
            self._scene.SetRootDirectory(os.path.dirname(path))
            return bool(self._scene.WriteToMRB(path) if path.endswith(".mrb") else self._scene.Commit(path))
        node = self._scene.GetNodeByID(properties["nodeID"])
        storage = node.CreateDefaultStorageNode()
        storage.SetFileName(path)
        return bool(storage.WriteData(node))
