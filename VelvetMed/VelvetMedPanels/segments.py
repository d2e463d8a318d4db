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
OLD = "#c2571a"


class SegmentsPanel:
    """Calls go_to_segment(segment) when a row is chosen, recompute() when figures are wanted anew."""

    def __init__(self, section: Any, go_to_segment: Callable[[Any], None], recompute: Callable[[], None] = lambda: None) -> None:
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
        self.ui.lesionsButton.connect("toggled(bool)", self.on_lesions)
        self.ui.recomputeButton.connect("clicked(bool)", recompute)
        self.show_case(None, None)

    def show_case(self, case: Case | None, segmentation_node: Any) -> None:
        """None clears the table."""
        self._node = segmentation_node
        hint = self.ui.segmentsHint
        hint.text = "" if case is None or case.segments else _("This analysis has no segments.")
        hint.visible = bool(hint.text)
        self._rows = sorted(case.segments, key=lambda s: (s.kind != "lesion", s.label)) if case is not None else []
        self._items = []  # Python keeps the items alive: the table of PythonQt does not own what it is given
        table = self.ui.segmentsTable
        table.blockSignals(True)
        table.setRowCount(len(self._rows))
        for row, segment in enumerate(self._rows):
            self._fill_row(row, segment)
        table.setCurrentCell(-1, -1)
        table.blockSignals(False)
        self._show_buttons()

    def _show_buttons(self) -> None:
        """The buttons as the scene has it: a reloaded scene may show surfaces, or lesions alone."""
        display = self._display()
        has_lesions = any(segment.kind == "lesion" for segment in self._rows)
        there = set(self._node.GetSegmentation().GetSegmentIDs()) if display is not None else set()
        organs = [segment.name for segment in self._rows if segment.kind == "organ" and segment.name in there]
        hidden = display is not None and bool(organs) and not any(display.GetSegmentVisibility(name) for name in organs)
        surfaces = display is not None and _has_surfaces(self._node) and bool(display.GetVisibility3D())
        states = ((self.ui.show3dButton, surfaces, bool(self._rows)), (self.ui.lesionsButton, hidden, has_lesions))
        for button, checked, useful in states:
            button.blockSignals(True)
            button.checked = checked
            button.blockSignals(False)
            button.enabled = display is not None and useful

    def _display(self) -> Any:
        node = self._node
        return node.GetDisplayNode() if node is not None and node.GetScene() is not None else None

    def _fill_row(self, row: int, segment: Segment) -> None:
        at_least = "≥ " if segment.truncated else ""
        name = segment.display[:1].upper() + segment.display[1:]
        cells = (
            "",
            f"{name}\u00a0⚠" if segment.stale else f"{name}\u00a0✎" if segment.edited else name,
            f"{at_least}{segment.volume_ml:.1f}" if segment.volume_ml < 100 else f"{at_least}{segment.volume_ml:.0f}",
            "" if segment.mean_hu is None else f"{segment.mean_hu:.0f}",
        )
        for column, text in enumerate(cells):
            item = qt.QTableWidgetItem(text)
            if column == SWATCH:
                item.setBackground(qt.QBrush(qt.QColor(*segment.color)))
            if column in (VOLUME, MEAN):
                item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
            item.setToolTip(self._tip(segment))
            if segment.stale and column in (NAME, VOLUME, MEAN):
                item.setForeground(qt.QBrush(qt.QColor(OLD)))
            self._items.append(item)
            self.ui.segmentsTable.setItem(row, column, item)

    def _tip(self, segment: Segment) -> str:
        lines = []
        if segment.stale:
            lines.append(_("Edited since it was measured: these figures are out of date."))
        elif segment.edited:
            lines.append(_("Edited by hand and measured again."))
        if segment.truncated:
            lines.append(_("Cut off by the border of the scan: the whole is larger."))
        code = segment.code
        lines.append(_("SNOMED CT {code}, {meaning}").format(code=code.value, meaning=code.meaning) if code.value else _("No code."))
        return "\n".join(lines)

    def show_stale(self, text: str, *, can_recompute: bool) -> None:
        """What is out of date and how far it is with being mended; empty: nothing."""
        self.ui.staleLabel.text = text
        self.ui.staleFrame.visible = bool(text)
        self.ui.recomputeButton.enabled = can_recompute

    def on_row(self, row: int) -> None:
        if 0 <= row < len(self._rows):
            self._go_to_segment(self._rows[row])

    def on_3d(self, shown: bool) -> None:
        """Surfaces of two dozen segments take seconds: made on this press, never with the result."""
        display = self._display()
        if display is None:
            return
        if shown:
            with slicer.util.WaitCursor():
                self._node.CreateClosedSurfaceRepresentation()
        display.SetVisibility3D(shown)

    def on_lesions(self, only: bool) -> None:
        """Hides the organs, or shows them again."""
        display = self._display()
        if display is None:
            return
        was_modifying = display.StartModify()
        for segment in self._rows:
            if segment.kind == "organ" and self._node.GetSegmentation().GetSegment(segment.name) is not None:
                display.SetSegmentVisibility(segment.name, not only)
        display.EndModify(was_modifying)


def _has_surfaces(node: Any) -> bool:
    return bool(
        node.GetSegmentation().ContainsRepresentation(slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName())
    )
