"""Save: report, segments and the Case folder, into a folder that the user names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctk
import slicer
from slicer.i18n import tr as _

from VelvetMedCore.saving import CASE, REPORT, SEGMENTS
from VelvetMedLib.errors import VelvetMedError
from VelvetMedPanels.common import error_text, load_into


class SavePanel:
    """Calls save(what, folder), what being report, segments or case; it returns the path written or raises VelvetMedError."""

    def __init__(self, section: Any, save: Callable[[str, Path], Path]) -> None:
        self.ui = load_into(section, "Save")
        self._save = save
        self._has_case = self._has_segments = False
        ui = self.ui
        ui.folderPath.filters = ctk.ctkPathLineEdit.Dirs  # else its button would ask for a file
        ui.folderPath.connect("currentPathChanged(QString)", self.refresh)
        ui.reportButton.connect("clicked(bool)", lambda *_: self.on_save("report"))
        ui.segmentsButton.connect("clicked(bool)", lambda *_: self.on_save("segments"))
        ui.caseButton.connect("clicked(bool)", lambda *_: self.on_save("case"))
        self.show_case(None, None)

    def show_case(self, case: Any, segmentation_node: Any) -> None:
        self._has_case, self._has_segments = case is not None, segmentation_node is not None
        if case is None:
            self.say("")
        self.refresh()

    def refresh(self) -> None:
        ui = self.ui
        named = bool(str(ui.folderPath.currentPath).strip())
        ui.reportButton.enabled = ui.caseButton.enabled = named and self._has_case
        ui.segmentsButton.enabled = named and self._has_case and self._has_segments

    def on_save(self, what: str) -> None:
        folder = Path(str(self.ui.folderPath.currentPath).strip())
        name = {"report": REPORT, "segments": SEGMENTS, "case": CASE}[what]
        question = _("There is a {name} in this folder already. Replace it?").format(name=name)
        if (folder / name).exists() and not slicer.util.confirmOkCancelDisplay(question):
            return
        try:
            with slicer.util.WaitCursor():
                written = self._save(what, folder)
        except VelvetMedError as error:
            self.say(error_text(error))
            return
        self.say(_("{name} was written.").format(name=written.name))

    def say(self, text: str) -> None:
        self.ui.saveMessage.text = text
        self.ui.saveMessage.visible = bool(text)
