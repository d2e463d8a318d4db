"""`slicer.ScriptedLoadableModule`: the base classes of scripted modules, written for this host."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
import unittest
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import slicer
from PySide6 import QtWidgets

from .mrml_widgets import qMRMLWidget


def _resource(instance: object, relative: str) -> str:
    return str(Path(inspect.getfile(type(instance))).resolve().parent / "Resources" / relative)


class ScriptedLoadableModule:
    """Description of a module; `parent` is what `slicer.modules.<name>` returns."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title = self.moduleName
        parent.categories, parent.dependencies, parent.contributors = [], [], []
        parent.helpText = parent.acknowledgementText = ""

    def resourcePath(self, relative: str) -> str:
        return _resource(self, relative)

    def getDefaultModuleDocumentationLink(self) -> str:
        return ""


class ScriptedLoadableModuleWidget:
    """Base of the GUI class: Slicer calls setup once, then enter, exit and cleanup."""

    def __init__(self, parent: Any = None) -> None:
        if parent is None:
            parent = qMRMLWidget()
            parent.setLayout(QtWidgets.QVBoxLayout())
            parent.setMRMLScene(slicer.mrmlScene)
        self.parent = parent
        self.layout = parent.layout()
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False

    def resourcePath(self, relative: str) -> str:
        return _resource(self, relative)

    def setup(self) -> None:
        """In Slicer's developer mode this adds the Reload & Test section."""

    def cleanup(self) -> None:
        """Called when the application exits and the module is reloaded."""


class ScriptedLoadableModuleLogic:
    """Base of the logic class, with the singleton parameter node."""

    def __init__(self, parent: Any = None) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def createParameterNode(self) -> Any:
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)  # CreateNodeByClass hands over a reference of its own
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetModuleName(self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node

    def getParameterNode(self) -> Any:
        found = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        return found or slicer.mrmlScene.AddNode(self.createParameterNode())


class ScriptedLoadableModuleTest(unittest.TestCase):
    """Base of the self-test class."""

    messageDelay = 0

    def runTest(self) -> None:
        """Overridden by modules: resets the scene and calls the test methods."""

    def delayDisplay(self, message: str, msec: int | None = None) -> None:
        logging.info(message)
        slicer.app.processEvents()


def run_unit_test(folders: Sequence[str | Path], module_name: str) -> None:
    """`slicer.testing.runUnitTest`: what the ctest made by `slicer_add_python_unittest` runs."""
    for folder in folders:
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    suite = unittest.defaultTestLoader.loadTestsFromModule(importlib.import_module(module_name))
    result = unittest.TextTestRunner(verbosity=1).run(suite)
    if not result.wasSuccessful() or not result.testsRun:
        details = "\n".join(text for _, text in result.failures + result.errors)
        raise RuntimeError(f"{module_name}: tests failed or none were found\n{details}")
