"""Setup: the research-use statement, the worker's Python and packages, and what the chosen model is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
from slicer.i18n import tr as _

from VelvetMedCore.library import MODULE_FOLDER
from VelvetMedCore.models import ModelEntry
from VelvetMedCore.packages import WorkerPackages
from VelvetMedCore.settings import Settings
from VelvetMedLib import __version__
from VelvetMedPanels.common import load_into

SLICER_PYTHON, OWN_PYTHON = 0, 1


class SetupPanel:
    """changed is called when something was chosen that the rest of the module must know of."""

    def __init__(self, section: Any, settings: Settings, changed: Callable[[], None]) -> None:
        self.ui = load_into(section, "Setup")
        self._settings = settings
        self._changed = changed
        self.packages = WorkerPackages(MODULE_FOLDER / "Resources" / "requirements.txt")
        self.ui.pythonSelector.setCurrentIndex(OWN_PYTHON if settings.own_python else SLICER_PYTHON)
        self.ui.pythonPath.currentPath = settings.own_python
        self.ui.acknowledgeButton.connect("clicked(bool)", self.acknowledge)
        self.ui.pythonSelector.connect("currentIndexChanged(int)", self.on_python)
        self.ui.pythonPath.connect("currentPathChanged(QString)", self.on_python)
        self.ui.installButton.connect("clicked(bool)", self.install)
        self.refresh()

    @property
    def acknowledged(self) -> bool:
        """Whether the statement of this version has been acknowledged on this computer."""
        return self._settings.acknowledged_version == __version__

    def acknowledge(self) -> None:
        self._settings.acknowledged_version = __version__
        self.refresh()
        self._changed()

    def on_python(self) -> None:
        own = self.ui.pythonSelector.currentIndex == OWN_PYTHON
        self._settings.own_python = self.ui.pythonPath.currentPath if own else ""
        self.refresh()
        self._changed()

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
        ready = own or self.packages.ready()
        ui.installButton.visible = not ready
        if own:
            ui.packagesLabel.text = _("Yours to keep: nothing is installed there.")
        else:
            ui.packagesLabel.text = _("All there.") if ready else _("Missing: torch (about 200 MB to 3 GB) and small ones.")

    def show_model(self, entry: ModelEntry | None) -> None:
        """The card of the model chosen under Analyze."""
        if entry is None:
            self.ui.modelCard.text = _("No model is installed.")
            return
        lines = [
            _("Model {name}").format(name=entry.title),
            _("Trained on: {text}").format(text=entry.training_data) if entry.training_data else "",
            _("Meant for: {text}").format(text=entry.intended_use) if entry.intended_use else "",
            _("Licence: {text}").format(text=entry.licence) if entry.licence else "",
        ]
        self.ui.modelCard.text = "\n".join(line for line in lines if line)
