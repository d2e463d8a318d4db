"""Setup: the research-use statement, the models on this computer, and the Python, device and packages that run them."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from VelvetMedCore.errands import Errand, Outcome, velvetmed_command
from VelvetMedCore.library import MODULE_FOLDER
from VelvetMedCore.models import ModelEntry
from VelvetMedCore.packages import WorkerPackages, download_mb
from VelvetMedCore.settings import Settings
from VelvetMedLib import __version__
from VelvetMedLib.errors import VelvetMedError
from VelvetMedPanels.common import error_details, error_text, load_into

SLICER_PYTHON, OWN_PYTHON = 0, 1
CPU, CUDA = 0, 1
NAME, SIZE, ORIGIN = range(3)
POLL_INTERVAL_MS = 100
OK, LACKING, OPTIONAL = "#5b8c5a", "#d1495b", "#8a8a8a"


class SetupPanel:
    """changed is called when something was chosen that the rest of the module must know of, choose(id) when a model was."""

    def __init__(self, section: Any, settings: Settings, changed: Callable[[], None], choose: Callable[[str], None]) -> None:
        self.ui = load_into(section, "Setup")
        self._settings, self._changed, self._choose = settings, changed, choose
        self._models: list[ModelEntry] = []
        self._items: list[Any] = []
        self._errand: tuple[Errand, Callable[[dict[str, Any]], None]] | None = None
        self.packages = WorkerPackages(MODULE_FOLDER / "Resources" / "requirements.txt")
        ui = self.ui
        ui.pythonSelector.setCurrentIndex(OWN_PYTHON if settings.own_python else SLICER_PYTHON)
        ui.pythonPath.currentPath = settings.own_python
        ui.deviceSelector.setCurrentIndex(CUDA if settings.device == "cuda" else CPU)
        header = ui.modelsTable.horizontalHeader()
        header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(NAME, qt.QHeaderView.Stretch)
        ui.modelsTable.verticalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        ui.cardView.visible = False
        ui.acknowledgeButton.connect("clicked(bool)", self.acknowledge)
        ui.pythonSelector.connect("currentIndexChanged(int)", self.on_python)
        ui.pythonPath.connect("currentPathChanged(QString)", self.on_python)
        ui.deviceSelector.connect("currentIndexChanged(int)", self.on_device)
        ui.installButton.connect("clicked(bool)", self.install)
        ui.checkButton.connect("clicked(bool)", self.check)
        ui.modelsTable.connect("currentCellChanged(int,int,int,int)", self.on_model)
        ui.addFolderButton.connect("clicked(bool)", self.add_folder)
        ui.addZipButton.connect("clicked(bool)", self.add_zip)
        ui.removeButton.connect("clicked(bool)", self.remove)
        ui.wholeCardButton.connect("toggled(bool)", self.on_whole_card)
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_INTERVAL_MS)
        self._timer.connect("timeout()", self.poll)
        self.say("")
        self._show_check("")
        self.refresh()

    # the statement

    @property
    def acknowledged(self) -> bool:
        """Whether the statement of this version has been acknowledged on this computer."""
        return self._settings.acknowledged_version == __version__

    def acknowledge(self) -> None:
        self._settings.acknowledged_version = __version__
        self.refresh()
        self._changed()

    # the models

    def set_models(self, models: list[ModelEntry], chosen: str) -> None:
        """Fills the table and shows the card of the chosen one."""
        if models != self._models:
            self._fill(models)
        ids = [entry.id for entry in models]
        table = self.ui.modelsTable
        table.blockSignals(True)
        table.setCurrentCell(ids.index(chosen) if chosen in ids else -1, NAME)
        table.blockSignals(False)
        self.show_model(self.model)

    def _fill(self, models: list[ModelEntry]) -> None:
        self._models = models
        self._items = []  # Python keeps the items alive: the table of PythonQt does not own what it is given
        table = self.ui.modelsTable
        table.blockSignals(True)
        table.setRowCount(len(models))
        origins = {"shipped": _("VelvetMed"), "added": _("you")}
        for row, entry in enumerate(models):
            for column, text in enumerate((entry.title, _("{mb:.0f} MB").format(mb=entry.size_mb), origins[entry.origin])):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(entry.problem or entry.intended_use)
                self._items.append(item)
                table.setItem(row, column, item)
        table.blockSignals(False)

    @property
    def model(self) -> ModelEntry | None:
        row = self.ui.modelsTable.currentRow()
        return self._models[row] if 0 <= row < len(self._models) else None

    def on_model(self) -> None:
        entry = self.model
        self.show_model(entry)
        if entry is not None and not entry.problem:
            self._choose(entry.id)

    def show_model(self, entry: ModelEntry | None) -> None:
        """What a model learnt from, how it was measured, and under which licence it comes."""
        ui = self.ui
        ui.removeButton.enabled = entry is not None and entry.origin == "added" and self._errand is None
        ui.wholeCardButton.enabled = entry is not None and not entry.problem
        if entry is None:
            ui.modelCard.text = _("No model is installed.") if not self._models else _("Choose a model to read about it.")
        elif entry.problem:
            ui.modelCard.text = escape(_("{name} cannot be used. {problem}").format(name=entry.title, problem=entry.problem))
        else:
            lines = (
                (_("Trained on"), entry.training_data),
                (_("Measured"), entry.measured),
                (_("Meant for"), entry.intended_use),
                (_("Licence"), entry.licence),
            )
            ui.modelCard.text = "".join(f"<p><b>{escape(title)}:</b> {escape(text)}</p>" for title, text in lines if text)
        if ui.wholeCardButton.checked:
            self.on_whole_card(True)

    def on_whole_card(self, shown: bool) -> None:
        entry = self.model
        view = self.ui.cardView
        view.visible = shown and entry is not None
        if shown and entry is not None:
            view.setMarkdown(entry.card() or _("This model comes without a card."))

    def add_folder(self) -> None:
        self._add(qt.QFileDialog.getExistingDirectory(self.ui.root, _("The folder of a model")))

    def add_zip(self) -> None:
        self._add(qt.QFileDialog.getOpenFileName(self.ui.root, _("The zip file of a model"), "", _("Zip files (*.zip)")))

    def _add(self, source: str) -> None:
        if source:
            self._start(("models", "add", source), _("Copying and checking the model..."), self._added)

    def _added(self, data: dict[str, Any]) -> None:
        self._changed()
        self.say(_("{name} was added. Licence: {licence}").format(name=data.get("name", ""), licence=data.get("licence", "")))

    def remove(self) -> None:
        """Frees the disk of an added model, after asking."""
        entry = self.model
        if entry is None or entry.origin != "added":
            return
        question = _("Delete the model {name} from this computer? {mb:.0f} MB become free.").format(name=entry.title, mb=entry.size_mb)
        if slicer.util.confirmOkCancelDisplay(question):
            self._start(("models", "remove", entry.folder.name), _("Removing the model..."), self._removed)

    def _removed(self, data: dict[str, Any]) -> None:
        self._changed()
        self.say(_("{mb:.0f} MB are free again.").format(mb=float(data.get("bytes", 0)) / 1e6))

    # where they run

    def on_python(self) -> None:
        own = self.ui.pythonSelector.currentIndex == OWN_PYTHON
        self._settings.own_python = self.ui.pythonPath.currentPath if own else ""
        self._show_check("")
        self.refresh()
        self._changed()

    def on_device(self) -> None:
        self._settings.device = "cuda" if self.ui.deviceSelector.currentIndex == CUDA else "cpu"
        self._changed()

    def check(self) -> None:
        """Starts the chosen Python once: nothing is changed there."""
        self._show_check("")
        self._start(("doctor",), _("Asking the chosen Python..."), self._checked)

    def _checked(self, data: dict[str, Any]) -> None:
        lines = []
        for entry in data.get("checks", []):
            if entry.get("ok") is None:
                continue  # what is optional and absent concerns nobody in here
            color, sign = (OK, "●") if entry.get("ok") else (LACKING, "○")
            todo = f" - {entry.get('todo')}" if entry.get("todo") else ""
            text = escape(f"{entry.get('name')}: {entry.get('found')}{todo}")
            lines.append(f'<span style="color:{color}">{sign}</span> {text}')
        devices = data.get("devices", [])
        if self._settings.device not in devices and devices:
            lines.append(f'<span style="color:{LACKING}">○</span> ' + escape(_("The chosen device is not there: choose the CPU.")))
        self._show_check("<br/>".join(lines))
        self.say(_("Everything needed is there.") if data.get("ready") else _("Something is missing, see above."))

    def _show_check(self, html: str) -> None:
        self.ui.checkView.text = html
        self.ui.checkView.visible = bool(html)

    def install(self) -> None:
        """On this press only. The PyTorch extension asks, says how large it is, and shows its own progress."""
        try:
            complete = self.packages.install()
        except ImportError:
            slicer.util.errorDisplay(_("The PyTorch extension is missing. Install it with the Extensions Manager, then press again."))
            return
        if complete:
            slicer.util.infoDisplay(_("The worker's packages are installed. Please restart Slicer before the first analysis."))
        self.refresh()

    def refresh(self) -> None:
        """Shows what applies now."""
        ui = self.ui
        ui.acknowledgementFrame.visible = not self.acknowledged
        own = ui.pythonSelector.currentIndex == OWN_PYTHON
        for widget in (ui.pythonPath, ui.pythonPathLabel):
            widget.visible = own
        missing = [] if own else self.packages.missing()
        ui.installButton.visible = bool(missing)
        if own:
            ui.packagesLabel.text = _("Yours to keep: nothing is installed there. Check says what it lacks.")
        elif missing:
            least, most = download_mb(missing)
            text = _("Missing: {names}. About {least} to {most} MB from the package indexes of PyTorch and Python.")
            ui.packagesLabel.text = text.format(names=", ".join(missing), least=least, most=most)
        else:
            ui.packagesLabel.text = _("All there.")

    # errands

    def _start(self, words: tuple[str, ...], status: str, then: Callable[[dict[str, Any]], None]) -> None:
        if self._errand is not None:
            return
        try:
            errand = Errand(velvetmed_command(self._settings.own_python, words))
        except VelvetMedError as error:
            self.failed(error)
            return
        self._errand = (errand, then)
        self._set_busy(True)
        self.say(status)
        self._timer.start()

    def poll(self) -> None:
        """Timer slot: whether the errand has ended."""
        if self._errand is None:
            self._timer.stop()
            return
        errand, then = self._errand
        outcome: Outcome | None = errand.poll()
        if outcome is None:
            return
        self._timer.stop()
        self._errand = None
        self._set_busy(False)
        if outcome.error is not None:
            self.failed(outcome.error)
        else:
            then(outcome.data)

    def stop(self) -> None:
        """Ends what runs, at once."""
        self._timer.stop()
        if self._errand is not None:
            self._errand[0].stop()
            self._errand = None
            self._set_busy(False)

    def _set_busy(self, busy: bool) -> None:
        ui = self.ui
        for widget in (ui.addFolderButton, ui.addZipButton, ui.checkButton, ui.pythonSelector, ui.pythonPath):
            widget.enabled = not busy
        self.show_model(self.model)

    def failed(self, error: VelvetMedError) -> None:
        self.say("")
        label = self.ui.setupMessage
        label.text = error_text(error)
        label.toolTip = error_details(error)
        label.visible = True

    def say(self, text: str) -> None:
        ui = self.ui
        ui.setupMessage.visible = False
        ui.setupStatus.text = text
        ui.setupStatus.visible = bool(text)
