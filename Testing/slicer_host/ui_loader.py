"""A .ui loader that knows the stand-ins, makes connections by name, and refuses any ctk or qMRML class it does not know."""

from __future__ import annotations

import types
import xml.etree.ElementTree as ElementTree
from typing import Any

from PySide6 import QtCore, QtUiTools, QtWidgets

from . import ctk_widgets, manners, mrml_widgets

manners.install()

KNOWN_WIDGETS: dict[str, type[QtWidgets.QWidget]] = {**ctk_widgets.WIDGETS, **mrml_widgets.WIDGETS}


class UiLoader(QtUiTools.QUiLoader):
    """What `slicer.util.loadUI` finds as `qt.QUiLoader`."""

    def createWidget(self, class_name: str, parent: QtWidgets.QWidget | None = None, name: str = "") -> QtWidgets.QWidget:
        if class_name in KNOWN_WIDGETS:
            widget = KNOWN_WIDGETS[class_name](parent)
        elif class_name.startswith(("ctk", "qMRML", "qSlicer")):
            raise NotImplementedError(f"the test host has no stand-in for {class_name}")
        else:
            widget = super().createWidget(class_name, parent, name)
        if widget is not None:
            widget.setObjectName(name)
        return widget

    def load(self, device: QtCore.QIODevice, parent: QtWidgets.QWidget | None = None) -> QtWidgets.QWidget:
        """Connections are cut out of the XML and made by name, so that MRML types in them do not matter."""
        root = ElementTree.fromstring(bytes(device.readAll().data()))
        self._refuse_unknown(root)
        wanted = self._take_connections(root)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(root))
        buffer.open(QtCore.QIODevice.ReadOnly)
        widget = super().load(buffer, parent)

        def find(name: str) -> Any:
            found = widget if widget.objectName == name else widget.findChild(QtCore.QObject, name)
            if found is None:
                raise LookupError(f"a connection of the .ui file names {name}, which is not in it")
            return found

        for sender, signal, receiver, slot in wanted:
            manners.connect(find(sender), signal, find(receiver), slot)
        return widget

    @staticmethod
    def _refuse_unknown(root: ElementTree.Element) -> None:
        # createWidget is called from C++, where a Python exception would only be printed: look before loading.
        for widget in root.iter("widget"):
            name = widget.get("class", "")
            if name.startswith(("ctk", "qMRML", "qSlicer")) and name not in KNOWN_WIDGETS:
                raise NotImplementedError(f"the test host has no stand-in for {name}")

    @staticmethod
    def _take_connections(root: ElementTree.Element) -> list[tuple[str, str, str, str]]:
        section = root.find("connections")
        if section is None:
            return []
        wanted = [
            tuple(entry.findtext(key) or "" for key in ("sender", "signal", "receiver", "slot")) for entry in section.findall("connection")
        ]
        root.remove(section)
        return wanted  # type: ignore[return-value]


def make_qt() -> types.ModuleType:
    """The module that `import qt` finds: Qt's names in one flat space."""
    module = types.ModuleType("qt")
    for source in manners.QT_MODULES:
        for name in dir(source):
            if not name.startswith("_"):
                setattr(module, name, getattr(source, name))
    for qt6_only in ("Signal", "Slot", "Property"):
        delattr(module, qt6_only)  # PySide6 spellings that PythonQt does not have
    module.__dict__["QUiLoader"] = UiLoader
    module.__dict__["QFileDialog"] = ctk_widgets.FileDialog
    return module
