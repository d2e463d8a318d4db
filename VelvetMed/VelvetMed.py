"""The VelvetMed module of 3D Slicer: registration, sample data, the widget that holds the panels, and a self-test."""

from __future__ import annotations

import logging
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

OLDEST_SLICER = (5, 12)
POLL_INTERVAL_MS = 100


def slicer_is_too_old() -> bool:
    return (int(slicer.app.majorVersion), int(slicer.app.minorVersion)) < OLDEST_SLICER


def too_old_sentence() -> str:
    return _("VelvetMed needs Slicer {major}.{minor} or newer.").format(major=OLDEST_SLICER[0], minor=OLDEST_SLICER[1])


def VelvetMedLogic() -> Any:  # the name by which Slicer and scripts look a module's logic up
    """The logic without a widget, for scripts: start_analysis, then wait."""
    from VelvetMedCore.library import make_importable

    make_importable()
    from VelvetMedCore.logic import VelvetMedLogic as Logic

    return Logic()


class VelvetMed(ScriptedLoadableModule):
    """What the module list and the help say."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "VelvetMed"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = []
        self.parent.contributors = ["VelvetMed developers"]
        self.parent.helpText = _(
            "Segments, findings, a draft report and answers for a chest or abdomen CT, each with its place in the scan. "
            "Research use only. Not for clinical use. The models run in a process of their own on this computer; nothing is sent anywhere."
        )
        self.parent.acknowledgementText = _("Built on published pre-training methods; the README names the papers and the data.")
        if slicer_is_too_old():
            logging.warning(too_old_sentence())
        else:
            slicer.app.connect("startupCompleted()", register_sample_data)


def register_sample_data() -> None:
    """Called once the application is up: SampleData is a module of its own and may load later than this one."""
    from VelvetMedCore.sample import register

    register()


class VelvetMedWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Holds the panels, polls the logic from a timer, and follows the scene. Everything else is in panels and logic."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: Any = None
        self.panels: Any = None
        self._timer: Any = None
        self._polling = False

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        if slicer_is_too_old():
            label = qt.QLabel(too_old_sentence())
            label.setWordWrap(True)
            self.layout.addWidget(label)
            return
        from VelvetMedCore.library import make_importable

        make_importable()
        from VelvetMedCore.logic import VelvetMedLogic as Logic
        from VelvetMedPanels.board import Board

        self.logic = Logic()
        self.panels = Board(self.resourcePath("UI/VelvetMed.ui"), self.logic, self.watch)
        self.layout.addWidget(self.panels.root)
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_INTERVAL_MS)
        self._timer.connect("timeout()", self.poll)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.on_scene_start_close)
        self.addObserver(scene, scene.EndCloseEvent, self.on_scene_changed)
        self.addObserver(scene, scene.EndImportEvent, self.on_scene_changed)
        self.panels.refresh_from_scene()

    def enter(self) -> None:
        if self.panels is not None:
            self.panels.refresh_from_scene()
            self.panels.listen(True)

    def exit(self) -> None:
        if self.panels is not None:
            self.panels.listen(False)

    def cleanup(self) -> None:
        self.removeObservers()
        if self._timer is not None:
            self._timer.stop()
        if self.panels is not None:
            self.panels.detach()
        if self.logic is not None:
            self.logic.stop()

    def watch(self) -> None:
        """A run has begun: look for news until it ends."""
        self._timer.start()

    def poll(self) -> None:
        """Timer slot. A wait cursor lets events through, so this must not be entered twice."""
        if self._polling:
            return
        self._polling = True
        try:
            for update in self.logic.poll():
                self.panels.take(update)
        finally:
            self._polling = False
        if not self.logic.busy:
            self._timer.stop()

    def on_scene_start_close(self, caller: Any = None, event: Any = None) -> None:
        self._timer.stop()
        self.logic.stop()
        self.panels.clear()

    def on_scene_changed(self, caller: Any = None, event: Any = None) -> None:
        self.panels.refresh_from_scene()


class VelvetMedTest(ScriptedLoadableModuleTest):
    """Runs in Slicer itself (slicer_add_python_unittest): no worker, no download, no window needed."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear(0)
        self.logic = VelvetMedLogic()

    def tearDown(self) -> None:
        self.logic.stop()
        slicer.mrmlScene.Clear(0)

    def runTest(self) -> None:
        for name in (
            "test_a_volume_is_read_with_its_place",
            "test_a_label_map_is_refused_in_words",
            "test_parameters_survive_in_the_scene",
        ):
            self.setUp()
            getattr(self, name)()
            self.tearDown()

    def test_a_volume_is_read_with_its_place(self) -> None:
        import numpy as np

        from VelvetMedCore.volumes import read_volume_node

        ijk_to_ras = np.array([[-0.8, 0, 0, 11], [0, 0.9, 0, -22], [0, 0, 2.5, 33], [0, 0, 0, 1.0]])
        array = np.arange(60).reshape(3, 4, 5).astype(np.int16)
        node = slicer.util.addVolumeFromArray(array, ijk_to_ras)
        voxels_kji, matrix = read_volume_node(node)
        self.assertTrue(np.array_equal(voxels_kji, array))
        self.assertTrue(np.allclose(matrix, ijk_to_ras))

    def test_a_label_map_is_refused_in_words(self) -> None:
        import numpy as np

        from VelvetMedCore.volumes import read_volume_node
        from VelvetMedLib.errors import ScanError

        labels = slicer.util.addVolumeFromArray(np.zeros((3, 4, 5), np.uint8), nodeClassName="vtkMRMLLabelMapVolumeNode")
        with self.assertRaises(ScanError) as caught:
            read_volume_node(labels)
        self.assertEqual(caught.exception.found, "a label map")

    def test_parameters_survive_in_the_scene(self) -> None:
        from VelvetMedCore.parameters import Parameters, parameter_node, read_parameters, write_parameters

        written = Parameters(model="demo", findings_filter="all")
        write_parameters(parameter_node(), written)
        self.assertEqual(read_parameters(parameter_node()), written)
