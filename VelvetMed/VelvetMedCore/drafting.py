"""The form of the draft report: as a person chooses it, as the worker is asked for it, and as a Case's record tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slicer.i18n import tr as _

from VelvetMedCore.settings import Settings
from VelvetMedLib.case import Case
from VelvetMedLib.errors import CaseError
from VelvetMedLib.reports import STYLES, ontology

LENGTHS = ("full", "brief")
MODEL, BUILT_IN, PHRASES, LANGUAGE = "model", "composer", "phrases", "language"
WRITERS = (MODEL, BUILT_IN, PHRASES, LANGUAGE)
"""Who words the draft: the bundle, its decoder if it has one; the built-in phrases; a file of one's own; a language model's folder."""
HELD, FLAGGED = "held", "flagged"


def section_names() -> tuple[str, ...]:
    """Sections that a draft can have, in its order."""
    return (*ontology().sections, "not_assessed", "impression")


@dataclass(frozen=True, kw_only=True)
class DraftForm:
    """What was chosen, as strings that a scene keeps. sections: names with spaces between, empty = all. against: what becomes of
    words against the findings, `HELD` to them or only `FLAGGED`."""

    style: str = STYLES[0]
    length: str = LENGTHS[0]
    sections: str = ""
    writer: str = MODEL
    against: str = HELD

    def request(self, settings: Settings) -> dict[str, Any]:
        """The same for the worker's `analyze`; the paths of the user's own writers come from the settings."""
        paths = {MODEL: None, PHRASES: settings.phrases_file, LANGUAGE: settings.language_folder}
        return {
            "style": self.style,
            "length": self.length,
            "sections": self.sections.split(),
            "writer": paths.get(self.writer, self.writer),
            "hold_from": None if self.against == FLAGGED else 0.0,
        }


def form_of(case: Case, used_writer: str, settings: Settings) -> dict[str, Any]:
    """Form and writer of a Case's draft, for the worker's `report`. An older record tells no form: its drafts were in the default one.

    used_writer: the path that the draft's writer was opened from, where it is still known; a Case holds no paths. Raises CaseError
    where the writer was a file or folder of the user's and is known no more.
    """
    told, writer = case.run.get("draft", {}), case.run.get("writer", {})
    named: str | None = {"decoder": "decoder", "composer": BUILT_IN}.get(writer.get("kind"))
    if writer.get("own_phrases"):
        named = used_writer or settings.phrases_file
    elif writer.get("kind") == "language model":
        named = used_writer or settings.language_folder
    if named == "":
        raise CaseError(
            _("The draft was worded by a writer of your own that is not known here."),
            found=_("no file of phrases and no language model of that kind"),
            expected=_("the one that the draft was made with"),
            next_step=_("Choose it under Analyze, Form of the draft, or press Apply for a new analysis."),
        )
    return {
        "style": case.report.style if case.report is not None else STYLES[0],
        "length": told.get("length", LENGTHS[0]),
        "sections": told.get("sections", []),
        "writer": named,
        "hold_from": told.get("hold_from", 0.0),
    }
