"""Form of the draft: who words it, style, length, sections, and whether what is wrong is replaced or only flagged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ctk
import qt
from slicer.i18n import tr as _

from VelvetMedCore.drafting import FLAGGED, HELD, LANGUAGE, LENGTHS, PHRASES, WRITERS, DraftForm, section_names
from VelvetMedCore.settings import Settings
from VelvetMedLib.reports import STYLES

COLUMNS = 2


class DraftFormGroup:
    """The folded group of the Analyze panel, on its widgets. changed is called after a person's choice."""

    def __init__(self, ui: Any, settings: Settings, changed: Callable[[], None]) -> None:
        self.ui, self._settings, self._changed = ui, settings, changed
        self._choices = {
            "writer": (ui.writerSelector, WRITERS),
            "style": (ui.styleSelector, STYLES),
            "length": (ui.lengthSelector, LENGTHS),
        }
        for selector, names in self._choices.values():
            for name in names:
                selector.addItem(form_word(name))
        self._sections: dict[str, Any] = {}
        grid = qt.QGridLayout(ui.sectionsGrid)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setVerticalSpacing(2)
        for number, name in enumerate(section_names()):
            box = self._sections[name] = qt.QCheckBox(form_word(name))
            box.checked = True
            grid.addWidget(box, number // COLUMNS, number % COLUMNS)
        ui.phrasesPath.filters = ctk.ctkPathLineEdit.Files
        ui.languagePath.filters = ctk.ctkPathLineEdit.Dirs
        ui.phrasesPath.currentPath = settings.phrases_file
        ui.languagePath.currentPath = settings.language_folder
        ui.formBox.collapsed = True
        for selector, _names in self._choices.values():
            selector.connect("currentIndexChanged(int)", self.on_choice)
        for box in (*self._sections.values(), ui.flagOnlyBox):
            box.connect("toggled(bool)", self.on_choice)
        for path in (ui.phrasesPath, ui.languagePath):
            path.connect("currentPathChanged(QString)", self.on_path)
        self._show_path()

    @property
    def form(self) -> DraftForm:
        chosen = {setting: names[selector.currentIndex] for setting, (selector, names) in self._choices.items()}
        sections = [name for name, box in self._sections.items() if box.checked]
        every = len(sections) == len(self._sections)
        return DraftForm(**chosen, sections="" if every else " ".join(sections), against=FLAGGED if self.ui.flagOnlyBox.checked else HELD)

    def set_form(self, form: DraftForm) -> None:
        """Shows a form; what this version does not know becomes the default."""
        sections = set(form.sections.split()) & set(self._sections) or set(self._sections)
        boxes = [(box, name in sections) for name, box in self._sections.items()]
        for box, checked in (*boxes, (self.ui.flagOnlyBox, form.against == FLAGGED)):
            box.blockSignals(True)
            box.checked = checked
            box.blockSignals(False)
        for setting, (selector, names) in self._choices.items():
            value = getattr(form, setting)
            selector.blockSignals(True)
            selector.setCurrentIndex(names.index(value) if value in names else 0)
            selector.blockSignals(False)
        self._show_path()

    @property
    def lacking(self) -> str:
        """What must still be chosen before a draft can be made; empty where nothing."""
        if not any(box.checked for box in self._sections.values()):
            return _("Choose at least one section of the draft.")
        if self.form.writer == PHRASES and not self._settings.phrases_file:
            return _("Choose the file of your phrases under Form of the draft.")
        if self.form.writer == LANGUAGE and not self._settings.language_folder:
            return _("Choose the folder of the language model under Form of the draft.")
        return ""

    def on_choice(self) -> None:
        self._show_path()
        self._changed()

    def on_path(self) -> None:
        self._settings.phrases_file = self.ui.phrasesPath.currentPath.strip()
        self._settings.language_folder = self.ui.languagePath.currentPath.strip()
        self._changed()

    def _show_path(self) -> None:
        ui, writer = self.ui, self.form.writer
        ui.phrasesLabel.visible = ui.phrasesPath.visible = writer == PHRASES
        ui.languageLabel.visible = ui.languagePath.visible = writer == LANGUAGE


def form_word(name: str) -> str:
    """A choice of the form in the user's language; one of a later version as it is."""
    words = {
        "model": _("The model's own"),
        "composer": _("Built-in phrases"),
        "phrases": _("Phrases of my reports"),
        "language": _("A trained language model"),
        "structured": _("Structured report"),
        "narrative": _("Narrative prose"),
        "terse": _("Telegram style"),
        "itemised": _("Itemised list"),
        "full": _("A sentence for every finding"),
        "brief": _("All that is absent in one sentence"),
        "lungs": _("Lungs"),
        "pleura": _("Pleura"),
        "heart": _("Heart"),
        "vessels": _("Vessels"),
        "mediastinum": _("Mediastinum"),
        "liver": _("Liver"),
        "kidneys": _("Kidneys"),
        "spleen": _("Spleen"),
        "bones": _("Bones"),
        "not_assessed": _("Not assessed"),
        "impression": _("Impression"),
    }
    return words.get(name, name.replace("_", " "))
