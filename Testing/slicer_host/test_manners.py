"""The host is as strict as PythonQt where a looser host would give false green."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.gui


def test_a_qt_property_is_read_without_a_call_and_calling_it_fails_as_in_slicer(host: Any) -> None:
    import qt

    label = qt.QLabel("hello")
    assert label.text == "hello"
    with pytest.raises(TypeError):
        label.text()


def test_a_property_is_written_by_assignment_and_by_its_setter(host: Any) -> None:
    import qt

    button = qt.QPushButton()
    button.text = "one"
    button.enabled = False
    assert (button.text, button.enabled) == ("one", False)
    button.setText("two")
    assert button.text == "two"


def test_a_slot_gets_only_the_arguments_it_takes(host: Any) -> None:
    import qt

    seen: list[Any] = []
    button = qt.QPushButton()
    button.setCheckable(True)
    button.connect("clicked(bool)", lambda: seen.append("none"))
    button.connect("clicked(bool)", lambda checked: seen.append(checked))
    button.connect("clicked(bool)", lambda *every: seen.append(every))
    button.click()
    assert seen == ["none", True, (True,)]


def test_a_disconnected_slot_is_not_called(host: Any) -> None:
    import qt

    seen: list[bool] = []
    button = qt.QPushButton()
    button.connect("clicked(bool)", seen.append)
    assert button.disconnect("clicked(bool)", seen.append)
    button.click()
    assert seen == [] and not button.disconnect("clicked(bool)", seen.append)


def test_connecting_to_an_unknown_signal_raises(host: Any) -> None:
    import qt

    with pytest.raises(AttributeError):
        qt.QPushButton().connect("clickd(bool)", print)


def test_an_overloaded_signal_is_chosen_by_its_signature(host: Any) -> None:
    import qt

    combo = qt.QComboBox()
    combo.addItems(["a", "b"])
    seen: list[Any] = []
    combo.connect("currentIndexChanged(int)", seen.append)
    combo.connect("currentTextChanged(QString)", seen.append)
    combo.setCurrentIndex(1)
    assert sorted(map(str, seen)) == ["1", "b"]


def test_a_widget_has_the_names_that_pythonqt_gives_it(host: Any) -> None:
    import qt

    label = qt.QLabel()
    label.name = "title"
    assert label.objectName == "title" and label.className() == "QLabel"


def test_spellings_of_pyside_are_not_in_the_qt_module(host: Any) -> None:
    import qt

    assert not any(hasattr(qt, name) for name in ("Signal", "Slot", "Property"))


def test_none_true_and_false_cannot_run_out_however_long_the_tests_are(host: Any) -> None:
    """PySide6 6.12 uses references to them up on Python 3.11; on newer ones they are immortal."""
    import sys

    import qt

    button = qt.QPushButton()
    for _ in range(50):
        button.update()
        button.toggled.emit(True)
    if sys.version_info < (3, 12):
        assert min(map(sys.getrefcount, (None, True, False))) > 1 << 39
