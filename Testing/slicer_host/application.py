"""`slicer.app`, `slicer.mrmlScene` and `slicer.modules` over slicer-core's real logics."""

from __future__ import annotations

import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import slicer
import vtk
from PySide6 import QtCore, QtWidgets

from . import manners
from .file_manager import FileManager

manners.install()

LOGICS = {
    "Colors": "vtkMRMLColorLogic",  # first: the others look it up, and without it slices are black
    "Volumes": "vtkSlicerVolumesLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Texts": "vtkSlicerTextsLogic",
    "Models": "vtkSlicerModelsLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Sequences": "vtkSlicerSequencesLogic",
}


class Module:
    """What `slicer.modules.<name>` offers; also the `parent` handed to a module's constructor."""

    def __init__(self, name: str, logic: Any = None, path: str = "") -> None:
        self.name = self.title = name
        self.path = path
        self.widget: Any = None
        self.hidden = False
        self.icon: Any = None
        self._logic = logic

    def logic(self) -> Any:
        return self._logic

    def widgetRepresentation(self) -> Any:
        return self.widget


class StartupEnvironment:
    """The environment before the launcher changed it (QProcessEnvironment has these two calls)."""

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values

    def keys(self) -> list[str]:
        return list(self._values)

    def value(self, name: str) -> str:
        return self._values.get(name, "")


class HostApplication(QtCore.QObject):
    """`slicer.app`. What it does not know goes to the QApplication, which `slicer.app` is in Slicer."""

    startupCompleted = QtCore.Signal()
    aboutToQuit = QtCore.Signal()

    def __init__(self, qapplication: QtWidgets.QApplication, scene: Any, logic: Any, temporary: Path) -> None:
        super().__init__()
        self._qapplication, self._scene, self._logic = qapplication, scene, logic
        self.majorVersion, self.minorVersion, self.revision = 5, 13, "31053"
        self.applicationName = "Slicer"
        self.temporaryPath = str(temporary)
        self.startup_environment = dict(os.environ)
        self.testing = True
        self._files = FileManager(scene)
        self._settings = QtCore.QSettings(os.path.join(self.temporaryPath, "settings.ini"), QtCore.QSettings.IniFormat)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._qapplication, name)

    def mrmlScene(self) -> Any:
        return self._scene

    def applicationLogic(self) -> Any:
        return self._logic

    def coreIOManager(self) -> FileManager:
        return self._files

    def layoutManager(self) -> None:
        """There are no view widgets: callers must do without, as under --no-main-window."""

    def mainWindow(self) -> None:
        return None

    def processEvents(self) -> None:
        self._qapplication.processEvents()

    def settings(self) -> QtCore.QSettings:
        return self._settings

    userSettings = settings

    def testingEnabled(self) -> bool:
        return self.testing

    def startupEnvironment(self) -> StartupEnvironment:
        return StartupEnvironment(self.startup_environment)

    def commandOptions(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(noMainWindow=True, testingEnabled=self.testing)


_kept: list[Any] = []
"""Logics are not owned by the scene: without a Python reference they die, and the scene with them."""


def _add_data_io(scene: Any, logic: Any, cache: Path) -> None:
    """Reading a .mrb needs a data I/O manager with a cache folder."""
    cache.mkdir(parents=True, exist_ok=True)
    remote = slicer.vtkMRMLRemoteIOLogic()
    remote.SetMRMLScene(scene)
    remote.SetMRMLApplicationLogic(logic)
    remote.GetCacheManager().SetRemoteCacheDirectory(str(cache))
    data_io = slicer.vtkDataIOManagerLogic()
    data_io.SetMRMLScene(scene)
    data_io.SetMRMLApplicationLogic(logic)
    data_io.SetAndObserveDataIOManager(remote.GetDataIOManager())
    remote.AddDataIOToScene()
    _kept.extend((remote, data_io))


def add_slicer_module(name: str, **contents: Any) -> types.ModuleType:
    """Publishes a Python module as `slicer.<name>`."""
    module = types.ModuleType(f"slicer.{name}")
    module.__dict__.update(contents)
    sys.modules[module.__name__] = module
    setattr(slicer, name, module)
    return module


def start_application() -> HostApplication:
    """Sets `slicer.mrmlScene`, `slicer.app`, `slicer.modules` and `slicer.moduleNames`."""
    qapplication = QtWidgets.QApplication.instance() or QtWidgets.QApplication(sys.argv[:1])
    temporary = Path(tempfile.mkdtemp(prefix="slicer_host_"))
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerApplicationLogic()
    logic.SetTemporaryPath(str(temporary))
    logic.SetMRMLScene(scene)
    logic.GetColorLogic().SetMRMLScene(scene)
    logic.GetColorLogic().AddDefaultColorNodes()
    logic.SetSliceLogics(vtk.vtkCollection())
    logic.SetViewLogics(vtk.vtkCollection())
    slicer.mrmlScene = scene
    modules = add_slicer_module("modules")
    module_names = add_slicer_module("moduleNames")
    for name, class_name in LOGICS.items():
        module_logic = getattr(slicer, class_name)()
        module_logic.SetMRMLScene(scene)
        module_logic.SetMRMLApplicationLogic(logic)
        logic.SetModuleLogic(name, module_logic)
        setattr(modules, name.lower(), Module(name, module_logic))
        setattr(module_names, name, name)
    _add_data_io(scene, logic, temporary / "cache")
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairName("default")
    scene.AddNode(crosshair)
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    _kept.extend((logic, scene))
    slicer.app = HostApplication(qapplication, scene, logic, temporary)
    return slicer.app
