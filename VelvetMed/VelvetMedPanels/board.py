"""The board: all panels under the research-use sentence, and what each press and each piece of news does to them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import slicer
from slicer.i18n import tr as _

from VelvetMedCore.library import library_root
from VelvetMedCore.logic import Update, VelvetMedLogic
from VelvetMedCore.models import ModelEntry, list_models
from VelvetMedCore.navigation import jump_to, show_segment
from VelvetMedCore.parameters import parameter_node, read_parameters, write_parameters
from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.case import Case, CaseFinding, Segment
from VelvetMedLib.errors import CaseError, VelvetMedError
from VelvetMedLib.reports import suggested_questions
from VelvetMedPanels.analyze import AnalyzePanel
from VelvetMedPanels.ask import AskPanel
from VelvetMedPanels.findings import FindingsPanel
from VelvetMedPanels.report import ReportPanel
from VelvetMedPanels.segments import SegmentsPanel
from VelvetMedPanels.setup import SetupPanel

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
        self.setup = SetupPanel(self.ui.setupSection, logic.settings, self.on_settings)
        self.analyze = AnalyzePanel(self.ui.analyzeSection, self.start, logic.cancel, self.on_choice)
        self.findings = FindingsPanel(self.ui.findingsSection, self.go_to, self.on_choice)
        self.report = ReportPanel(self.ui.reportSection, self.go_to)
        self.ask = AskPanel(self.ui.askSection, self.start_question, self.go_to)
        self.segments = SegmentsPanel(self.ui.segmentsSection, self.go_to_segment)
        self._filling = False
        self.ui.setupSection.collapsed = self.setup.acknowledged
        self.root.setMRMLScene(slicer.mrmlScene)
        self.analyze.set_scene(slicer.mrmlScene)

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
                only_relevant=self.findings.relevant_only,
            ),
        )
        self.setup.show_model(self.analyze.model)

    def start(self, volume_node: Any, model: ModelEntry) -> None:
        try:
            with slicer.util.WaitCursor():
                self.logic.start_analysis(volume_node, model=str(model.folder))
        except VelvetMedError as error:
            self.analyze.failed(error)
            return
        self.analyze.running()
        self.ask.busy(True)
        self._watch()

    def start_question(self, question: str) -> None:
        try:
            self.logic.start_question(question)
        except VelvetMedError as error:
            self.ask.failed(error)
            return
        self.ask.busy(True)
        self._watch()

    def go_to(self, link: Any) -> None:
        """Slice views to the link's centre; the segment that is meant becomes visible."""
        jump_to(link.center_ras_mm)
        segment = self._case.segment(link.label) if link.label is not None and self._case is not None else None
        if segment is not None:
            show_segment(self.logic.nodes().segmentation, segment.name)

    def go_to_segment(self, segment: Segment) -> None:
        jump_to(segment.center_ras_mm)
        show_segment(self.logic.nodes().segmentation, segment.name)

    # what the worker says

    def take(self, update: Update) -> None:
        """One piece of news from the logic."""
        if update.kind == "progress":
            if self.analyze.is_running:  # the progress of a question is the Ask panel's own
                self.analyze.progress(update.fraction, update.stage, update.seconds_left)
            return
        self.ask.busy(False)
        if update.kind == "result":
            self._insert(update)
        elif update.kind == "answer":
            self.refresh_from_scene()
        elif update.kind == "cancelled":
            self.analyze.idle(_("Stopped. Nothing was changed."))
            self.ask.say("")
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
            self.findings.ui.relevantOnly.checked = parameters.only_relevant
            self._show(self._case_of_scene())
        finally:
            self._filling = False

    def clear(self) -> None:
        """Nothing is shown any more; the scene is not touched."""
        self.analyze.idle("")
        self.ask.busy(False)
        self._show(None)

    def detach(self) -> None:
        """Lets go of the scene."""
        self.analyze.set_scene(None)
        self.root.setMRMLScene(None)

    def _case_of_scene(self) -> Case | None:
        try:
            return self.logic.case()
        except CaseError as error:
            self.analyze.failed(error)
            return None

    def _show(self, case: Case | None) -> None:
        self._case = case
        self.findings.show_case(case)
        self.report.show_case(case)
        self.ask.show_case(case, suggested_questions(map(CaseFinding.record, case.findings)) if case is not None else [])
        self.segments.show_case(case, self.logic.nodes().segmentation if case is not None else None)

    def _fill_models(self, chosen: str) -> None:
        models = list_models(library_root())
        self.analyze.set_models(models, chosen)
        self.analyze.allow(self.setup.acknowledged)
        self.setup.show_model(self.analyze.model)

    def _model_id(self) -> str:
        model = self.analyze.model
        return model.id if model is not None else ""
