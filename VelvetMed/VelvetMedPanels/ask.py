"""Ask: a question about the analysed scan; answers with confidence and place, kept with the scene."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

from slicer.i18n import tr as _

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.errors import VelvetMedError
from VelvetMedLib.reports import suggested_questions
from VelvetMedPanels.common import error_text, load_into, percent

if TYPE_CHECKING:
    from VelvetMedLib.case import Case

SCHEME = "answer:"


def questions_for(case: Case) -> list[str]:
    """What is worth asking of this case: its findings and doubts, then sizes of what was segmented."""
    records = [finding.record() for finding in case.findings]
    structures = [segment.name for segment in sorted(case.segments, key=lambda s: -s.volume_ml) if segment.kind == "organ"]
    return suggested_questions(records, structures=structures)


def _clock(moment: str) -> str:
    """An ISO time as date and minutes."""
    return moment[:16].replace("T", " ")


class AskPanel:
    """Calls ask(question), go_to(link), and stop() for a question that runs."""

    def __init__(
        self, section: Any, ask: Callable[[str], None], go_to: Callable[[Any], None], stop: Callable[[], None] = lambda: None
    ) -> None:
        self.ui = load_into(section, "Ask")
        self._ask, self._go_to, self._stop = ask, go_to, stop
        self._asking = False
        self._links: list[Any] = []
        self._has_case = False
        self._busy = False
        ui = self.ui
        ui.askButton.connect("clicked(bool)", self.on_ask)
        ui.questionEdit.connect("returnPressed()", self.on_ask)
        ui.questionEdit.connect("textChanged(QString)", self.refresh)
        ui.suggestions.connect("currentIndexChanged(int)", self.on_suggestion)
        ui.answersView.connect("anchorClicked(QUrl)", self.on_anchor)
        self.show_case(None, [])

    def show_case(self, case: Case | None, suggested: list[str]) -> None:
        """None clears the panel."""
        self._has_case = case is not None
        self._links = []
        ui = self.ui
        ui.suggestions.blockSignals(True)
        ui.suggestions.clear()
        ui.suggestions.addItem(_("Suggested questions"))
        for question in suggested:
            ui.suggestions.addItem(question)
        ui.suggestions.blockSignals(False)
        if case is None:
            ui.questionEdit.text = ""
        if not self._asking:
            self.say("")
        blocks = [self._block(answer) for answer in reversed(case.answers)] if case is not None else []
        notice = f'<p><span style="color:#8a8a8a"><small>{escape(RESEARCH_USE_ONLY)}</small></span></p>' if blocks else ""
        ui.answersView.setHtml(notice + "".join(blocks))
        self.refresh()

    def _block(self, answer: Any) -> str:
        text = escape(answer.answer)
        if answer.link is not None:
            self._links.append(answer.link)
            text = f'<a href="{SCHEME}{len(self._links) - 1}">{text}</a>'
        remarks = [_clock(answer.created)]
        if answer.confidence is not None:
            remarks.insert(0, _("confidence {share}").format(share=percent(answer.confidence)))
        if answer.link is None:
            remarks.append(_("no place"))
        small = f'<span style="color:#8a8a8a"><small>{escape(" · ".join(remarks))}</small></span>'
        return f"<p><b>{escape(answer.question)}</b><br/>{text}<br/>{small}</p>"

    def busy(self, busy: bool) -> None:
        """While anything runs, nothing can be asked."""
        self._busy = busy
        self._asking = self._asking and busy
        self.refresh()

    @property
    def asking(self) -> bool:
        """Whether the run is a question of this panel."""
        return self._asking

    def refresh(self) -> None:
        ui = self.ui
        ui.questionEdit.enabled = ui.suggestions.enabled = self._has_case
        ui.askButton.text = _("Stop") if self._asking else _("Ask")
        ready = self._has_case and not self._busy and bool(ui.questionEdit.text.strip())
        ui.askButton.enabled = ready or (self._asking and self._busy)

    def on_suggestion(self, index: int) -> None:
        if index > 0:
            self.ui.questionEdit.text = self.ui.suggestions.itemText(index)

    def on_ask(self) -> None:
        if not self.ui.askButton.enabled:
            return
        if self._asking:
            self.ui.askButton.enabled = False
            self.say(_("Stopping..."))
            self._stop()
            return
        self._asking = True
        self.say(_("Thinking..."))
        self._ask(self.ui.questionEdit.text.strip())

    def on_anchor(self, url: Any) -> None:
        number = url.toString().removeprefix(SCHEME)
        if number.isdigit() and int(number) < len(self._links):
            self._go_to(self._links[int(number)])

    def failed(self, error: VelvetMedError) -> None:
        self._asking = False
        self.refresh()
        self.say(error_text(error))

    def say(self, text: str) -> None:
        self.ui.askMessage.text = text
        self.ui.askMessage.visible = bool(text)
