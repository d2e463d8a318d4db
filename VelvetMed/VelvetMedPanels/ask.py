"""Ask: a question about the analysed scan; answers with confidence and place, kept with the scene."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

from slicer.i18n import tr as _

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.errors import VelvetMedError
from VelvetMedPanels.common import error_text, load_into, percent

if TYPE_CHECKING:
    from VelvetMedLib.case import Case

SCHEME = "answer:"


class AskPanel:
    """Calls ask(question) and go_to(link)."""

    def __init__(self, section: Any, ask: Callable[[str], None], go_to: Callable[[Any], None]) -> None:
        self.ui = load_into(section, "Ask")
        self._ask, self._go_to = ask, go_to
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
        sure = "" if answer.confidence is None else f' <span style="color:#8a8a8a"><small>{percent(answer.confidence)}</small></span>'
        return f"<p><b>{escape(answer.question)}</b><br/>{text}{sure}</p>"

    def busy(self, busy: bool) -> None:
        """While anything runs, nothing can be asked."""
        self._busy = busy
        self.refresh()

    def refresh(self) -> None:
        ui = self.ui
        ui.questionEdit.enabled = ui.suggestions.enabled = self._has_case
        ui.askButton.enabled = self._has_case and not self._busy and bool(ui.questionEdit.text.strip())

    def on_suggestion(self, index: int) -> None:
        if index > 0:
            self.ui.questionEdit.text = self.ui.suggestions.itemText(index)

    def on_ask(self) -> None:
        if self.ui.askButton.enabled:
            self.say(_("Thinking..."))
            self._ask(self.ui.questionEdit.text.strip())

    def on_anchor(self, url: Any) -> None:
        number = url.toString().removeprefix(SCHEME)
        if number.isdigit() and int(number) < len(self._links):
            self._go_to(self._links[int(number)])

    def failed(self, error: VelvetMedError) -> None:
        self.say(error_text(error))

    def say(self, text: str) -> None:
        self.ui.askMessage.text = text
        self.ui.askMessage.visible = bool(text)
