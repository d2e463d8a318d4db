"""Findings: a table of finding, state with probability, side, place and size; a click goes there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import qt
from slicer.i18n import tr as _

from VelvetMedPanels.common import STATE_COLORS, STATE_ORDER, STATE_SIGNS, load_into, percent, place_word, side_word, state_word

if TYPE_CHECKING:
    from VelvetMedLib.case import Case, CaseFinding

RELEVANT = ("present", "uncertain")
FINDING, STATE, SIDE, PLACE, SIZE = range(5)


class FindingsPanel:
    """Calls go_to(link) when a finding with a place is chosen."""

    def __init__(self, section: Any, go_to: Callable[[Any], None], changed: Callable[[], None]) -> None:
        self.ui = load_into(section, "Findings")
        self._go_to, self._changed = go_to, changed
        self._all: tuple[CaseFinding, ...] = ()
        self._rows: list[CaseFinding] = []
        self._items: list[Any] = []
        table = self.ui.findingsTable
        header = table.horizontalHeader()
        header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        for column in (FINDING, PLACE):
            header.setSectionResizeMode(column, qt.QHeaderView.Stretch)
        header.setMinimumSectionSize(24)
        table.verticalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        table.connect("cellClicked(int,int)", self.on_row)
        table.connect("currentCellChanged(int,int,int,int)", self.on_row)
        self.ui.relevantOnly.connect("toggled(bool)", self.on_filter)
        self.show_case(None)

    @property
    def relevant_only(self) -> bool:
        return bool(self.ui.relevantOnly.checked)

    def on_filter(self) -> None:
        self._fill()
        self._changed()

    def show_case(self, case: Case | None) -> None:
        """None clears the table."""
        self._all = tuple(case.findings) if case is not None else ()
        self._fill()

    def _fill(self) -> None:
        table = self.ui.findingsTable
        table.blockSignals(True)
        wanted = [finding for finding in self._all if finding.state in RELEVANT or not self.relevant_only]
        self._rows = sorted(wanted, key=lambda f: (STATE_ORDER.get(f.state, 9), -(f.probability or 0.0)))
        self._items = []  # Python keeps the items alive: the table of PythonQt does not own what it is given
        table.setRowCount(len(self._rows))
        for row, finding in enumerate(self._rows):
            self._fill_row(row, finding)
        table.clearSelection()
        table.setCurrentCell(-1, -1)
        table.blockSignals(False)
        shown = {id(finding) for finding in self._rows}
        hidden = [finding.state for finding in self._all if id(finding) not in shown]
        others = _("{absent} absent, {unknown} not assessed.").format(absent=hidden.count("absent"), unknown=hidden.count("not_assessed"))
        hint = self.ui.findingsHint
        if not self._all:
            hint.text = _("No analysis yet.")
        elif not self._rows:
            hint.text = _("Nothing present or uncertain; {others}").format(others=others)
        else:
            hint.text = _("Besides these: {others}").format(others=others) if hidden else ""
        hint.visible = bool(hint.text)

    def _fill_row(self, row: int, finding: CaseFinding) -> None:
        cells = (
            finding.display[:1].upper() + finding.display[1:],
            f"{STATE_SIGNS.get(finding.state, '')} {state_word(finding.state)}\n{percent(finding.probability)}".strip(),
            side_word(finding.side),
            place_word(finding.site),
            "" if finding.size_mm is None else f"{finding.size_mm:.0f}",
        )
        tip = finding.reason or (_("Click to go there.") if finding.link is not None else _("No place is known."))
        for column, text in enumerate(cells):
            item = qt.QTableWidgetItem(text)
            item.setToolTip(tip)
            if column == STATE:
                item.setForeground(qt.QBrush(qt.QColor(STATE_COLORS.get(finding.state, "#8a8a8a"))))
            self._items.append(item)
            self.ui.findingsTable.setItem(row, column, item)

    def on_row(self, row: int) -> None:
        if 0 <= row < len(self._rows) and self._rows[row].link is not None:
            self._go_to(self._rows[row].link)
