"""Segments: name, volume in ml and mean HU of each; a click goes there; surfaces only on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import qt
import slicer
from slicer.i18n import tr as _

from VelvetMedPanels.common import load_into

if TYPE_CHECKING:
    from VelvetMedLib.case import Case, Segment

SWATCH, NAME, VOLUME, MEAN = range(4)


class SegmentsPanel:
    """Calls go_to_segment(segment) when a row is chosen."""

    def __init__(self, section: Any, go_to_segment: Callable[[Any], None]) -> None:
        self.ui = load_into(section, "Segments")
        self._go_to_segment = go_to_segment
        self._rows: list[Segment] = []
        self._items: list[Any] = []
        self._node: Any = None
        table = self.ui.segmentsTable
        header = table.horizontalHeader()
        header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(NAME, qt.QHeaderView.Stretch)
        header.setMinimumSectionSize(18)
        table.verticalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        table.connect("cellClicked(int,int)", self.on_row)
        table.connect("currentCellChanged(int,int,int,int)", self.on_row)
        self.ui.show3dButton.connect("toggled(bool)", self.on_3d)
        self.show_case(None, None)

    def show_case(self, case: Case | None, segmentation_node: Any) -> None:
        """None clears the table."""
        self._node = segmentation_node
        self._rows = sorted(case.segments, key=lambda s: (s.kind != "lesion", s.label)) if case is not None else []
        self._items = []  # Python keeps the items alive: the table of PythonQt does not own what it is given
        table = self.ui.segmentsTable
        table.blockSignals(True)
        table.setRowCount(len(self._rows))
        for row, segment in enumerate(self._rows):
            self._fill_row(row, segment)
        table.setCurrentCell(-1, -1)
        table.blockSignals(False)
        button = self.ui.show3dButton
        button.blockSignals(True)
        button.checked = False
        button.blockSignals(False)
        button.enabled = segmentation_node is not None and bool(self._rows)

    def _fill_row(self, row: int, segment: Segment) -> None:
        at_least = "≥ " if segment.truncated else ""
        cells = (
            "",
            segment.display[:1].upper() + segment.display[1:],
            f"{at_least}{segment.volume_ml:.1f}" if segment.volume_ml < 100 else f"{at_least}{segment.volume_ml:.0f}",
            "" if segment.mean_hu is None else f"{segment.mean_hu:.0f}",
        )
        for column, text in enumerate(cells):
            item = qt.QTableWidgetItem(text)
            if column == SWATCH:
                item.setBackground(qt.QBrush(qt.QColor(*segment.color)))
            if column in (VOLUME, MEAN):
                item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
            if column == VOLUME and segment.truncated:
                item.setToolTip(_("Cut off by the border of the scan: the whole is larger."))
            self._items.append(item)
            self.ui.segmentsTable.setItem(row, column, item)

    def on_row(self, row: int) -> None:
        if 0 <= row < len(self._rows):
            self._go_to_segment(self._rows[row])

    def on_3d(self, shown: bool) -> None:
        """Surfaces of two dozen segments take seconds: made on this press, never with the result."""
        node = self._node
        if node is None or node.GetScene() is None:
            return
        if shown:
            with slicer.util.WaitCursor():
                node.CreateClosedSurfaceRepresentation()
        node.GetDisplayNode().SetVisibility3D(shown)
