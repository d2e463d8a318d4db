"""Stand-ins for the CTK widgets that .ui files and `slicer.util` use. Only what their users call is there."""

from __future__ import annotations

import types
from typing import Any, ClassVar

from PySide6 import QtCore, QtGui, QtWidgets

from . import manners

manners.install()

Signal, Property = QtCore.Signal, QtCore.Property
UNLIMITED = 16777215  # Qt's own QWIDGETSIZE_MAX, which PySide6 does not export


def in_a_row(owner: QtWidgets.QWidget, *children: QtWidgets.QWidget) -> None:
    """Lays children out side by side without margins."""
    layout = QtWidgets.QHBoxLayout(owner)
    layout.setContentsMargins(0, 0, 0, 0)
    for child in children:
        layout.addWidget(child)


class ctkCollapsibleButton(QtWidgets.QWidget):
    """A title with a triangle; a press on it hides and shows the children."""

    contentsCollapsed = Signal(bool)
    TITLE_HEIGHT = 24

    def __init__(self, *arguments: Any) -> None:
        super().__init__(next((a for a in arguments if isinstance(a, QtWidgets.QWidget)), None))
        self._text = next((a for a in arguments if isinstance(a, str)), "")
        self._collapsed = False
        self.setContentsMargins(4, self.TITLE_HEIGHT + 2, 4, 4)

    def setText(self, value: str) -> None:
        self._text = value
        self.update()

    text = Property(str, lambda self: self._text, setText)

    def setCollapsed(self, value: bool) -> None:
        if bool(value) == self._collapsed:
            return
        self._collapsed = bool(value)
        for child in QtCore.QObject.children(self):
            if isinstance(child, QtWidgets.QWidget):
                child.setVisible(not self._collapsed)
        self.setMaximumHeight(self.TITLE_HEIGHT if self._collapsed else UNLIMITED)
        self.contentsCollapsed.emit(self._collapsed)
        self.update()

    collapsed = Property(bool, lambda self: self._collapsed, setCollapsed)

    def mousePressEvent(self, event: QtGui.QMouseEvent) -> None:
        if event.position().y() < self.TITLE_HEIGHT:
            self.setCollapsed(not self._collapsed)

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        # An exception in here would end the process: nothing but plain drawing.
        painter = QtGui.QPainter(self)
        title = QtCore.QRect(0, 0, self.width, self.TITLE_HEIGHT - 2)
        painter.fillRect(title, self.palette.color(QtGui.QPalette.Button))
        painter.setPen(self.palette.color(QtGui.QPalette.ButtonText))
        mark = "▶" if self._collapsed else "▼"
        painter.drawText(title.adjusted(6, 0, 0, 0), QtCore.Qt.AlignVCenter, f"{mark}  {self._text}")


class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):
    """A group box whose check mark folds it: unchecked is collapsed, as in CTK."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.setCheckable(True)
        self.setChecked(True)
        self.connect("toggled(bool)", self._fold)

    def _fold(self, opened: bool) -> None:
        for child in QtCore.QObject.children(self):
            if isinstance(child, QtWidgets.QWidget):
                child.setVisible(opened)
        self.setMaximumHeight(UNLIMITED if opened else self.fontMetrics().height() + 8)

    def setCollapsed(self, value: bool) -> None:
        self.setChecked(not value)

    collapsed = Property(bool, lambda self: not self.isChecked(), setCollapsed)


class ctkSliderWidget(QtWidgets.QWidget):
    """A number with limits; the slider itself is not drawn."""

    valueChanged = Signal(float)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._box = QtWidgets.QDoubleSpinBox(self)
        in_a_row(self, self._box)
        self._box.connect("valueChanged(double)", self.valueChanged.emit)

    def setValue(self, value: float) -> None:
        self._box.setValue(float(value))

    def _limit(self, setter: str, value: float) -> None:
        getattr(self._box, setter)(float(value))

    value = Property(float, lambda self: self._box.value, setValue)
    minimum = Property(float, lambda self: self._box.minimum, lambda self, v: self._limit("setMinimum", v))
    maximum = Property(float, lambda self: self._box.maximum, lambda self, v: self._limit("setMaximum", v))
    singleStep = Property(float, lambda self: self._box.singleStep, lambda self, v: self._limit("setSingleStep", v))


class ctkPathLineEdit(QtWidgets.QWidget):
    """A path and a button that would open a file dialog."""

    currentPathChanged = Signal(str)
    Dirs, Files = 1, 2

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._edit = QtWidgets.QLineEdit(self)
        self._browse = QtWidgets.QToolButton(self)
        self._browse.text = "…"
        self.filters = self.Dirs | self.Files  # CTK's button asks for a folder only where files are not among them
        self._setting_key = ""
        in_a_row(self, self._edit, self._browse)
        self._edit.connect("textChanged(QString)", self.currentPathChanged.emit)

    def setCurrentPath(self, value: str) -> None:
        self._edit.setText(value)

    def _set_setting_key(self, value: str) -> None:
        self._setting_key = value

    currentPath = Property(str, lambda self: self._edit.text, setCurrentPath)
    settingKey = Property(str, lambda self: self._setting_key, _set_setting_key)


class ctkDirectoryButton(QtWidgets.QPushButton):
    """A button that shows and would choose a folder."""

    directoryChanged = Signal(str)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._directory = ""

    def setDirectory(self, value: str) -> None:
        self._directory = value
        self.text = value
        self.directoryChanged.emit(value)

    directory = Property(str, lambda self: self._directory, setDirectory)


class ctkComboBox(QtWidgets.QComboBox):
    """A combo box; CTK adds a default text."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._default_text = ""

    def _set_default_text(self, value: str) -> None:
        self._default_text = value

    defaultText = Property(str, lambda self: self._default_text, _set_default_text)


class ctkCheckBox(QtWidgets.QCheckBox):
    """A check box; CTK adds an icon."""


class ctkMessageBox(QtWidgets.QMessageBox):
    """Answers at once with `answer` and remembers what it was asked: a test must never wait for a person."""

    answer = QtWidgets.QMessageBox.Ok
    shown: ClassVar[list[str]] = []

    def exec_(self) -> Any:
        type(self).shown.append(self.text)
        return type(self).answer


class FileDialog(QtWidgets.QFileDialog):
    """Answers at once with `answer`, a path or nothing, as if the user had chosen it; PythonQt returns the path alone, not a pair."""

    answer = ""
    asked: ClassVar[list[str]] = []

    @classmethod
    def _choose(cls, *arguments: Any) -> str:
        cls.asked.append(next((text for text in arguments if isinstance(text, str)), ""))
        return cls.answer

    getOpenFileName = getSaveFileName = getExistingDirectory = _choose


WIDGETS: dict[str, type[QtWidgets.QWidget]] = {
    widget.__name__: widget
    for widget in (
        ctkCollapsibleButton,
        ctkCollapsibleGroupBox,
        ctkSliderWidget,
        ctkPathLineEdit,
        ctkDirectoryButton,
        ctkComboBox,
        ctkCheckBox,
        ctkMessageBox,
    )
}


def make_ctk() -> types.ModuleType:
    """The module that `import ctk` finds."""
    module = types.ModuleType("ctk")
    module.__dict__.update(WIDGETS)
    return module
