"""The host's application, files, .ui loader and stand-ins do what the module relies on."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.gui

UI = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0"><class>T</class><widget class="qMRMLWidget" name="T"><layout class="QVBoxLayout" name="l">
<item><widget class="{inner}" name="inner"/></item></layout></widget>
<customwidgets><customwidget><class>qMRMLWidget</class><extends>QWidget</extends><header>qMRMLWidget.h</header>
<container>1</container></customwidget>
<customwidget><class>{inner}</class><extends>QWidget</extends><header>x.h</header></customwidget></customwidgets>
<connections><connection><sender>T</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
<receiver>{receiver}</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>"""


def write_ui(folder: Path, inner: str, receiver: str = "inner") -> str:
    path = folder / "T.ui"
    path.write_text(UI.format(inner=inner, receiver=receiver), encoding="utf-8")
    return str(path)


def test_a_connection_in_the_ui_file_hands_the_scene_to_the_selector(host: Any, tmp_path: Path) -> None:
    import slicer

    host.close_scene()
    widget = slicer.util.loadUI(write_ui(tmp_path, "qMRMLNodeComboBox"))
    selector = slicer.util.childWidgetVariables(widget).inner
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    widget.setMRMLScene(slicer.mrmlScene)
    assert selector.currentNode() is None
    seen: list[Any] = []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", seen.append)
    volume = slicer.util.addVolumeFromArray(np.zeros((3, 4, 5)), name="ct")
    assert selector.currentNode() is volume and seen == [volume]
    host.close_scene()
    assert selector.currentNode() is None and seen[-1] is None
    widget.setMRMLScene(None)


def test_an_unknown_custom_widget_is_refused(host: Any, tmp_path: Path) -> None:
    import slicer

    with pytest.raises(NotImplementedError, match="ctkUnheardOf"):
        slicer.util.loadUI(write_ui(tmp_path, "ctkUnheardOf"))


def test_a_connection_to_a_widget_that_is_not_there_is_refused(host: Any, tmp_path: Path) -> None:
    import slicer

    with pytest.raises(LookupError, match="nobody"):
        slicer.util.loadUI(write_ui(tmp_path, "qMRMLNodeComboBox", receiver="nobody"))


def test_a_label_map_is_no_scalar_volume_for_the_selector_as_in_slicer(host: Any) -> None:
    import slicer

    host.close_scene()
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    selector.setMRMLScene(slicer.mrmlScene)
    slicer.util.addVolumeFromArray(np.zeros((3, 4, 5), np.uint8), nodeClassName="vtkMRMLLabelMapVolumeNode")
    assert selector.nodeCount() == 0
    selector.setMRMLScene(None)


def test_a_volume_and_a_scene_are_saved_and_loaded_by_slicer_util(host: Any, tmp_path: Path) -> None:
    import slicer

    host.close_scene()
    volume = slicer.util.addVolumeFromArray(np.arange(60).reshape(3, 4, 5).astype(np.int16), name="ct")
    assert slicer.util.saveNode(volume, str(tmp_path / "ct.nrrd"))
    again = slicer.util.loadVolume(str(tmp_path / "ct.nrrd"))
    assert np.array_equal(slicer.util.arrayFromVolume(again), slicer.util.arrayFromVolume(volume))
    slicer.mrmlScene.RemoveNode(again)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    host.close_scene()
    assert slicer.util.loadScene(str(tmp_path / "scene.mrb")) is None
    assert slicer.util.arrayFromVolume(slicer.util.getNode("ct")).shape == (3, 4, 5)
    host.close_scene()


def test_a_collapsed_button_hides_its_children(host: Any) -> None:
    import ctk
    import qt

    button = ctk.ctkCollapsibleButton()
    layout = qt.QVBoxLayout(button)
    label = qt.QLabel("inside", button)
    layout.addWidget(label)
    button.text = "Title"
    seen: list[bool] = []
    button.connect("contentsCollapsed(bool)", seen.append)
    button.collapsed = True
    assert seen == [True] and button.collapsed and not label.isVisibleTo(button)
    button.collapsed = False
    assert label.isVisibleTo(button)


def test_a_module_is_loaded_opened_tested_and_finds_its_resources(host: Any, tmp_path: Path) -> None:
    import slicer

    (tmp_path / "HostProbe.py").write_text(
        textwrap.dedent(
            """
            from slicer.ScriptedLoadableModule import *

            class HostProbe(ScriptedLoadableModule):
                def __init__(self, parent):
                    ScriptedLoadableModule.__init__(self, parent)
                    self.parent.title = "Probe"

            class HostProbeWidget(ScriptedLoadableModuleWidget):
                def setup(self):
                    ScriptedLoadableModuleWidget.setup(self)
                    self.entered = False
                def enter(self):
                    self.entered = True

            class HostProbeLogic(ScriptedLoadableModuleLogic):
                pass

            class HostProbeTest(ScriptedLoadableModuleTest):
                def test_parameter_node_is_a_singleton(self):
                    self.assertIs(HostProbeLogic().getParameterNode(), HostProbeLogic().getParameterNode())
            """
        ),
        encoding="utf-8",
    )
    module, instance = host.load_module(tmp_path / "HostProbe.py")
    assert slicer.modules.hostprobe.title == "Probe"
    assert Path(instance.resourcePath("UI/x.ui")) == tmp_path.resolve() / "Resources" / "UI" / "x.ui"
    widget, _ = host.open_widget(module)
    assert widget.entered
    slicer.testing.runUnitTest([tmp_path], "HostProbe")


def test_a_module_whose_own_tests_fail_makes_the_runner_fail(host: Any, tmp_path: Path) -> None:
    import slicer

    (tmp_path / "HostFailing.py").write_text(
        "import unittest\nclass HostFailingTest(unittest.TestCase):\n    def test_no(self):\n        self.fail('on purpose')\n",
        encoding="utf-8",
    )
    with pytest.raises(RuntimeError, match="on purpose"):
        slicer.testing.runUnitTest([tmp_path], "HostFailing")


def test_sample_data_refuses_none_where_the_real_one_does(host: Any) -> None:
    import SampleData

    with pytest.raises(TypeError, match="uris"):
        SampleData.SampleDataLogic.registerCustomSampleDataSource(sampleName="x", uris=None, fileNames="a", nodeNames="b")


def test_settings_and_startup_environment_are_readable_as_in_slicer(host: Any) -> None:
    import slicer

    slicer.app.settings().setValue("Probe/Key", "value")
    assert slicer.app.settings().value("Probe/Key") == "value"
    host.app.startup_environment = {"PATH": "/bin", "PYTHONHOME": "x"}
    assert slicer.util.startupEnvironment() == {"PATH": "/bin", "PYTHONHOME": "x"}


def test_a_message_box_is_answered_at_once_when_testing_is_off(host: Any) -> None:
    import qt
    import slicer

    host.app.testing = False
    try:
        assert slicer.util.confirmOkCancelDisplay("Really?")
    finally:
        host.app.testing = True
    import ctk

    assert ctk.ctkMessageBox.shown[-1] == "Really?"
    assert qt.QMessageBox.Ok


def test_a_folded_group_box_hides_and_switches_off_what_is_in_it(host: Any) -> None:
    import ctk
    import qt

    group = ctk.ctkCollapsibleGroupBox()
    layout = qt.QVBoxLayout(group)
    button = qt.QPushButton("inside", group)
    layout.addWidget(button)
    group.collapsed = True
    assert group.collapsed and not button.isVisibleTo(group) and not button.enabled
    group.collapsed = False
    assert not group.collapsed and button.isVisibleTo(group) and button.enabled


def test_a_file_dialog_answers_at_once_with_a_path_alone_as_in_pythonqt(host: Any) -> None:
    import qt

    assert qt.QFileDialog.getOpenFileName(None, "Which?", "", "Zip (*.zip)") == ""
    qt.QFileDialog.answer = "/a/b"
    try:
        assert qt.QFileDialog.getExistingDirectory(None, "Where?") == "/a/b"
    finally:
        qt.QFileDialog.answer = ""
    assert qt.QFileDialog.asked[-2:] == ["Which?", "Where?"]


def test_a_single_package_can_be_missing(host: Any) -> None:
    import slicer

    host.recorders.packaging.missing = {"torch"}
    try:
        assert not slicer.packaging.pip_check(["torch>=2.2"]) and slicer.packaging.pip_check("numpy>=1.26")
    finally:
        host.recorders.packaging.missing = set()
