"""What belongs to the analysis once it is there: edited segments, what they make stale, similar scans, and saving."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer
from slicer.i18n import tr as _

from VelvetMedCore.logic import Update, VelvetMedLogic
from VelvetMedCore.saving import ENCODING, save_case, save_report, save_segments
from VelvetMedCore.segment_figures import keep_table, remeasured, unmeasured
from VelvetMedCore.segment_watch import SegmentWatch
from VelvetMedCore.side_by_side import SideBySide, add_scan, offset_mm, organ_centers
from VelvetMedCore.volumes import read_volume_node
from VelvetMedLib.case import Case, CaseFinding, Report
from VelvetMedLib.case.editing import anything_stale, mark_edited, sentences, take_revised
from VelvetMedLib.case.overruling import reworded
from VelvetMedLib.errors import CaseError, VelvetMedError
from VelvetMedPanels.common import error_text

if TYPE_CHECKING:
    from VelvetMedPanels.board import Board

LOG = logging.getLogger("VelvetMed")
RECOMPUTE, INDEX, SEARCH, OPEN = "recompute", "index", "search", "open"
RUNS = (RECOMPUTE, INDEX, SEARCH, OPEN)
HITS = 5


class Reviewing:
    """The board's hand for everything that keeps, compares and saves. Panels of its own: report, segments, similar, save."""

    def __init__(self, board: Board, logic: VelvetMedLogic, watch: Callable[[], None]) -> None:
        self._board, self._logic, self._watch = board, logic, watch
        self._segments: SegmentWatch | None = None
        self._beside = SideBySide()
        self._note = ""

    # segments that a person edits

    def show(self, case: Case | None) -> None:
        """Follows the segmentation of the analysis, keeps its table, and says what is out of date."""
        node = self._logic.nodes().segmentation if case is not None else None
        another = self._segments is not None and self._segments.node is not node
        if self._segments is not None and another:
            self._segments.stop()
            self._segments = None
        if node is not None and self._segments is None:
            self._segments = SegmentWatch(node, self.on_edited)
        if case is not None and node is not None:
            keep_table(case, new=another)  # an earlier analysis keeps its own
        self.show_stale(case)

    def stop(self) -> None:
        """Lets go of the segmentation."""
        if self._segments is not None:
            self._segments.stop()
            self._segments = None
        self._beside.forget()
        self._note = ""

    def on_edited(self, names: frozenset[str]) -> None:
        """Voxels changed: what rests on them is marked at once, and nothing else happens until Recompute is pressed."""
        self._note = ""
        self._board.change(lambda case: mark_edited(case, names))

    def show_stale(self, case: Case | None) -> None:
        """What is out of date, where it can be seen; the button only where a second look would change something."""
        text, useful = self._note, bool(self._note)
        if case is not None and not text:
            text, useful = self._stale_words(case)
        for panel in (self._board.report, self._board.segments):
            panel.show_stale(text, can_recompute=useful and not self._logic.busy)

    def _stale_words(self, case: Case) -> tuple[str, bool]:
        names = [segment.display for segment in case.segments if segment.stale]
        node = self._logic.nodes().segmentation
        names += [node.GetSegmentation().GetSegment(n).GetName() for n in unmeasured(case, node)] if node is not None else []
        stale = [sentence for _place, _section, sentence in sentences(case) if sentence.stale]
        lines = [_("Edited since measured: {segments}.").format(segments=", ".join(names))] if names else []
        if len(stale) == 1:
            lines.append(_("One sentence is out of date."))
        elif stale:
            lines.append(_("{n} sentences are out of date.").format(n=len(stale)))
        elif any(finding.stale for finding in case.findings):
            lines.append(_("Findings are out of date."))
        of_model = any(not sentence.by_person for sentence in stale) or any(finding.stale for finding in case.findings)
        if stale and not names and not of_model:
            lines.append(_("The words are yours: accept them if they still hold, or change them."))
        return " ".join(lines), bool(names) or of_model

    def recompute(self) -> None:
        """First the figures, here and at once; then the findings and sentences that rest on them, in the worker."""
        self._note = ""
        try:
            case, node, volume = self._logic.case(), self._logic.nodes().segmentation, self._logic.case_volume()
            if case is None or node is None or volume is None:
                raise _no_scan()
            with slicer.util.WaitCursor():
                voxels_kji, ijk_to_ras = read_volume_node(volume)
                measured, labels_kji, edited = remeasured(case, node, voxels_kji, ijk_to_ras)
                measured = reworded(measured)  # what a person's thresholds contradicted needs no second look
                self._logic.change_case(measured)
                self._board.show(measured)
                if anything_stale(measured) or edited:
                    params = {
                        **self._logic.draft_params(),
                        "volume": self._logic.hand_over_array(voxels_kji, ijk_to_ras),
                        "labels": self._logic.hand_over_array(labels_kji, ijk_to_ras),
                        "edited": list(edited),
                        **self._logic.model_params(),
                    }
                    self._logic.start_request("report", params, name=RECOMPUTE)
        except VelvetMedError as error:
            self._recompute_failed(error)
            return
        if self._logic.busy:
            self._note = _("Looking again at what was edited...")
            self.show_stale(self._logic.case())
            self._began()

    def _recompute_failed(self, error: VelvetMedError) -> None:
        self._note = error_text(error)
        self.show_stale(self._logic.case())

    def _revised(self, data: dict[str, Any]) -> None:
        findings = tuple(map(CaseFinding.from_dict, data["findings"]))
        report = Report.from_dict(data["report"])
        self._note = ""
        self._board.change(lambda case: take_revised(case, findings, report))

    # similar scans

    def build(self, scans: Path, index: Path) -> None:
        params = {"folder": str(scans), "out": str(index), "keep_places": True}
        self._start("index", params, INDEX)

    def search(self, index: Path, text: str | None, organ: str | None) -> None:
        """By words, or by the scan that is open or one organ of it: its analysis where there is one of this model, else its voxels."""
        params: dict[str, Any] = {"index": str(index), "count": HITS, **({"region": organ} if organ else {})}
        if text is not None:
            self._start("similar", {**params, "text": text}, SEARCH)
            return
        try:
            params |= self._query()
        except VelvetMedError as error:
            self._board.similar.failed(error)
            return
        self._start("similar", params, SEARCH)

    def _query(self) -> dict[str, Any]:
        case, volume = self._logic.case(), self._board.analyze.volume
        own = {"exclude": case.input.sha256} if case is not None and volume is self._logic.case_volume() else {}
        if own:
            folder = self._logic.case_folder()
            if (folder / ENCODING).is_file() and self._board.model_folder() == self._logic.model_params().get("bundle"):
                return {"case": str(folder), **own}
        with slicer.util.WaitCursor():
            return {"volume": self._logic.hand_over(volume), **own}

    def open_hit(self, index: Path, number: int) -> None:
        out = self._logic.private_folder() / "scan.npy"
        self._start("similar", {"index": str(index), "open": number, "out": str(out)}, OPEN)

    def _opened(self, data: dict[str, Any]) -> None:
        case, volume = self._logic.case(), self._board.analyze.volume
        number = int(data["number"])
        with slicer.util.WaitCursor():
            shift = offset_mm(organ_centers(case), data.get("centers", {})) if case is not None else None
            other = add_scan(Path(data["npy"]), data["ijk_to_ras"], number, shift)
            if volume is not None:
                self._beside.open(volume, other)
        laid = (
            _("laid over the open scan by the organs that both show")
            if shift is not None
            else _("not laid over it: too few organs in common")
        )
        self._board.similar.idle(_("Scan {n} is beside the open scan, {how}.").format(n=number, how=laid))

    def close_beside(self) -> None:
        self._beside.close()
        self._board.refresh_similar()

    @property
    def is_beside(self) -> bool:
        return self._beside.is_open

    def _start(self, verb: str, params: dict[str, Any], name: str) -> None:
        model = self._board.model_folder()
        device = {"device": self._logic.settings.device}
        try:
            self._logic.start_request(verb, {**params, **({"bundle": model} if model else {}), **device}, name=name)
        except VelvetMedError as error:
            self._board.similar.failed(error)
            return
        if name in (INDEX, SEARCH):
            self._logic.settings.index_folder = str(params.get("out") or params.get("index"))
        self._board.similar.running()
        self._began()

    # what the worker says

    def _began(self) -> None:
        self._board.busy(True)
        self._watch()

    def take(self, update: Update) -> None:
        """One piece of news of a run of this hand."""
        similar = self._board.similar
        if update.kind == "progress":
            if update.name != RECOMPUTE:
                similar.progress(update.fraction, update.stage, update.seconds_left)
            return
        self._board.busy(False)
        if update.kind == "failed" and update.error is not None:
            LOG.warning("A run failed: %s", update.error.what)
            if update.name == RECOMPUTE:
                self._recompute_failed(update.error)
            else:
                similar.failed(update.error)
        elif update.kind == "cancelled":
            self._note = ""
            similar.idle(_("Stopped. Scans that were added are kept.") if update.name == INDEX else _("Stopped. Nothing was changed."))
        elif update.name == RECOMPUTE:
            self._revised(update.data)
        elif update.name == INDEX:
            data = update.data
            similar.built(int(data.get("added", 0)), int(data.get("count", 0)), [str(line) for line in data.get("skipped", [])])
        elif update.name == SEARCH:
            similar.show_hits(list(update.data.get("hits", [])), int(update.data.get("count", 0)))
        elif update.name == OPEN:
            self._opened(update.data)
        self.show_stale(self._logic.case())
        self._board.refresh_similar()

    # saving

    def save(self, what: str, folder: Path) -> Path:
        """Raises VelvetMedError."""
        case, node = self._logic.case(), self._logic.nodes().segmentation
        if case is None:
            raise _no_scan()
        if what == "report":
            return save_report(case, folder)
        if what == "segments":
            return save_segments(node, folder)
        return save_case(case, node, self._logic.case_volume(), folder, encoding=self._logic.case_folder())


def _no_scan() -> CaseError:
    return CaseError(
        _("The scan of this analysis is not in the scene."),
        found=_("no scan, or no segments"),
        expected=_("the scan that was analysed, with its segments"),
        next_step=_("Load the scan and press Apply for a new analysis."),
    )
