"""Findings: a table that is sorted and filtered, a way from one to the next, thresholds of one's own, and what the model missed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import qt
from slicer.i18n import tr as _

from VelvetMedLib.case.overruling import add_finding, remove_finding, reset_thresholds, set_thresholds
from VelvetMedLib.reports import ontology
from VelvetMedPanels.common import STATE_COLORS, STATE_ORDER, STATE_SIGNS, load_into, percent, place_word, side_word, state_word

if TYPE_CHECKING:
    from VelvetMedLib.case import Case, CaseFinding
    from VelvetMedLib.shapes import Triple

FINDING, STATE, PROBABILITY, PLACE, SIZE = range(5)
FILTERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("relevant", ("present", "uncertain")),
    ("all", tuple(STATE_ORDER)),
    *((state, (state,)) for state in STATE_ORDER),
)
"""In the order of the selector's items."""
WINDOW_CHOICES = ("fitting", "lung", "soft_tissue", "bone", "own")
SIDES = (None, "left", "right", "both")
STATES_OF_A_PERSON = ("present", "uncertain")
MARK_OF_A_PERSON = "✎"
WIDTHS = {FINDING: 98, STATE: 84}
"""Pixels, for the longest usual word: what has several words is wrapped, so that the place keeps its room in a narrow panel."""


class FindingsPanel:
    """Calls go_to(finding) when one with a place is chosen, change(function of a Case) to change the Case, and changed() for choices.

    place() gives the crosshair in RAS mm and the structure there; thresholds(finding name) the model's own, or None.
    """

    def __init__(
        self,
        section: Any,
        go_to: Callable[[Any], None],
        changed: Callable[[], None],
        change: Callable[[Callable[[Case], Case]], None],
        *,
        place: Callable[[], tuple[Triple, str | None]],
        thresholds: Callable[[str], tuple[float, float] | None],
    ) -> None:
        self.ui = load_into(section, "Findings")
        self._go_to, self._changed, self._change = go_to, changed, change
        self._place, self._model_thresholds = place, thresholds
        self._all: tuple[CaseFinding, ...] = ()
        self._case_id = ""
        self._rows: list[CaseFinding] = []
        self._items: list[Any] = []
        self._sorting: tuple[int, bool] = (-1, False)  # column, descending; -1: the worst first
        self._filling = False
        self._known = sorted(ontology().findings, key=lambda finding: finding.display)
        self._set_up_table()
        self._set_up_keys()
        ui = self.ui
        for group in (ui.thresholdsGroup, ui.addGroup):
            group.collapsed = True
        for finding in self._known:
            ui.addName.addItem(_capital(finding.display))
        ui.filterEdit.connect("textChanged(QString)", self.on_filter)
        ui.stateFilter.connect("currentIndexChanged(int)", self.on_filter)
        ui.previousButton.connect("clicked(bool)", self.previous)
        ui.nextButton.connect("clicked(bool)", self.next)
        ui.windowSelector.connect("currentIndexChanged(int)", self.on_view_choice)
        ui.heatmapBox.connect("toggled(bool)", self.on_view_choice)
        ui.axesBox.connect("toggled(bool)", self.on_view_choice)
        ui.absentBelow.connect("valueChanged(double)", self.on_threshold)
        ui.presentFrom.connect("valueChanged(double)", self.on_threshold)
        ui.modelThresholdsButton.connect("clicked(bool)", self.on_model_thresholds)
        ui.addName.connect("currentIndexChanged(int)", self.on_add_name)
        ui.addButton.connect("clicked(bool)", self.on_add)
        ui.removeAddedButton.connect("clicked(bool)", self.on_remove)
        self.say("")
        self.on_add_name()
        self.show_case(None)

    def _set_up_table(self) -> None:
        table = self.ui.findingsTable
        header = table.horizontalHeader()
        header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        for column, width in WIDTHS.items():
            header.setSectionResizeMode(column, qt.QHeaderView.Interactive)
            header.resizeSection(column, width)
        header.setSectionResizeMode(PLACE, qt.QHeaderView.Stretch)
        header.setMinimumSectionSize(20)
        header.setSectionsClickable(True)
        header.connect("sectionClicked(int)", self.on_header)
        table.verticalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        table.connect("cellClicked(int,int)", self.on_row)
        table.connect("currentCellChanged(int,int,int,int)", self.on_row)

    def _set_up_keys(self) -> None:
        self._shortcuts = []
        for keys, slot in (("Ctrl+PgUp", self.previous), ("Ctrl+PgDown", self.next)):
            shortcut = qt.QShortcut(qt.QKeySequence(keys), self.ui.root)
            shortcut.setContext(qt.Qt.ApplicationShortcut)  # the reader's hand is in a slice view, not in this panel
            shortcut.connect("activated()", slot)
            self._shortcuts.append(shortcut)
        self.listen(False)

    def listen(self, on: bool) -> None:
        """Whether the keys for next and previous work: only while the module is in front."""
        for shortcut in self._shortcuts:
            shortcut.enabled = on

    # choices

    @property
    def filter(self) -> str:
        return FILTERS[max(self.ui.stateFilter.currentIndex, 0)][0]

    def set_filter(self, name: str) -> None:
        names = [entry[0] for entry in FILTERS]
        self.ui.stateFilter.setCurrentIndex(names.index(name) if name in names else 0)

    @property
    def window(self) -> str:
        """fitting, lung, soft_tissue, bone or own."""
        return WINDOW_CHOICES[max(self.ui.windowSelector.currentIndex, 0)]

    @property
    def heatmap_wanted(self) -> bool:
        return bool(self.ui.heatmapBox.checked)

    @property
    def axes_wanted(self) -> bool:
        return bool(self.ui.axesBox.checked)

    def on_filter(self) -> None:
        if not self._filling:
            self._fill(self.current)
            self._changed()

    def on_view_choice(self) -> None:
        if self.current is not None:
            self._go_to(self.current)

    def on_header(self, column: int) -> None:
        """A press on a title sorts by it, a second one the other way round, a third one as at first."""
        before, descending = self._sorting
        self._sorting = (column, False) if before != column else (column, True) if not descending else (-1, False)
        header = self.ui.findingsTable.horizontalHeader()
        header.setSortIndicatorShown(self._sorting[0] >= 0)
        if self._sorting[0] >= 0:
            header.setSortIndicator(column, qt.Qt.DescendingOrder if self._sorting[1] else qt.Qt.AscendingOrder)
        self._fill(self.current)

    # what is shown

    def show_case(self, case: Case | None) -> None:
        """None clears the table. The same finding stays chosen while its Case changes."""
        kept = self.current if case is not None and case.id == self._case_id else None
        self._case_id = case.id if case is not None else ""
        self._all = tuple(case.findings) if case is not None else ()
        self.ui.addButton.enabled = case is not None
        # A chosen finding stays although the filter would hide it: its thresholds may be on their way.
        self._fill(kept, always=kept)

    @property
    def current(self) -> CaseFinding | None:
        row = self.ui.findingsTable.currentRow()
        return self._rows[row] if 0 <= row < len(self._rows) else None

    def _fill(self, kept: CaseFinding | None, *, always: CaseFinding | None = None) -> None:
        self._filling = True
        table = self.ui.findingsTable
        table.blockSignals(True)
        states = dict(FILTERS)[self.filter]
        words = self.ui.filterEdit.text.casefold().split()
        wanted = [
            f
            for f in self._all
            if (f.state in states and all(word in _searched(f) for word in words)) or (always is not None and _same(f, always))
        ]
        self._rows = self._sorted(wanted)
        self._items = []  # Python keeps the items alive: the table of PythonQt does not own what it is given
        table.setRowCount(len(self._rows))
        for row, finding in enumerate(self._rows):
            self._fill_row(row, finding)
        row = next((n for n, f in enumerate(self._rows) if kept is not None and _same(f, kept)), -1)
        table.clearSelection()
        table.setCurrentCell(row, FINDING if row >= 0 else -1)
        table.blockSignals(False)
        self._filling = False
        self._show_hint()
        self._show_selected()

    def _sorted(self, findings: list[CaseFinding]) -> list[CaseFinding]:
        column, descending = self._sorting
        worst_first = sorted(findings, key=lambda f: (STATE_ORDER.get(f.state, 9), -(f.probability or 0.0)))
        keys: dict[int, Callable[[Any], Any]] = {
            FINDING: lambda f: f.display,
            STATE: lambda f: STATE_ORDER.get(f.state, 9),
            PROBABILITY: lambda f: f.probability,
            PLACE: lambda f: side_and_place(f) or None,
            SIZE: lambda f: f.size_mm,
        }
        if column not in keys:
            return worst_first
        key = keys[column]
        known = sorted((f for f in worst_first if key(f) is not None), key=key, reverse=descending)
        return known + [f for f in worst_first if key(f) is None]  # what has no value comes last, whichever way round

    def _fill_row(self, row: int, finding: CaseFinding) -> None:
        own = f" {MARK_OF_A_PERSON}" if finding.overruling is not None else ""
        cells = (
            _capital(finding.display) + own,
            f"{STATE_SIGNS.get(finding.state, '')} {state_word(finding.state)}".strip(),
            percent(finding.probability).replace("\u00a0%", ""),
            side_and_place(finding),
            "" if finding.size_mm is None else f"{finding.size_mm:.0f}",
        )
        tip = "\n".join(part for part in (self._told(finding), _("Click to go there.") if finding.link is not None else "") if part)
        for column, text in enumerate(cells):
            item = qt.QTableWidgetItem(text)
            item.setToolTip(tip)
            if column == STATE:
                item.setForeground(qt.QBrush(qt.QColor(STATE_COLORS.get(finding.state, "#8a8a8a"))))
            if column in (PROBABILITY, SIZE):
                item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
            if finding.stale:
                font = item.font()
                font.setItalic(True)
                item.setFont(font)
            self._items.append(item)
            self.ui.findingsTable.setItem(row, column, item)

    def _show_hint(self) -> None:
        shown = {id(finding) for finding in self._rows}
        hidden = [finding.state for finding in self._all if id(finding) not in shown]
        names = {state: state_word(state) for state in STATE_ORDER}
        counts = [_("{n} {state}").format(n=hidden.count(state), state=names[state]) for state in STATE_ORDER if state in hidden]
        hint = self.ui.findingsHint
        if not self._all:
            hint.text = _("No analysis yet.")
        elif not hidden:
            hint.text = ""
        elif self._rows:
            hint.text = _("Besides these: {others}.").format(others=", ".join(counts))
        else:
            hint.text = _("None of these; {others}.").format(others=", ".join(counts))
        hint.visible = bool(hint.text)

    def _told(self, finding: CaseFinding) -> str:
        """In a sentence or two: why a state is what it is, and whose it is."""
        lines = []
        mine = finding.overruling
        if finding.by_person:
            lines.append(_("{mark} Added by you; no model stands behind it.").format(mark=MARK_OF_A_PERSON))
        elif mine is not None and mine.machine_state is not None:
            text = _("{mark} By your thresholds. By the model's own: {state}.")
            lines.append(text.format(mark=MARK_OF_A_PERSON, state=state_word(mine.machine_state)))
        if finding.reason:
            lines.append(_capital(finding.reason) + ("" if finding.reason.endswith(".") else "."))
        if finding.stale:
            lines.append(_("Out of date: a segment that it rests on was edited."))
        if finding.link is None and finding.state != "not_assessed":
            lines.append(_("No place is known."))
        return "\n".join(lines)

    def _show_selected(self) -> None:
        """What stands under the table about the chosen finding, and its thresholds."""
        finding, ui = self.current, self.ui
        ui.selectedLabel.text = self._told(finding) if finding is not None else ""
        ui.selectedLabel.visible = bool(ui.selectedLabel.text)
        ui.removeAddedButton.enabled = finding is not None and finding.by_person
        places = [f for f in self._rows if f.link is not None]
        ui.previousButton.enabled = ui.nextButton.enabled = bool(places)
        can = finding is not None and finding.probability is not None and not finding.by_person
        for widget in (ui.absentBelow, ui.presentFrom):
            widget.enabled = can
        ui.modelThresholdsButton.enabled = can and finding is not None and finding.overruling is not None
        if finding is None or not can:
            ui.thresholdsLabel.text = _("Choose a finding that was assessed.")
            return
        model, mine = self._model_thresholds(finding.name), finding.overruling
        low, high = model if model is not None else (0.5, 0.5)
        if mine is not None and mine.absent_below is not None and mine.present_from is not None:
            low, high = mine.absent_below, mine.present_from
        self._filling = True
        ui.absentBelow.setValue(100 * low)
        ui.presentFrom.setValue(100 * high)
        self._filling = False
        name = _capital(finding.display)
        if model is None:
            ui.thresholdsLabel.text = _("{name}: the model's own thresholds are not known here.").format(name=name)
        else:
            text = _("{name}, probability {p}. The model's own: {low:.0f} and {high:.0f} %.")
            ui.thresholdsLabel.text = text.format(name=name, p=percent(finding.probability), low=100 * model[0], high=100 * model[1])

    # what the user does

    def on_row(self, row: int) -> None:
        self._show_selected()
        if 0 <= row < len(self._rows) and self._rows[row].link is not None:
            self._go_to(self._rows[row])

    def next(self) -> None:
        self._step(1)

    def previous(self) -> None:
        self._step(-1)

    def _step(self, direction: int) -> None:
        """To the next row that has a place, round the end."""
        count = len(self._rows)
        start = self.ui.findingsTable.currentRow()
        if start < 0:
            start = -1 if direction > 0 else count
        for distance in range(1, count + 1):
            row = (start + direction * distance) % count
            if self._rows[row].link is not None:
                self.ui.findingsTable.setCurrentCell(row, FINDING)
                if row == start:
                    self.on_row(row)  # the only one: the view may have been moved away
                return

    def on_threshold(self) -> None:
        """Live: the state follows from the stored probability. The other bound gives way, so that they never cross."""
        finding, ui = self.current, self.ui
        if self._filling or finding is None or finding.probability is None or finding.by_person:
            return
        low, high = ui.absentBelow.value / 100, ui.presentFrom.value / 100
        mine = finding.overruling
        model = self._model_thresholds(finding.name) or (0.5, 0.5)
        before_high = mine.present_from if mine is not None and mine.present_from is not None else model[1]
        if low > high:
            moved_high = abs(high - before_high) > 1e-9
            low, high = (high, high) if moved_high else (low, low)
        name = finding.name
        self._change(lambda case: set_thresholds(case, name, low, high))

    def on_model_thresholds(self) -> None:
        finding = self.current
        if finding is not None:
            self._change(lambda case: reset_thresholds(case, finding.name))

    def on_add_name(self) -> None:
        """Only what has a side is asked for one."""
        index = self.ui.addName.currentIndex
        self.ui.addSide.enabled = 0 <= index < len(self._known) and self._known[index].sided

    def on_add(self) -> None:
        ui = self.ui
        known = self._known[ui.addName.currentIndex]
        state = STATES_OF_A_PERSON[ui.addState.currentIndex]
        side = SIDES[ui.addSide.currentIndex] if known.sided else None
        point, structure = self._place()
        site = structure if structure in known.sites else None
        self._change(lambda case: add_finding(case, known.name, point_ras_mm=point, state=state, side=side, site=site))

    def on_remove(self) -> None:
        finding = self.current
        if finding is not None and finding.by_person:
            self._change(lambda case: remove_finding(case, finding))

    def say(self, text: str) -> None:
        """A message in this panel; none when empty."""
        self.ui.findingsMessage.text = text
        self.ui.findingsMessage.visible = bool(text)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def side_and_place(finding: CaseFinding) -> str:
    """Side and place in one; a place whose name holds the side says it once."""
    side, place = side_word(finding.side), place_word(finding.site)
    if place and (not side or side.casefold() in place.casefold().split()):
        return place
    return ", ".join(part for part in (side, place) if part)


def _searched(finding: CaseFinding) -> str:
    """What the words of the filter are looked for in."""
    parts = (finding.display, finding.name, side_word(finding.side), place_word(finding.site), state_word(finding.state))
    return " ".join(parts).casefold()


def _same(one: CaseFinding, other: CaseFinding) -> bool:
    """Whether two records are about the same finding, before and after a change."""
    if one.by_person or other.by_person:
        return one.by_person and other.by_person and (one.name, one.link) == (other.name, other.link)
    return one.name == other.name
