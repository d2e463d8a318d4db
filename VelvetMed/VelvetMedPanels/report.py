"""Report: the draft, sentence by sentence with state and support; a click on a sentence goes to its voxels."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

import slicer
from slicer.i18n import tr as _

from VelvetMedLib import DRAFT_DISCLAIMER
from VelvetMedPanels.common import load_into, mark, percent, state_word

if TYPE_CHECKING:
    from VelvetMedLib.case import Case, Sentence

SCHEME = "sentence:"


class ReportPanel:
    """Calls go_to(link) when a sentence with a place is clicked."""

    def __init__(self, section: Any, go_to: Callable[[Any], None]) -> None:
        self.ui = load_into(section, "Report")
        self._go_to = go_to
        self._case: Case | None = None
        self._links: list[Any] = []
        self.ui.reportView.connect("anchorClicked(QUrl)", self.on_anchor)
        self.ui.copyButton.connect("clicked(bool)", self.copy)
        self.show_case(None)

    def show_case(self, case: Case | None) -> None:
        """None clears the text."""
        self._case = case
        self._links = []
        self.ui.copyButton.enabled = case is not None and case.report is not None
        if case is None or case.report is None:
            self.ui.reportView.setHtml(f"<p>{escape(_('No draft yet.'))}</p>")
            return
        parts = [f"<p><b>{escape(DRAFT_DISCLAIMER)}</b></p>"]
        for section in case.report.sections:
            parts.append(f"<p><b>{escape(section.title)}</b><br/>")
            parts.append("<br/>".join(self._sentence(sentence) for sentence in section.sentences))
            parts.append("</p>")
        self.ui.reportView.setHtml("".join(parts))

    def _sentence(self, sentence: Sentence) -> str:
        text = escape(sentence.text)
        if sentence.link is not None:
            self._links.append(sentence.link)
            text = f'<a href="{SCHEME}{len(self._links) - 1}">{text}</a>'
        sign = mark(sentence.state) if sentence.state else ""
        support = "" if sentence.support is None else f' <span style="color:#8a8a8a"><small>{percent(sentence.support)}</small></span>'
        return f"{sign} {text}{support}".strip()

    def on_anchor(self, url: Any) -> None:
        number = url.toString().removeprefix(SCHEME)
        if number.isdigit() and int(number) < len(self._links):
            self._go_to(self._links[int(number)])

    def text(self) -> str:
        """Plain text, disclaimer first, states in words: what copying gives."""
        if self._case is None or self._case.report is None:
            return ""
        lines = [DRAFT_DISCLAIMER]
        for section in self._case.report.sections:
            lines += ["", section.title]
            for sentence in section.sentences:
                doubt = f" [{state_word(sentence.state)}]" if sentence.state == "uncertain" else ""
                lines.append(f"{sentence.text}{doubt}")
        return "\n".join(lines) + "\n"

    def copy(self) -> None:
        slicer.app.clipboard().setText(self.text())
