"""Start the host once in a process, load modules into it and open their widgets."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import slicer
from PySide6 import QtWidgets

from . import ctk_widgets, manners, mrml_widgets
from .application import HostApplication, Module, start_application
from .slicer_modules import Recorders, publish
from .ui_loader import make_qt


@dataclass(frozen=True)
class Host:
    """The running host: the application and the memories of its recording stand-ins."""

    app: HostApplication
    recorders: Recorders

    def load_module(self, path: Path) -> tuple[ModuleType, Any]:
        """Imports the file, makes the class of the same name, publishes `slicer.modules.<name>`, as Slicer does at start."""
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        python_module = importlib.import_module(path.stem)
        entry = Module(path.stem, path=str(path))
        setattr(slicer.modules, path.stem.lower(), entry)
        instance = getattr(python_module, path.stem)(entry)
        setattr(slicer.modules, f"{path.stem}Instance", instance)
        return python_module, instance

    def open_widget(self, python_module: ModuleType) -> tuple[Any, mrml_widgets.qMRMLWidget]:
        """Makes the widget, calls setup and enter; returns it with its parent widget."""
        name = python_module.__name__
        parent = mrml_widgets.qMRMLWidget()
        parent.setLayout(QtWidgets.QVBoxLayout())
        parent.setMRMLScene(slicer.mrmlScene)
        widget = getattr(python_module, f"{name}Widget")(parent)
        getattr(slicer.modules, name.lower()).widget = parent
        widget.setup()
        if hasattr(widget, "enter"):
            widget.enter()
        return widget, parent

    def close_scene(self) -> None:
        """File > Close scene."""
        slicer.mrmlScene.Clear(0)
        self.app.processEvents()


_running: Host | None = None


def start() -> Host:
    """The one host of this process."""
    global _running
    if _running is None:
        manners.install()
        sys.modules["qt"] = make_qt()
        sys.modules["ctk"] = ctk_widgets.make_ctk()
        for name, widget in mrml_widgets.WIDGETS.items():
            setattr(slicer, name, widget)
        recorders = publish()
        _running = Host(start_application(), recorders)
    return _running
