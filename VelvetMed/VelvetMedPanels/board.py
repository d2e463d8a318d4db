"""The board: all panels under the research-use sentence, and what each press and each piece of news does to them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import slicer
from slicer.i18n import tr as _

from VelvetMedCore.drafting import DraftForm
from VelvetMedCore.library import library_root
from VelvetMedCore.logic import Update, VelvetMedLogic
from VelvetMedCore.models import ModelEntry, list_models
from VelvetMedCore.navigation import crosshair_point, jump_to, segment_at, show_segment
from VelvetMedCore.parameters import parameter_node, read_parameters, write_parameters
from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.case import About, Case, CaseFinding, Segment
from VelvetMedLib.errors import CaseError, VelvetMedError
from VelvetMedPanels.analyze import AnalyzePanel
from VelvetMedPanels.ask import AskPanel
from VelvetMedPanels.findings import FindingsPanel
from VelvetMedPanels.report import ReportPanel
from VelvetMedPanels.reviewing import RUNS, Reviewing
from VelvetMedPanels.save import SavePanel
from VelvetMedPanels.segments import SegmentsPanel
from VelvetMedPanels.setup import SetupPanel
from VelvetMedPanels.similar import SimilarPanel
from VelvetMedPanels.viewing import HEATMAP_RUN, FindingViews

if TYPE_CHECKING:
    from VelvetMedLib.shapes import Triple

LOG = logging.getLogger("VelvetMed")


class Board:
    """watch is called when a run has begun, so that its owner polls the logic and hands each Update to `take`."""

    def __init__(self, ui_path: str, logic: VelvetMedLogic, watch: Callable[[], None]) -> None:
        self.logic = logic
        self._watch = watch
        self._case: Case | None = None
        self._filling = False
        self.root = slicer.util.loadUI(ui_path)
        self.ui = slicer.util.childWidgetVariables(self.root)
        self.ui.researchLabel.text = RESEARCH_USE_ONLY
        self._filling = True
        self.setup = SetupPanel(self.ui.setupSection, logic.settings, self.on_settings, self.on_model)
        self.analyze = AnalyzePanel(self.ui.analyzeSection, logic.settings, self.start, logic.cancel, self.on_choice)
        self.findings = FindingsPanel(
            self.ui.findingsSection, self.go_to_finding, self.on_choice, self.change, place=self.place, thresholds=self.thresholds
        )
        self.views = FindingViews(logic, watch, self.findings.say)
        self.reviewing = Reviewing(self, logic, watch)
        self.report = ReportPanel(self.ui.reportSection, self.go_to, self.change, self.reviewing.recompute)
        self.ask = AskPanel(self.ui.askSection, self.start_question, self.go_to, logic.cancel)
        self.similar = SimilarPanel(
            self.ui.similarSection,
            build=self.reviewing.build,
            search=self.reviewing.search,
            open_hit=self.reviewing.open_hit,
            cancel=logic.cancel,
            close=self.reviewing.close_beside,
            index_folder=logic.settings.index_folder,
        )
        self.segments = SegmentsPanel(self.ui.segmentsSection, self.go_to_segment, self.reviewing.recompute)
        self.save = SavePanel(self.ui.saveSection, self.reviewing.save)
        self._filling = False
        self.ui.setupSection.collapsed = self.setup.acknowledged
        self.root.setMRMLScene(slicer.mrmlScene)
        self.analyze.set_scene(slicer.mrmlScene)
        self.ask.set_scene(slicer.mrmlScene)

    # what the user does

    def on_settings(self) -> None:
        if self._filling:
            return
        if not self.logic.busy:
            self.logic.drop_worker()  # another Python may have been chosen: the next press starts its own worker
        self._fill_models(self._model_id())

    def on_choice(self) -> None:
        """Keeps what was chosen in the scene; not while nodes come and go by the dozen, when selectors change by themselves."""
        if self._filling or slicer.mrmlScene.IsBatchProcessing():
            return
        volume = self.analyze.volume
        node = parameter_node()
        write_parameters(
            node,
            replace(
                read_parameters(node),
                inputVolume=volume.GetID() if volume is not None else None,
                model=self._model_id(),
                findings_filter=self.findings.filter,
                parts=" ".join(self.analyze.parts),
                **vars(self.analyze.form),
            ),
        )
        self._fill_models(self._model_id())

    def on_model(self, identifier: str) -> None:
        """A model was chosen under Setup."""
        self.analyze.choose_model(identifier)

    def start(self, volume_node: Any, model: ModelEntry, parts: tuple[str, ...], form: DraftForm) -> None:
        try:
            with slicer.util.WaitCursor():
                self.logic.start_analysis(volume_node, model=str(model.folder), parts=parts, form=form)
        except VelvetMedError as error:
            self.analyze.failed(error)
            return
        self.analyze.running()
        self.busy(True)
        self._watch()

    def start_question(self, question: str, about: About | None) -> None:
        try:
            self.logic.start_question(question, about)
        except VelvetMedError as error:
            self.ask.failed(error)
            return
        self.busy(True)
        self._watch()

    def busy(self, busy: bool) -> None:
        """One run at a time: what would start another is off until this one ends."""
        self.ask.busy(busy)
        self.similar.busy(busy)

    def go_to(self, link: Any) -> None:
        """Slice views to the link's centre; the segment that is meant becomes visible."""
        jump_to(link.center_ras_mm)
        segment = self._case.segment(link.label) if link.label is not None and self._case is not None else None
        if segment is not None:
            show_segment(self.logic.nodes().segmentation, segment.name)

    def go_to_finding(self, finding: CaseFinding) -> None:
        if self._case is None:
            return
        panel = self.findings
        options = {"window": panel.window, "heatmap": panel.heatmap_wanted, "axes": panel.axes_wanted}
        self.views.show(self._case, finding, self.analyze.volume, **options)

    def place(self) -> tuple[Triple, str | None]:
        """The crosshair, and the segment there."""
        point = crosshair_point()
        return point, segment_at(self.logic.nodes().segmentation, point)

    def thresholds(self, finding: str) -> tuple[float, float] | None:
        """The thresholds of the model that made the analysis, where that model is on this computer."""
        made_by = self._case.model.id if self._case is not None else ""
        entries = list_models(library_root())
        return next((entry.thresholds.get(finding) for entry in entries if entry.id == made_by), None)

    def change(self, function: Callable[[Case], Case]) -> None:
        """What a person makes of the analysis: kept in the scene at once, shown in every panel."""
        case = self.logic.case()
        if case is None:
            return
        try:
            changed = function(case)
        except ValueError as problem:
            LOG.warning("A change was refused: %s", problem)
            return
        self.logic.change_case(changed)
        self.show(changed)

    def go_to_segment(self, segment: Segment) -> None:
        jump_to(segment.center_ras_mm)
        show_segment(self.logic.nodes().segmentation, segment.name)

    # what the worker says

    def take(self, update: Update) -> None:
        """One piece of news from the logic."""
        if update.name == HEATMAP_RUN:
            self.views.take(update)
            return
        if update.name in RUNS:
            self.reviewing.take(update)
            return
        if update.kind == "progress":
            if self.analyze.is_running:  # the progress of a question is the Ask panel's own
                self.analyze.progress(update.fraction, update.stage, update.seconds_left)
            return
        asked = self.ask.asking
        self.busy(False)
        if update.kind == "result":
            self._insert(update)
        elif update.kind == "answer":
            self.refresh_from_scene()
        elif update.kind == "cancelled" and asked:
            self.ask.say(_("Stopped."))
        elif update.kind == "cancelled":
            self.analyze.idle(_("Stopped. Nothing was changed."))
        elif update.error is not None:
            LOG.warning("A run failed: %s", update.error.what)
            (self.analyze if self.analyze.is_running else self.ask).failed(update.error)

    def _insert(self, update: Update) -> None:
        try:
            with slicer.util.WaitCursor():
                self.logic.insert_result(update)
        except VelvetMedError as error:
            self.analyze.failed(error)
            return
        self.refresh_from_scene()
        warnings = self._case.warnings if self._case is not None else ()
        self.analyze.idle("\n".join([_("Done."), *map(str, warnings)]))

    # what the scene holds

    def refresh_from_scene(self) -> None:
        """Shows what the parameter node points at: after start, after a result, after a scene was loaded or closed."""
        parameters = read_parameters(parameter_node())
        self._filling = True
        try:
            self._fill_models(parameters.model)
            if parameters.inputVolume is not None:
                self.analyze.ui.volumeSelector.setCurrentNodeID(parameters.inputVolume)
            self.findings.set_filter(parameters.findings_filter)
            self.analyze.set_parts(parameters.parts.split())
            self.analyze.set_form(parameters)
            self.show(self._case_of_scene())
        finally:
            self._filling = False

    def clear(self) -> None:
        """Nothing is shown any more; the scene is not touched."""
        self.analyze.idle("")
        self.busy(False)
        self.ask.say("")
        self.views.forget()
        self.reviewing.stop()
        self.similar.clear()
        self.show(None)

    def listen(self, on: bool) -> None:
        """Whether this module is in front: only then its keys work."""
        self.findings.listen(on)

    def detach(self) -> None:
        """Lets go of the scene."""
        self.listen(False)
        self.setup.stop()
        self.reviewing.stop()
        self.analyze.set_scene(None)
        self.ask.set_scene(None)
        self.root.setMRMLScene(None)

    def _case_of_scene(self) -> Case | None:
        try:
            return self.logic.case()
        except CaseError as error:
            self.analyze.failed(error)
            return None

    def show(self, case: Case | None) -> None:
        """One analysis in every panel; None clears them."""
        self._case = case
        segmentation = self.logic.nodes().segmentation if case is not None else None
        self.findings.show_case(case)
        self.report.show_case(case)
        self.ask.show_case(case)
        self.segments.show_case(case, segmentation)
        self.save.show_case(case, segmentation)
        self.similar.show_case(case)
        self.reviewing.show(case)
        self.refresh_similar()

    def refresh_similar(self) -> None:
        ready = self.setup.acknowledged and self.analyze.model is not None
        self.similar.set_state(ready=ready, has_scan=self.analyze.volume is not None, is_open=self.reviewing.is_beside)

    def model_folder(self) -> str:
        """The bundle that is chosen for the next request that is not about an analysis; empty: none."""
        model = self.analyze.model
        return str(model.folder) if model is not None else ""

    def _fill_models(self, chosen: str) -> None:
        models = list_models(library_root())
        self.analyze.set_models([entry for entry in models if not entry.problem], chosen)
        self.analyze.allow(self.setup.acknowledged)
        self.setup.set_models(models, self._model_id())
        self.refresh_similar()

    def _model_id(self) -> str:
        model = self.analyze.model
        return model.id if model is not None else ""
