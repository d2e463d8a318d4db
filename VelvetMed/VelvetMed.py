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
            "test_a_result_lies_where_the_scan_lies",
            "test_a_finding_is_judged_by_ones_own_thresholds",
            "test_a_lesion_is_measured_and_shown_in_its_window",
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

    def made_up_case(self) -> Any:
        """A scan node on an oblique grid, and a finished Case of it with one lesion."""
        from pathlib import Path

        import numpy as np

        from VelvetMedLib.case import Case, CaseFinding, CaseInput, CaseModel, Link, Segment, write_case
        from VelvetMedLib.ct import Grid
        from VelvetMedLib.reports import ontology

        ijk_to_ras = np.array([[-0.7518, -0.3078, 0, 11], [-0.2736, 0.8457, 0, -22], [0, 0, 2.5, 33], [0, 0, 0, 1.0]])
        labels = np.zeros((6, 20, 22), np.uint8)
        labels[2:4, 5:15, 8:12] = ontology().lesion("lung_nodule").label
        node = slicer.util.addVolumeFromArray(np.full(labels.shape, -800, np.int16), ijk_to_ras, "self-test")
        center = tuple((ijk_to_ras @ np.array([10.0, 10.0, 3.0, 1.0]))[:3])
        lesion = ontology().lesion("lung_nodule")
        shared = {"label": lesion.label, "center_ras_mm": center}
        spacing_mm = tuple(np.linalg.norm(ijk_to_ras[:3, :3], axis=0))
        case = Case(
            id="selftest",
            created="2026-01-01T00:00:00+00:00",
            input=CaseInput(kind="array", shape_kji=labels.shape, ijk_to_ras=ijk_to_ras.tolist(), spacing_mm=spacing_mm, sha256="0" * 64),
            model=CaseModel(id="none", version="0", sha256="0" * 64, licence="none"),
            segments=(
                Segment(
                    name=lesion.name,
                    display=lesion.display,
                    code=lesion.code,
                    color=lesion.color,
                    kind="lesion",
                    volume_ml=0.1,
                    box_ras_mm=(center, center),
                    **shared,
                ),
            ),
            findings=(
                CaseFinding(
                    name="lung_nodule", display="lung nodule", state="uncertain", probability=0.4, link=Link(kind="lesion", **shared)
                ),
            ),
        )
        folder = Path(slicer.app.temporaryPath) / "velvetmed-self-test"
        write_case(folder, case, segmentation_kji=labels, grid=Grid(labels.shape, ijk_to_ras))
        return node, labels, folder

    def test_a_result_lies_where_the_scan_lies(self) -> None:
        import numpy as np

        from VelvetMedCore.results import insert_case
        from VelvetMedLib.case import read_case

        node, labels, folder = self.made_up_case()
        nodes = insert_case(read_case(folder), folder, node)
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "lung_nodule", node)
        self.assertTrue(np.array_equal(mask > 0, labels > 0))
        self.assertEqual(nodes.findings.GetNumberOfRows(), 1)

    def test_a_finding_is_judged_by_ones_own_thresholds(self) -> None:
        from VelvetMedLib.case import read_case
        from VelvetMedLib.case.overruling import reset_thresholds, set_thresholds

        _node, _labels, folder = self.made_up_case()
        case = read_case(folder)
        changed = set_thresholds(case, "lung_nodule", 0.1, 0.3)
        self.assertEqual([changed.findings[0].state, changed.findings[0].overruling.machine_state], ["present", "uncertain"])
        self.assertEqual(reset_thresholds(changed, "lung_nodule"), case)

    def test_a_lesion_is_measured_and_shown_in_its_window(self) -> None:
        from VelvetMedCore.overlays import lesion_callipers
        from VelvetMedCore.results import insert_case
        from VelvetMedCore.windows import fitting_window, set_window
        from VelvetMedLib.case import read_case

        node, _labels, folder = self.made_up_case()
        case = read_case(folder)
        nodes = insert_case(case, folder, node)
        axes = lesion_callipers(nodes.segmentation, "lung_nodule", case.findings[0].link.center_ras_mm)
        self.assertTrue(9.0 < axes.long_mm < 11.0 and 3.0 < axes.short_mm < axes.long_mm)  # 10 x 4 voxels of 0.9 x 0.8 mm
        set_window(node, fitting_window("lung_nodule"))
        self.assertEqual(node.GetDisplayNode().GetLevel(), -600)
