"""What the views show of a finding: the place, the fitting window, its segment, its callipers, and on request its heat-map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer
from slicer.i18n import tr as _

from VelvetMedCore.logic import Update, VelvetMedLogic
from VelvetMedCore.navigation import jump_to, show_segment
from VelvetMedCore.overlays import add_axes, add_heatmap, clear_axes, find_heatmap, is_marked, lesion_callipers, show_over
from VelvetMedCore.windows import fitting_window, set_window
from VelvetMedLib.errors import VelvetMedError
from VelvetMedLib.reports import ontology
from VelvetMedPanels.common import error_text

if TYPE_CHECKING:
    from VelvetMedLib.case import Case, CaseFinding

HEATMAP_RUN = "heatmap"


class FindingViews:
    """watch is called when the worker was asked for a heat-map; say shows a message beside the findings."""

    def __init__(self, logic: VelvetMedLogic, watch: Callable[[], None], say: Callable[[str], None]) -> None:
        self._logic, self._watch, self._say = logic, watch, say
        self._wanted: tuple[Case, CaseFinding] | None = None  # whose heat-map is to be seen now

    def show(self, case: Case, finding: CaseFinding, volume_node: Any, *, window: str, heatmap: bool, axes: bool) -> None:
        """window: fitting, own (as it is), or the name of a window."""
        if finding.link is None:
            return
        self._say("")
        jump_to(finding.link.center_ras_mm)
        segment = case.segment(finding.link.label) if finding.link.label is not None else None
        segmentation = self._logic.nodes().segmentation
        if segment is not None and not heatmap:  # filled segments would cover the map
            show_segment(segmentation, segment.name)
        if window != "own":
            set_window(volume_node, fitting_window(finding.name) if window == "fitting" else window)
        lines = None
        if axes and segment is not None and finding.link.kind == "lesion":
            lines = lesion_callipers(segmentation, segment.name, finding.link.center_ras_mm)
        if lines is not None:
            add_axes(lines, case_id=case.id, finding=finding.name)
        else:
            clear_axes()
        self._show_heatmap(case, finding, heatmap)

    def _show_heatmap(self, case: Case, finding: CaseFinding, wanted: bool) -> None:
        self._wanted = (case, finding) if wanted and not finding.by_person and has_map(finding.name) else None
        if wanted and not finding.by_person and self._wanted is None:
            self._say(_("This finding is measured on whole organs: there is no heat-map of it."))
        self._show_wanted()

    def _show_wanted(self) -> None:
        """The wanted heat-map, asked for where the scene does not hold it and the worker is free; else as soon as it is."""
        if self._wanted is None:
            show_over(None)
            return
        case, finding = self._wanted
        node = find_heatmap(case.id, finding.name)
        show_over(node)
        if node is not None and not is_marked(node):
            self._say(_("Nothing is marked: everywhere in the scan the probability is below the model's threshold."))
        if node is None and not self._logic.busy:
            self._ask_for_heatmap(case, finding)

    def _ask_for_heatmap(self, case: Case, finding: CaseFinding) -> None:
        try:
            folder = self._logic.case_folder() / "heatmaps"
            folder.mkdir(exist_ok=True)
            params = {
                "case": str(folder.parent),
                "phrase": finding.display,
                "out": str(folder / f"{finding.name}.nii.gz"),
                "scan_grid": False,
                **self._logic.model_params(),
            }
            self._logic.start_request("ground", params, name=HEATMAP_RUN, about=(case.id, finding.name, finding.display))
        except VelvetMedError as error:
            self._say(error_text(error))
            return
        self._watch()

    def take(self, update: Update) -> None:
        """News of a heat-map that was asked for."""
        if update.kind == "progress":
            return
        case_id, finding, display = update.about
        if update.kind == "done":
            try:
                marked = bool(update.data.get("marked", True))
                with slicer.util.WaitCursor():
                    add_heatmap(Path(str(update.data.get("heatmap"))), case_id=case_id, finding=finding, title=display, marked=marked)
            except VelvetMedError as error:
                self._say(error_text(error))
                return
        elif update.error is not None:
            self._say(error_text(update.error))
        if update.kind != "done" and self._wanted is not None and self._wanted[1].name == finding:
            self._wanted = None  # it was asked for in vain: not again before the user asks
        self._show_wanted()

    def forget(self) -> None:
        """Nothing is shown any more; the scene is not touched."""
        self._wanted = None
        self._say("")


def has_map(finding: str) -> bool:
    """Whether a finding has a lesion map; the others are measured on organs."""
    return any(entry.name == finding and entry.lesion is not None for entry in ontology().findings)
