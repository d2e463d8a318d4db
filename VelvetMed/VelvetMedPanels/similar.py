"""Similar: build or open an index of scans, search it by the open scan, by one of its organs or by words, see why, open a hit."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import ctk
from slicer.i18n import tr as _

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.case import Case
from VelvetMedLib.errors import VelvetMedError
from VelvetMedLib.reports import ontology
from VelvetMedPanels.common import error_details, error_text, load_into, place_word, time_left

SCHEME = "open:"
GREY = "#8a8a8a"
PICTURE_SIDE = 72
MOST_SHOWN = 4


class SimilarPanel:
    """Calls build(scans, index), search(index, text or None, organ or None), open(index, number), cancel() and close()."""

    def __init__(
        self,
        section: Any,
        *,
        build: Callable[[Path, Path], None],
        search: Callable[[Path, str | None, str | None], None],
        open_hit: Callable[[Path, int], None],
        cancel: Callable[[], None],
        close: Callable[[], None],
        index_folder: str = "",
    ) -> None:
        self.ui = load_into(section, "Similar")
        self._build, self._search, self._open, self._cancel, self._close = build, search, open_hit, cancel, close
        self._ready = self._busy = self._running = self._has_scan = False
        self._is_open = False
        self._organs: list[str] = []
        self._hits: list[dict[str, Any]] | None = None
        ui = self.ui
        for path in (ui.indexPath, ui.scansPath):
            path.filters = ctk.ctkPathLineEdit.Dirs  # else its button would ask for a file
        ui.indexPath.currentPath = index_folder
        ui.buildBox.collapsed = bool(index_folder)
        ui.indexPath.connect("currentPathChanged(QString)", self.refresh)
        ui.scansPath.connect("currentPathChanged(QString)", self.refresh)
        ui.queryEdit.connect("textChanged(QString)", self.refresh)
        ui.queryEdit.connect("returnPressed()", self.on_text)
        ui.buildButton.connect("clicked(bool)", self.on_build)
        ui.byScanButton.connect("clicked(bool)", self.on_scan)
        ui.byTextButton.connect("clicked(bool)", self.on_text)
        ui.cancelButton.connect("clicked(bool)", self.on_cancel)
        ui.closeButton.connect("clicked(bool)", lambda *_: self._close())
        ui.hitsView.connect("anchorClicked(QUrl)", self.on_anchor)
        self.clear()

    def clear(self) -> None:
        """No hits and no run."""
        self._hits = None
        self._draw()
        self.idle("")

    def _draw(self) -> None:
        """The hits; drawn again whenever the state is set, as the colour of links is taken when the text is set."""
        if self._hits is None:
            self.ui.hitsView.setHtml(f'<p><span style="color:{GREY}">{escape(_("Nothing was searched for yet."))}</span></p>')
            return
        notice = f'<p><span style="color:{GREY}"><small>{escape(RESEARCH_USE_ONLY)}</small></span></p>'
        words = "".join(map(_hit, self._hits)) or f"<p>{escape(_('No similar scan was found.'))}</p>"
        self.ui.hitsView.setHtml(notice + words)

    def set_state(self, *, ready: bool, has_scan: bool, is_open: bool) -> None:
        """ready: a model is chosen and the statement acknowledged. is_open: a hit is beside the scan."""
        self._ready, self._has_scan, self._is_open = ready, has_scan, is_open
        self._draw()
        self.refresh()

    def show_case(self, case: Case | None) -> None:
        """The organs of the analysis can be compared one by one; the choice stays while its organ is there."""
        selector = self.ui.regionSelector
        before = self.region
        found = sorted((s for s in case.segments if s.kind == "organ") if case is not None else (), key=lambda s: s.display)
        self._organs = [segment.name for segment in found]
        selector.clear()
        selector.addItem(_("Whole scan"))
        for segment in found:
            selector.addItem(segment.display[:1].upper() + segment.display[1:])
        selector.setCurrentIndex(1 + self._organs.index(before) if before in self._organs else 0)

    @property
    def region(self) -> str | None:
        """The organ to compare; None: the whole scan."""
        place = int(self.ui.regionSelector.currentIndex) - 1
        return self._organs[place] if 0 <= place < len(self._organs) else None

    def busy(self, busy: bool) -> None:
        """While anything runs, no other run can be started."""
        self._busy = busy
        self.refresh()

    @property
    def index(self) -> Path | None:
        text = str(self.ui.indexPath.currentPath).strip()
        return Path(text) if text else None

    def refresh(self) -> None:
        ui = self.ui
        free = self._ready and not self._busy and self.index is not None
        ui.buildButton.enabled = free and bool(str(ui.scansPath.currentPath).strip())
        ui.byScanButton.enabled = free and self._has_scan
        ui.regionSelector.enabled = bool(self._organs)
        ui.byTextButton.enabled = free and bool(ui.queryEdit.text.strip())
        ui.closeButton.visible = self._is_open

    def on_build(self) -> None:
        index, scans = self.index, str(self.ui.scansPath.currentPath).strip()
        if self.ui.buildButton.enabled and index is not None:
            self._build(Path(scans), index)

    def on_scan(self) -> None:
        if self.ui.byScanButton.enabled and self.index is not None:
            self._search(self.index, None, self.region)

    def on_text(self) -> None:
        if self.ui.byTextButton.enabled and self.index is not None:
            self._search(self.index, self.ui.queryEdit.text.strip(), None)

    def on_anchor(self, url: Any) -> None:
        number = url.toString().removeprefix(SCHEME)
        if number.isdigit() and self.index is not None and not self._busy:
            self._open(self.index, int(number))

    def on_cancel(self) -> None:
        self.ui.cancelButton.enabled = False
        self.say(_("Stopping..."))
        self._cancel()

    # what happens

    def running(self) -> None:
        """A run of this panel has begun."""
        self._running = True
        self.ui.progressRow.visible = True
        self.ui.progressBar.setValue(0)
        self.ui.cancelButton.enabled = True
        self.say(_("Starting..."))

    def progress(self, fraction: float, stage: str, seconds_left: float | None) -> None:
        if not self.ui.cancelButton.enabled:
            return  # Cancel was pressed: "Stopping..." stays
        self.ui.progressBar.setValue(round(1000 * min(max(fraction, 0.0), 1.0)))
        self.say(" - ".join(part for part in (_stage_word(stage), time_left(seconds_left)) if part))

    def idle(self, message: str) -> None:
        """No run of this panel any more."""
        self._running = False
        self.ui.progressRow.visible = False
        self.say(message)

    def failed(self, error: VelvetMedError) -> None:
        self.idle(error_text(error))
        self.ui.similarMessage.toolTip = error_details(error)

    def say(self, text: str) -> None:
        self.ui.similarMessage.text = text
        self.ui.similarMessage.toolTip = ""
        self.ui.similarMessage.visible = bool(text)

    def built(self, added: int, count: int, skipped: list[str]) -> None:
        lines = [
            _("Added: {n}.").format(n=added),
            _("One scan is in the index.") if count == 1 else _("{n} scans are in the index.").format(n=count),
        ]
        if skipped:
            lines.append(_("{n} could not be read:").format(n=len(skipped)))
            lines += skipped[:MOST_SHOWN]
            if len(skipped) > MOST_SHOWN:
                lines.append("…")
        self.idle("\n".join(lines))
        self.ui.buildBox.collapsed = True

    def show_hits(self, hits: list[dict[str, Any]], count: int) -> None:
        """hits: as the worker's `similar` gives them. No name and no place of another patient is among them."""
        self._hits = list(hits)
        self._draw()
        self.idle(_("{shown} of {count} scans, the nearest first.").format(shown=len(hits), count=count))


def _hit(hit: dict[str, Any]) -> str:
    number, shared, present = int(hit["number"]), list(hit.get("shared", [])), list(hit.get("present", []))
    side = f'width="{PICTURE_SIDE}" height="{PICTURE_SIDE}"'
    picture = f'<img src="data:image/png;base64,{escape(str(hit["picture"]))}" {side}/>' if hit.get("picture") else ""
    reasons = (
        _("Both show: {findings}").format(findings=", ".join(map(_display, shared)))
        if shared
        else _("No finding in common; alike as a whole.")
    )
    others = [_display(name) for name in present if name not in shared]
    region = hit.get("region")
    alike = (
        _("Alike in the {organ} ({value:.2f})").format(organ=place_word(region["organ"]), value=float(region["similarity"]))
        if region
        else ""
    )
    also = (_("Also: {findings}") if shared else _("Shows: {findings}")).format(findings=", ".join(others)) if others else ""
    source = _("findings from its report") if hit.get("source") == "report" else _("findings of the model")
    lines = [
        f'<a href="{SCHEME}{number}"><b>{escape(_("Scan {n}").format(n=number))}</b></a>'
        f' <small><span style="color:{GREY}">{escape(_("similarity {value:.2f}").format(value=float(hit["similarity"])))}</span></small>',
        escape(reasons),
        escape(alike),
        escape(also),
        f'<small><span style="color:{GREY}">{escape(source)}</span></small>',
    ]
    words = "<br/>".join(line for line in lines if line)
    return (
        f'<table cellspacing="0" cellpadding="3"><tr><td width="{PICTURE_SIDE + 4}">{picture}</td>'
        f'<td valign="top">{words}</td></tr></table>'
    )


def _display(name: str) -> str:
    known = {finding.name: finding.display for finding in ontology().findings}
    return known.get(name, name.replace("_", " "))


def _stage_word(stage: str) -> str:
    """What the worker is at, in the user's language where it is one of the two that take long."""
    parts = stage.split()
    if len(parts) == 4 and parts[0] == "scan":
        return _("Scan {n} of {count}").format(n=parts[1], count=parts[3])
    words = {"loading the model": _("Loading the model"), "reading the scan": _("Reading the scan")}
    return words.get(stage, _("Reading the open scan") if stage else "")
