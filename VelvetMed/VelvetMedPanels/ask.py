"""Ask: a question about the analysed scan, one of its segments or a box; answers with confidence and place, kept with the scene."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from slicer.i18n import tr as _

from VelvetMedCore.regions import BoxWatch, box_of, new_box
from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.case import About, Link
from VelvetMedLib.errors import VelvetMedError
from VelvetMedLib.reports import suggested_questions
from VelvetMedPanels.common import STATE_COLORS, error_text, load_into, percent

if TYPE_CHECKING:
    from VelvetMedLib.case import Answer, Case

SCHEME = "answer:"
WHOLE, BOX = 0, 1
"""Places of the first two entries of what a question can be about; segments follow."""
ANSWERED, DOUBTFUL, SILENT = "#4a7fb5", STATE_COLORS["uncertain"], STATE_COLORS["not_assessed"]
"""Colours of the bar beside an answer: mid-tones, for light and dark palettes."""


def questions_for(case: Case, about: About | None) -> list[str]:
    """What is worth asking of this case: its findings and doubts, then sizes; of a place what it holds and which of them lie in it."""
    records = [finding.record() for finding in case.findings]
    if about is not None:
        return suggested_questions(records, of_place=True)
    structures = [segment.name for segment in sorted(case.segments, key=lambda s: -s.volume_ml) if segment.kind == "organ"]
    return suggested_questions(records, structures=structures)


def _clock(moment: str) -> str:
    """An ISO time as date and minutes."""
    return moment[:16].replace("T", " ")


class AskPanel:
    """Calls ask(question, about), go_to(link), and stop() for a question that runs."""

    def __init__(
        self,
        section: Any,
        ask: Callable[[str, About | None], None],
        go_to: Callable[[Any], None],
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.ui = load_into(section, "Ask")
        self._ask, self._go_to, self._stop = ask, go_to, stop
        self._asking = False
        self._links: list[Link] = []
        self._case: Case | None = None
        self._segments: list[str] = []
        self._busy = False
        self._watch = BoxWatch(self.on_about)
        ui = self.ui
        ui.askButton.connect("clicked(bool)", self.on_ask)
        ui.questionEdit.connect("returnPressed()", self.on_ask)
        ui.questionEdit.connect("textChanged(QString)", self.refresh)
        ui.suggestions.connect("currentIndexChanged(int)", self.on_suggestion)
        ui.answersView.connect("anchorClicked(QUrl)", self.on_anchor)
        ui.aboutSelector.connect("currentIndexChanged(int)", self.on_about)
        ui.boxSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.on_about)
        ui.newBoxButton.connect("clicked(bool)", self.on_new_box)
        self.show_case(None)

    def set_scene(self, scene: Any) -> None:
        """The scene whose regions of interest can be chosen; None lets go of it."""
        self.ui.boxSelector.setMRMLScene(scene)
        self.on_about()

    def show_case(self, case: Case | None) -> None:
        """None clears the panel."""
        self._case = case
        self._links = []
        self._fill_about(case)
        if case is None:
            self.ui.questionEdit.text = ""
        if not self._asking:
            self.say("")
        blocks = [self._block(answer) for answer in reversed(case.answers)] if case is not None else []
        notice = f'<p><span style="color:{SILENT}"><small>{escape(RESEARCH_USE_ONLY)}</small></span></p>' if blocks else ""
        self.ui.answersView.setHtml(notice + "".join(blocks))
        self.on_about()

    def _fill_about(self, case: Case | None) -> None:
        """The choice stays while its segment is there."""
        selector, before = self.ui.aboutSelector, self.segment
        was_box = int(selector.currentIndex) == BOX
        found = sorted(case.segments, key=lambda s: (s.kind != "organ", s.display)) if case is not None else []
        self._segments = [segment.name for segment in found]
        selector.blockSignals(True)
        selector.clear()
        selector.addItem(_("Whole scan"))
        selector.addItem(_("A box (region of interest)"))
        for segment in found:
            selector.addItem(segment.display[:1].upper() + segment.display[1:])
        kept = BOX + 1 + self._segments.index(before) if before in self._segments else BOX if was_box and case is not None else WHOLE
        selector.setCurrentIndex(kept)
        selector.blockSignals(False)

    @property
    def segment(self) -> str | None:
        """The name of the segment that is chosen."""
        place = int(self.ui.aboutSelector.currentIndex) - BOX - 1
        return self._segments[place] if 0 <= place < len(self._segments) else None

    @property
    def about(self) -> About | None:
        """What the question is put to; None: the whole scan. Raises ValueError where a box is meant and there is none to ask about."""
        if self.segment is not None:
            return About(segment=self.segment)
        if int(self.ui.aboutSelector.currentIndex) != BOX:
            return None
        node = self.ui.boxSelector.currentNode()
        if node is None:
            raise ValueError(_("Place a box: New at crosshair, or Markups, ROI."))
        try:
            box = box_of(node)
        except ValueError:
            raise ValueError(_("The transform of this box bends it. Harden the transform, or choose another box.")) from None
        if box is None:
            raise ValueError(_("This box has no size yet: draw it in a slice view."))
        if self._share(box) == 0.0:
            raise ValueError(_("This box lies outside of the scan. Move it into the scan."))
        return box

    def _share(self, box: About) -> float:
        """How much of a box lies in the scan that was analysed."""
        if self._case is None:
            return 0.0
        return box.share_in(self._case.input.shape_kji, np.array(self._case.input.ijk_to_ras))

    def on_about(self, *_args: Any) -> None:
        """Another place was chosen, or the box has changed."""
        ui, chosen = self.ui, int(self.ui.aboutSelector.currentIndex)
        ui.boxRow.visible = chosen == BOX
        self._watch.watch(ui.boxSelector.currentNode() if chosen == BOX else None)
        self._suggest()
        self.refresh()

    def _suggest(self) -> None:
        ui, case = self.ui, self._case
        try:
            wanted = questions_for(case, self.about) if case is not None else []
        except ValueError:
            wanted = []
        wanted = [_("Suggested questions"), *wanted]
        if [ui.suggestions.itemText(n) for n in range(ui.suggestions.count)] == wanted:
            return
        ui.suggestions.blockSignals(True)
        ui.suggestions.clear()
        for question in wanted:
            ui.suggestions.addItem(question)
        ui.suggestions.blockSignals(False)

    def _tell_about(self) -> bool:
        """Says under the choice what it stands for; whether a question can be put to it."""
        ui = self.ui
        try:
            about = self.about
        except ValueError as problem:
            # A box is red where it can never be asked about, and only a hint while it is still to be placed.
            color = STATE_COLORS["present"] if ui.boxSelector.currentNode() is not None else SILENT
            self._say_about(str(problem), color)
            return False
        if about is None or about.segment is not None:
            self._say_about("", SILENT)
            return True
        size = " × ".join(f"{edge:.0f}" for edge in about.size_mm)
        share = self._share(about)
        if share < 1.0:
            text = _("{size} mm; {share} of it lie outside of the scan").format(size=size, share=percent(1.0 - share))
            self._say_about(text, STATE_COLORS["uncertain"])
        else:
            self._say_about(_("{size} mm, within the scan").format(size=size), STATE_COLORS["absent"])
        return True

    def _say_about(self, text: str, color: str) -> None:
        self.ui.aboutState.text = f'<span style="color:{color}">● {escape(text)}</span>' if text else ""
        self.ui.aboutState.visible = bool(text) and self._case is not None

    def _block(self, answer: Answer) -> str:
        """One question with its answer: a bar that tells whether it is sure, doubtful or none, and links to the places."""
        doubtful = answer.answer.startswith("Uncertain")
        color = SILENT if answer.unanswered is not None else DOUBTFUL if doubtful else ANSWERED
        words = {
            "not_understood": _("not understood"),
            "beyond": _("no question for a scan"),
            "not_assessed": _("not assessed"),
            "out_of_view": _("outside of the field of view"),
        }
        remarks = [_clock(answer.created)]
        if answer.unanswered is not None:
            remarks.insert(0, words[answer.unanswered])
        elif answer.confidence is not None:
            remarks.insert(0, _("confidence {share}").format(share=percent(answer.confidence)))
        shown = self._anchor(answer.link, _("Show on the scan")) if answer.link is not None else escape(_("no place"))
        lines = [
            f"<b>{escape(answer.question)}</b>{self._about_words(answer)}",
            escape(answer.answer),
            f'<small>{shown} <span style="color:{SILENT}">· {escape(" · ".join(remarks))}</span></small>',
        ]
        bar = f'<td width="3" bgcolor="{color}"></td><td width="7"></td>'
        return f'<table cellspacing="0" cellpadding="0" width="100%"><tr>{bar}<td>{"<br/>".join(lines)}</td></tr></table><p></p>'

    def _about_words(self, answer: Answer) -> str:
        """What was asked about, leading there."""
        about = answer.about
        if about is None:
            return ""
        if about.segment is not None:
            segment = next((s for s in self._case.segments if s.name == about.segment), None) if self._case is not None else None
            words = segment.display if segment is not None else str(about)
            link = None if segment is None else Link(kind="segment", label=segment.label, center_ras_mm=segment.center_ras_mm)
        else:
            words, link = str(about), Link(kind="box", center_ras_mm=about.center_ras_mm, box_ras_mm=about.bounds_ras_mm)
        told = escape(words) if link is None else self._anchor(link, words)
        return f'<br/><small><span style="color:{SILENT}">{escape(_("About:"))}</span> {told}</small>'

    def _anchor(self, link: Link, words: str) -> str:
        self._links.append(link)
        return f'<a href="{SCHEME}{len(self._links) - 1}">{escape(words)}</a>'

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
        there = self._case is not None
        for part in (ui.questionEdit, ui.suggestions, ui.aboutSelector, ui.boxRow):
            part.enabled = there
        ui.askButton.text = _("Stop") if self._asking else _("Ask")
        can = self._tell_about()
        ready = there and can and not self._busy and bool(ui.questionEdit.text.strip())
        ui.askButton.enabled = ready or (self._asking and self._busy)

    def on_suggestion(self, index: int) -> None:
        if index > 0:
            self.ui.questionEdit.text = self.ui.suggestions.itemText(index)

    def on_new_box(self) -> None:
        self.ui.boxSelector.setCurrentNode(new_box())

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
        self._ask(self.ui.questionEdit.text.strip(), self.about)

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
