"""Rules for the module's source that only a syntax tree or the .ui files can show."""

from __future__ import annotations

import ast
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

MODULE = Path(__file__).resolve().parents[2] / "VelvetMed"
SOURCES = sorted(MODULE.rglob("*.py"))
UI_FILES = sorted((MODULE / "Resources" / "UI").glob("*.ui"))

ALLOWED_WIDGETS = {
    "QWidget",
    "QFrame",
    "QLabel",
    "QPushButton",
    "QGroupBox",
    "QDoubleSpinBox",
    "QComboBox",
    "QCheckBox",
    "QLineEdit",
    "QProgressBar",
    "QTableWidget",
    "QTextBrowser",
    "QPlainTextEdit",
    "qMRMLWidget",
    "qMRMLNodeComboBox",
    "ctkCollapsibleButton",
    "ctkCollapsibleGroupBox",
    "ctkPathLineEdit",
}
ALLOWED_AT_FILE_SCOPE = {"slicer", "vtk", "qt", "ctk", "numpy", "SimpleITK", "VelvetMedLib", "VelvetMedCore", "VelvetMedPanels"}
ALLOWED_OF_THE_LIBRARY = {"VelvetMedLib", "VelvetMedLib.errors", "VelvetMedLib.shapes"}
ALLOWED_ROOMS = ("VelvetMedLib.worker.client", "VelvetMedLib.ct", "VelvetMedLib.reports", "VelvetMedLib.case")
TEXT_SETTERS = {
    "setText",
    "setToolTip",
    "setWindowTitle",
    "addItem",
    "errorDisplay",
    "infoDisplay",
    "warningDisplay",
    "confirmOkCancelDisplay",
    "confirmYesNoDisplay",
    "say",
    "_say",
    "idle",
    "setItemText",
    "setMarkdown",
    "QTableWidgetItem",
    "getExistingDirectory",
    "getOpenFileName",
    "getSaveFileName",
}
TEXT_PROPERTIES = {"text", "toolTip", "title", "placeholderText", "windowTitle", "helpText", "acknowledgementText"}


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in SOURCES:
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module]
    return []


def test_every_widget_of_every_ui_file_is_one_that_the_host_stands_for() -> None:
    used = {widget.get("class") for path in UI_FILES for widget in ElementTree.parse(path).iter("widget")}
    assert UI_FILES and used <= ALLOWED_WIDGETS, used - ALLOWED_WIDGETS


def test_every_custom_widget_of_a_ui_file_is_declared_in_it() -> None:
    for path in UI_FILES:
        root = ElementTree.parse(path).getroot()
        declared = {item.findtext("class") for item in root.iter("customwidget")}
        used = {w.get("class", "") for w in root.iter("widget") if not w.get("class", "").startswith("Q")}
        assert used == declared, path.name


def test_at_file_scope_only_what_slicer_ships_is_imported() -> None:
    import sys

    for path, tree in trees():
        for node in tree.body:
            for name in imported(node):
                first = name.split(".")[0]
                assert first in ALLOWED_AT_FILE_SCOPE or first in sys.stdlib_module_names, f"{path.name}: {name}"


def test_the_module_uses_only_the_rooms_of_the_library_that_are_free_of_torch() -> None:
    for path, tree in trees():
        for node in ast.walk(tree):
            for name in imported(node):
                if name.startswith("VelvetMedLib") and name not in ALLOWED_OF_THE_LIBRARY:
                    assert name.startswith(ALLOWED_ROOMS), f"{path.name}: {name}"


def test_no_statement_at_file_scope_has_an_effect() -> None:
    harmless = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If)
    for path, tree in trees():
        for node in tree.body:
            documentation = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert documentation or isinstance(node, harmless), f"{path.name}:{node.lineno}"
            if isinstance(node, ast.If):
                assert ast.unparse(node.test) == "TYPE_CHECKING", f"{path.name}:{node.lineno}"


def test_no_spelling_of_pyside_is_used() -> None:
    for path, tree in trees():
        text = path.read_text(encoding="utf-8")
        assert "PySide" not in text and "findChild(" not in text, path.name
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "qt":
                assert node.attr not in ("Signal", "Slot", "Property", "QTextCodec"), f"{path.name}:{node.lineno}"


def test_core_and_logic_know_no_qt() -> None:
    for path, tree in trees():
        if path.parent.name == "VelvetMedCore":
            assert not any(name in ("qt", "ctk") for node in ast.walk(tree) for name in imported(node)), path.name


def is_untranslated(value: ast.AST) -> bool:
    """A literal with at least one word in it, outside `_()`."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return any(part.isalpha() and len(part) > 1 for part in value.value.replace("{", " ").replace("}", " ").split())
    if isinstance(value, ast.JoinedStr):
        return any(is_untranslated(part) for part in value.values)
    if isinstance(value, ast.IfExp):
        return is_untranslated(value.body) or is_untranslated(value.orelse)
    return False


NAMES_OF_THE_PROGRAM = {"VelvetMed"}


def test_every_text_that_a_user_sees_is_translatable() -> None:
    for path, tree in trees():
        for node in ast.walk(tree):
            values: list[ast.AST] = []
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Attribute) and t.attr in TEXT_PROPERTIES for t in node.targets):
                values = [node.value]
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in TEXT_SETTERS:
                values = list(node.args)
            for value in values:
                name = isinstance(value, ast.Constant) and value.value in NAMES_OF_THE_PROGRAM
                assert name or not is_untranslated(value), f"{path.name}:{node.lineno}: {ast.unparse(value)}"


def test_the_four_parts_of_every_error_of_the_module_are_translatable() -> None:
    for path, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or "next_step" not in {k.arg for k in node.keywords}:
                continue
            for value in (*node.args, *(keyword.value for keyword in node.keywords)):
                assert not is_untranslated(value), f"{path.name}:{node.lineno}: {ast.unparse(value)}"


def test_the_self_test_calls_nothing_that_only_the_host_has() -> None:
    tree = ast.parse((MODULE / "VelvetMed.py").read_text(encoding="utf-8"))
    (test,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "VelvetMedTest")
    names = {node.attr for node in ast.walk(test) if isinstance(node, ast.Attribute)} | {
        node.id for node in ast.walk(test) if isinstance(node, ast.Name)
    }
    assert not names & {"recorders", "open_widget", "close_scene", "load_module", "startup_environment", "click", "emit"}
    assert not [name for node in ast.walk(test) for name in imported(node) if name.split(".")[0] in ("slicer_host", "PySide6", "pytest")]
    methods = [node.name for node in test.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    listed = [node.value for node in ast.walk(test) if isinstance(node, ast.Constant) and str(node.value).startswith("test_")]
    assert len(methods) >= 3 and sorted(listed) == sorted(methods)  # Slicer's runner calls runTest, which must name them all


def test_no_f_string_goes_into_a_translation() -> None:
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_":
                assert len(node.args) == 1 and isinstance(node.args[0], ast.Constant), f"{path.name}:{node.lineno}"


@pytest.mark.gui
def test_the_hosts_stand_ins_cover_the_allowed_custom_widgets(host: object) -> None:
    from slicer_host.ui_loader import KNOWN_WIDGETS

    assert {name for name in ALLOWED_WIDGETS if not name.startswith("Q")} <= set(KNOWN_WIDGETS)
