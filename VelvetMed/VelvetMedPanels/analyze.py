"""Analyze: choose a volume, a model and what to make of it, press Apply, see how far it is, press Cancel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from slicer.i18n import tr as _

from VelvetMedCore.drafting import DraftForm
from VelvetMedCore.logic import PARTS
from VelvetMedCore.models import ModelEntry
from VelvetMedCore.settings import Settings
from VelvetMedLib.errors import VelvetMedError
from VelvetMedPanels.common import error_details, error_text, load_into, time_left
from VelvetMedPanels.drafting import DraftFormGroup


class AnalyzePanel:
    """Calls start(volume node, model, parts, form of the draft) and cancel(); what is shown follows from what it is told."""

    def __init__(
        self,
        section: Any,
        settings: Settings,
        start: Callable[[Any, ModelEntry, tuple[str, ...], DraftForm], None],
        cancel: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        self.ui = load_into(section, "Analyze")
        self._start, self._cancel, self._changed = start, cancel, changed
        self._models: list[ModelEntry] = []
        self._parts = {"segments": self.ui.segmentsPart, "findings": self.ui.findingsPart, "report": self.ui.reportPart}
        self._draft = DraftFormGroup(self.ui, settings, self.on_choice)
        self._allowed = False
        self._running = False
        self._hint = False
        ui = self.ui
        ui.applyButton.connect("clicked(bool)", self.apply)
        ui.cancelButton.connect("clicked(bool)", self.on_cancel)
        ui.volumeSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.on_choice)
        ui.modelSelector.connect("currentIndexChanged(int)", self.on_choice)
        for box, slot in (
            (ui.segmentsPart, self.on_choice),
            (ui.findingsPart, self.on_findings_part),
            (ui.reportPart, self.on_report_part),
        ):
            box.connect("toggled(bool)", slot)
        self.idle("")

    def set_scene(self, scene: Any) -> None:
        self.ui.volumeSelector.setMRMLScene(scene)

    def set_models(self, models: list[ModelEntry], chosen: str) -> None:
        """Fills the list; keeps the model of that id if it is still there."""
        selector = self.ui.modelSelector
        selector.blockSignals(True)
        selector.clear()
        self._models = models
        for entry in models:
            selector.addItem(entry.title)
        ids = [entry.id for entry in models]
        selector.setCurrentIndex(ids.index(chosen) if chosen in ids else 0 if ids else -1)
        selector.blockSignals(False)
        self.refresh()

    @property
    def volume(self) -> Any:
        return self.ui.volumeSelector.currentNode()

    @property
    def model(self) -> ModelEntry | None:
        index = self.ui.modelSelector.currentIndex
        return self._models[index] if 0 <= index < len(self._models) else None

    @property
    def parts(self) -> tuple[str, ...]:
        """What is to be made: segments, findings, report."""
        return tuple(name for name in PARTS if self._parts[name].checked)

    def set_parts(self, parts: Sequence[str]) -> None:
        for name, box in self._parts.items():
            box.blockSignals(True)
            box.checked = name in parts
            box.blockSignals(False)
        self.refresh()

    @property
    def form(self) -> DraftForm:
        """How the draft is to be written."""
        return self._draft.form

    def set_form(self, form: DraftForm) -> None:
        self._draft.set_form(form)
        self.refresh()

    def choose_model(self, identifier: str) -> None:
        """Chooses a model by its id, where it is in the list."""
        ids = [entry.id for entry in self._models]
        if identifier in ids:
            self.ui.modelSelector.setCurrentIndex(ids.index(identifier))

    @property
    def is_running(self) -> bool:
        return self._running

    def allow(self, allowed: bool) -> None:
        """Apply stays off until the research-use statement is acknowledged."""
        self._allowed = allowed
        self.refresh()

    def refresh(self) -> None:
        ui = self.ui
        drafts = "report" in self.parts
        lacking = self._draft.lacking if drafts else ""
        ready = self._allowed and self.volume is not None and self.model is not None and bool(self.parts) and not lacking
        ui.applyButton.enabled = ready and not self._running
        ui.formBox.enabled = drafts and not self._running
        for widget in (ui.volumeSelector, ui.modelSelector, *self._parts.values()):
            widget.enabled = not self._running
        if self._running:
            return
        if not self._allowed:
            self._say(_('First read the statement under Setup and press "I understand".'))
        elif self.model is None:
            self._say(_("No model is installed: add one under Setup."))
        elif self.volume is None:
            self._say(_("Load a CT and choose it."))
        elif not self.parts:
            self._say(_("Choose at least one thing to make."))
        elif lacking:
            self._say(lacking)
        elif self._hint:
            self._say("")

    def on_choice(self) -> None:
        self.refresh()
        self._changed()

    def on_findings_part(self, wanted: bool) -> None:
        """A draft is written from the findings: without these there is none."""
        if not wanted:
            self.ui.reportPart.checked = False
        self.on_choice()

    def on_report_part(self, wanted: bool) -> None:
        if wanted:
            self.ui.findingsPart.checked = True
        self.on_choice()

    def apply(self) -> None:
        model = self.model
        if model is not None and not self._running:
            self._start(self.volume, model, self.parts, self.form)

    def on_cancel(self) -> None:
        self.ui.cancelButton.enabled = False
        self._say(_("Stopping..."), hint=False)
        self._cancel()

    def running(self) -> None:
        """A run has begun."""
        self._running = True
        ui = self.ui
        ui.messageLabel.visible = False
        ui.progressRow.visible = True
        ui.progressBar.setValue(0)
        ui.cancelButton.enabled = True
        self._say(_("Starting the worker..."), hint=False)
        self.refresh()

    def progress(self, fraction: float, stage: str, seconds_left: float | None) -> None:
        if not self.ui.cancelButton.enabled:
            return  # Cancel was pressed: "Stopping..." stays
        self.ui.progressBar.setValue(round(1000 * min(max(fraction, 0.0), 1.0)))
        self._say(" - ".join(part for part in (stage_word(stage), time_left(seconds_left)) if part), hint=False)

    def idle(self, status: str) -> None:
        """No run any more."""
        self._running = False
        self.ui.progressRow.visible = False
        self.ui.messageLabel.visible = False
        self._say(status, hint=False)
        self.refresh()

    def failed(self, error: VelvetMedError) -> None:
        """The run could not be started or ended in an error: all four parts are shown, the worker's last lines on hovering."""
        self.idle("")
        label = self.ui.messageLabel
        label.text = error_text(error)
        label.toolTip = error_details(error)
        label.visible = True

    def _say(self, text: str, *, hint: bool = True) -> None:
        self._hint = hint
        self.ui.statusLabel.text = text
        self.ui.statusLabel.visible = bool(text)


def stage_word(stage: str) -> str:
    """A stage of the worker in the user's language; one of a later version as it is."""
    words = {
        "loading the model": _("Loading the model"),
        "prepare": _("Preparing the scan"),
        "fine": _("Organs and lesions"),
        "tokens": _("Measuring what was found"),
        "crop": _("Looking at the whole chest"),
        "global": _("The scan as a whole"),
        "reader": _("Reading it together"),
        "findings": _("Findings"),
        "segmentation": _("Segments on the scan's own grid"),
        "report": _("Draft report"),
        "write": _("Saving the result"),
        "answer": _("Answering"),
        "done": _("Done"),
    }
    return words.get(stage, stage[:1].upper() + stage[1:])
