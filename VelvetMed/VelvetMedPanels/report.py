"""Report: the draft, sentence by sentence with state and support; a click goes to the voxels and opens the words for editing."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

import slicer
from slicer.i18n import tr as _

from VelvetMedLib import DRAFT_DISCLAIMER
from VelvetMedLib.case.editing import Place, add_sentence, judge, restore, rewrite, sentences
from VelvetMedPanels.common import load_into, mark, percent, state_word

if TYPE_CHECKING:
    from VelvetMedLib.case import Case, Flag, Sentence

SCHEME = "sentence:"
GREY, PERSON, OLD, WRONG = "#8a8a8a", "#2f7fb8", "#c2571a", "#d0433b"
"""Mid-tones: readable on light and on dark palettes."""


class ReportPanel:
    """Calls go_to(link) when a sentence with a place is clicked, and change(function of a Case) when a person edits."""

    def __init__(
        self,
        section: Any,
        go_to: Callable[[Any], None],
        change: Callable[[Callable[[Case], Case]], None] = lambda function: None,
        recompute: Callable[[], None] = lambda: None,
    ) -> None:
        self.ui = load_into(section, "Report")
        self._go_to, self._change = go_to, change
        self._case: Case | None = None
        self._chosen: Place | None = None
        self._filling = False
        ui = self.ui
        ui.reportView.connect("anchorClicked(QUrl)", self.on_anchor)
        ui.copyButton.connect("clicked(bool)", self.copy)
        ui.keepButton.connect("clicked(bool)", self.on_keep)
        ui.addButton.connect("clicked(bool)", self.on_add)
        ui.restoreButton.connect("clicked(bool)", self.on_restore)
        ui.acceptButton.connect("clicked(bool)", self.on_accept)
        ui.rejectButton.connect("clicked(bool)", self.on_reject)
        ui.recomputeButton.connect("clicked(bool)", recompute)
        ui.sentenceEdit.connect("textChanged()", self.refresh)
        self.show_case(None)

    def show_case(self, case: Case | None) -> None:
        """None clears the text."""
        same = case is not None and self._case is not None and case.id == self._case.id
        self._case = case
        places = [place for place, _section, _sentence in sentences(case)] if case is not None else []
        if not same or self._chosen not in places:
            self._chosen = None
        self._show_text()
        self._fill_editor()

    # showing

    def _show_text(self) -> None:
        view, case = self.ui.reportView, self._case
        self.ui.copyButton.enabled = case is not None and case.report is not None
        if case is None or case.report is None:
            view.setHtml(f"<p>{escape(_('No draft yet.'))}</p>")
            return
        parts = [f"<p><b>{escape(DRAFT_DISCLAIMER)}</b></p>"]
        title = ""
        for place, section, sentence in sentences(case):
            if place[1] == 0:
                title = section.title
                parts.append(f'<p style="margin-bottom:2px"><b>{escape(title)}</b></p>')
            parts.append(self._sentence(place, sentence))
        at = view.verticalScrollBar().value
        view.setHtml("".join(parts))
        view.verticalScrollBar().setValue(at)  # an edit must not throw the reader back to the top

    def _sentence(self, place: Place, sentence: Sentence) -> str:
        style = ["text-decoration:none"]
        if sentence.rejected:
            style = [f"color:{GREY}", "text-decoration:line-through"]
        elif sentence.by_person:
            style.append(f"color:{PERSON}")
        elif sentence.link is None:
            style.append("color:palette(text)")
        text = f'<a href="{SCHEME}{place[0]}.{place[1]}" style="{";".join(style)}">{escape(sentence.text)}</a>'
        if place == self._chosen:
            text = f"<b>{text}</b>"
        sign = mark(sentence.state) if sentence.state else f'<span style="color:{GREY}">·</span>'
        return f'<p style="margin-top:0px;margin-bottom:3px">{sign} {text} <small>{self._tags(sentence)}</small></p>'

    def _tags(self, sentence: Sentence) -> str:
        """What stands behind the words, in a few: support, whose they are, the verdict, and whether they still hold."""
        tags = []
        if sentence.support is not None:
            tags.append((percent(sentence.support), GREY))
        if sentence.by_person:
            tags.append((_("✎ by hand"), PERSON))
        elif sentence.link is None and (sentence.support is None or sentence.state == "present"):
            tags.append((_("no image evidence"), GREY))
        verdict = sentence.revision.verdict if sentence.revision is not None else None
        if verdict is not None and not (verdict == "accepted" and sentence.by_person):
            tags.append((_("✓ accepted") if verdict == "accepted" else _("✗ rejected"), GREY))
        if sentence.stale:
            tags.append((_("⚠ out of date"), OLD))
        whole = [(escape(word).replace(" ", "&nbsp;"), color) for word, color in tags]  # a tag is not torn apart by a line's end
        whole += [(escape(_flagged(flag)), WRONG if flag.kind == "contradiction" else OLD) for flag in sentence.flags]
        return " ".join(f'<span style="color:{color}">{word}</span>' for word, color in whole)

    def show_stale(self, text: str, *, can_recompute: bool) -> None:
        """What is out of date and how far it is with being mended; empty: nothing."""
        self.ui.staleLabel.text = text
        self.ui.staleFrame.visible = bool(text)
        self.ui.recomputeButton.enabled = can_recompute

    # one sentence

    @property
    def _sentence_chosen(self) -> Sentence | None:
        if self._case is None or self._chosen is None:
            return None
        return next((sentence for place, _section, sentence in sentences(self._case) if place == self._chosen), None)

    def _fill_editor(self) -> None:
        ui, sentence = self.ui, self._sentence_chosen
        ui.sentenceFrame.visible = self._case is not None
        told = sentence.revision if sentence is not None else None
        ui.sentenceLabel.visible = sentence is not None
        if sentence is None:
            ui.sentenceLabel.text = ""
        elif told is None:
            model = self._case.model if self._case is not None else None
            ui.sentenceLabel.text = _("Words of the model {model}.").format(model=f"{model.id} {model.version}" if model else "")
        elif told.machine_text is None:
            ui.sentenceLabel.text = _("Your own sentence, {when}.").format(when=_clock(told.changed))
        elif sentence.by_person:
            ui.sentenceLabel.text = _("Yours, {when}. Model {model}: “{text}”").format(
                when=_clock(told.changed), model=told.model_id or "", text=told.machine_text
            )
        else:
            ui.sentenceLabel.text = _("Words of the model {model}, seen {when}.").format(
                model=told.model_id or "", when=_clock(told.changed)
            )
        ui.sentenceLabel.toolTip = _("Weights sha256 {hash}").format(hash=told.weights_sha256) if told and told.weights_sha256 else ""
        self._filling = True
        ui.sentenceEdit.setPlainText(sentence.text if sentence is not None else "")
        verdict = told.verdict if told is not None else None
        ui.acceptButton.checked = verdict == "accepted"
        ui.rejectButton.checked = verdict == "rejected"
        self._filling = False
        self.refresh()

    def refresh(self) -> None:
        """What can be pressed now."""
        if self._filling:
            return
        ui, sentence = self.ui, self._sentence_chosen
        text = " ".join(ui.sentenceEdit.plainText.split())
        ui.keepButton.enabled = sentence is not None and bool(text) and text != sentence.text
        ui.addButton.enabled = self._case is not None and bool(text) and (sentence is None or text != sentence.text)
        ui.restoreButton.enabled = sentence is not None and sentence.revision is not None
        for button in (ui.acceptButton, ui.rejectButton):
            button.enabled = sentence is not None

    def on_anchor(self, url: Any) -> None:
        parts = url.toString().removeprefix(SCHEME).split(".")
        if len(parts) != 2 or not all(part.isdigit() for part in parts):
            return
        self.choose((int(parts[0]), int(parts[1])))

    def choose(self, place: Place) -> None:
        """Opens a sentence for editing and goes to its voxels; nothing happens where there is none."""
        before, self._chosen = self._chosen, place
        sentence = self._sentence_chosen
        if sentence is None:
            self._chosen = before
            return
        self._show_text()
        self._fill_editor()
        if sentence.link is not None:
            self._go_to(sentence.link)

    def on_keep(self) -> None:
        place, text = self._chosen, self.ui.sentenceEdit.plainText
        if place is not None:
            self._change(lambda case: rewrite(case, place, text))

    def on_add(self) -> None:
        place, text = self._chosen, self.ui.sentenceEdit.plainText
        self._chosen = None
        self._change(lambda case: add_sentence(case, text, section=place[0] if place is not None else None))

    def on_restore(self) -> None:
        place = self._chosen
        if place is not None:
            self._change(lambda case: restore(case, place))

    def on_accept(self) -> None:
        self._judge("accepted", self.ui.acceptButton.checked)

    def on_reject(self) -> None:
        self._judge("rejected", self.ui.rejectButton.checked)

    def _judge(self, verdict: Any, on: bool) -> None:
        place = self._chosen
        if place is not None and not self._filling:
            self._change(lambda case: judge(case, place, verdict if on else None))

    # taking it along

    def text(self) -> str:
        """Plain text, disclaimer first, doubts in words, without what was rejected: what copying gives."""
        if self._case is None or self._case.report is None:
            return ""
        lines = [DRAFT_DISCLAIMER]
        for section in self._case.report.sections:
            kept = [sentence for sentence in section.sentences if not sentence.rejected]
            if kept:
                lines += ["", section.title, *(_plain(sentence) for sentence in kept)]
        return "\n".join(lines) + "\n"

    def copy(self) -> None:
        slicer.app.clipboard().setText(self.text())


def _plain(sentence: Sentence) -> str:
    remarks = [state_word(sentence.state)] if sentence.state == "uncertain" else []
    remarks += [_("out of date")] if sentence.stale else []
    remarks += [_flagged(flag) for flag in sentence.flags]
    return f"{sentence.text} [{', '.join(remarks)}]" if remarks else sentence.text


def _flagged(flag: Flag) -> str:
    """A check that the sentence fails, with its reason."""
    called = _("✖ contradicted") if flag.kind == "contradiction" else _("? not borne out")
    return f"{called}: {flag.reason}"


def _clock(moment: str) -> str:
    """An ISO time as date and minutes: seconds and zone are in what is saved."""
    return moment[:16].replace("T", " ")
