"""The module's logic: one worker, one job at a time, results into the scene. No qt: a widget or a script calls `poll`."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import slicer

from VelvetMedCore.library import library_root
from VelvetMedCore.parameters import parameter_node, read_parameters, write_parameters
from VelvetMedCore.protocols import WorkerConnection, WorkerEvent
from VelvetMedCore.results import ResultNodes, case_from_text, case_to_text, insert_case
from VelvetMedCore.runner import Surroundings, worker_command
from VelvetMedCore.settings import Settings
from VelvetMedCore.volumes import read_volume_node
from VelvetMedLib.case import Answer, Case, Link, read_case, report_markdown
from VelvetMedLib.errors import Cancelled, CaseError, VelvetMedError, WorkerError
from VelvetMedLib.worker.client import WorkerClient, error_from

LOG = logging.getLogger("VelvetMed")


@dataclass(frozen=True, kw_only=True)
class Update:
    """What `poll` reports. progress: fraction, stage, seconds_left. result: folder. answer: answer. failed: error."""

    kind: Literal["progress", "result", "answer", "failed", "cancelled"]
    fraction: float = 0.0
    stage: str = ""
    seconds_left: float | None = None
    folder: Path | None = None
    answer: Answer | None = None
    error: VelvetMedError | None = None


@dataclass(kw_only=True)
class _Job:
    request_id: int
    verb: Literal["analyze", "ask"]
    folder: Path
    volume_id: str = ""
    question: str = ""


class VelvetMedLogic:
    """connect makes a worker client when one is needed; tests pass a fake."""

    def __init__(self, connect: Callable[[], WorkerConnection] | None = None) -> None:
        self.settings = Settings()
        self._connect = connect or self._connect_worker
        self._worker: WorkerConnection | None = None
        self._job: _Job | None = None
        self._folders: list[Path] = []
        self._case_folder: tuple[str, Path] | None = None
        self._job_volume_id = ""

    # the worker

    def _connect_worker(self) -> WorkerConnection:
        surroundings = Surroundings(own_env=os.environ, startup_env=slicer.util.startupEnvironment)
        command = worker_command(library_root(), self.settings.own_python, surroundings)
        return WorkerClient(command.argv, command.env, workdir=slicer.app.temporaryPath)

    def _running_worker(self) -> WorkerConnection:
        if self._worker is None:
            self._worker = self._connect()
        self._worker.start()
        return self._worker

    @property
    def busy(self) -> bool:
        """Whether a job runs."""
        return self._job is not None

    def start_analysis(self, volume_node: Any, *, model: str, style: str = "structured") -> None:
        """Hands the volume over and returns at once; what follows comes from `poll`. Raises VelvetMedError."""
        self._refuse_a_second_job()
        voxels_kji, ijk_to_ras = read_volume_node(volume_node)
        worker = self._running_worker()
        folder = Path(tempfile.mkdtemp(prefix="velvetmed-", dir=slicer.app.temporaryPath))
        self._folders.append(folder)
        params = {
            "volume": worker.put_volume(voxels_kji, ijk_to_ras),
            "bundle": model,
            "out": str(folder / "case"),
            "style": style,
        }
        request_id = worker.request("analyze", params)
        self._job = _Job(request_id=request_id, verb="analyze", folder=folder / "case", volume_id=volume_node.GetID())

    def start_question(self, question: str) -> None:
        """Asks about the analysis in the scene. Raises VelvetMedError."""
        self._refuse_a_second_job()
        folder = self._folder_of_case()
        if folder is None:
            raise CaseError(
                "There is no analysis of this session to ask about.",
                found="no analysis, or one from a saved scene",
                expected="an analysis made since Slicer was started",
                next_step="Press Apply first, then ask.",
            )
        request_id = self._running_worker().request("ask", {"case": str(folder), "question": question})
        self._job = _Job(request_id=request_id, verb="ask", folder=folder, question=question)

    def cancel(self) -> None:
        """Asks the running job to stop; the end comes from `poll`. The scene stays as it was."""
        if self._job is not None and self._worker is not None:
            self._worker.cancel(self._job.request_id)

    def stop(self) -> None:
        """Ends the job and the worker with everything it started, at once, and forgets the session's Case folders."""
        self.drop_worker()
        self._case_folder = None
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._folders = []

    def drop_worker(self) -> None:
        """Ends the worker and its job, if any; the next press starts a fresh one."""
        self._job = None
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()  # first by force: close alone would wait for a polite answer
            worker.close()

    def poll(self) -> list[Update]:
        """What happened since the last call. Never waits; call it from a timer of the main thread."""
        if self._worker is None:
            return []
        updates = []
        for event in self._worker.poll():
            update = self._understand(event)
            if update is not None:
                updates.append(update)
        return updates

    def _understand(self, event: WorkerEvent) -> Update | None:
        if event.kind in ("ready", "exit"):
            # The job, if any, gets an error event of its own; a worker that ended while idle is replaced on the next press.
            return None
        job = self._job
        if job is None or event.request_id != job.request_id:
            LOG.info("A %s of an earlier request was dropped.", event.kind)
            return None
        if event.kind == "progress":
            return Update(
                kind="progress",
                fraction=float(event.data.get("fraction", 0.0)),
                stage=str(event.data.get("stage", "")),
                seconds_left=event.data.get("seconds_left"),
            )
        self._job = None
        if event.kind == "result" and job.verb == "analyze":
            self._job_volume_id = job.volume_id
            return Update(kind="result", folder=Path(event.data.get("case", job.folder)))
        if event.kind == "result":
            return self._answered(job, event.data)
        error = error_from(event.data)
        if isinstance(error, Cancelled):
            return Update(kind="cancelled")
        _attach_last_lines(error, event.data.get("stderr"))
        return Update(kind="failed", error=error)

    def _answered(self, job: _Job, data: dict[str, Any]) -> Update:
        link = data.get("link")
        answer = Answer(
            question=job.question,
            answer=str(data.get("answer", "")),
            confidence=data.get("confidence"),
            finding=data.get("finding"),
            link=Link.from_dict(link) if isinstance(link, dict) else link,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        case = self.case()
        node = self.nodes().case
        if case is not None and node is not None:
            node.SetText(case_to_text(replace(case, answers=(*case.answers, answer))))
        return Update(kind="answer", answer=answer)

    def wait(self, timeout_s: float = 600.0) -> list[Update]:
        """Waits for the running job and puts its result into the scene: for scripts and tests, never for a GUI."""
        deadline = time.monotonic() + timeout_s
        updates: list[Update] = []
        while self.busy:
            if time.monotonic() > deadline:
                self.stop()
                raise WorkerError(
                    "The worker did not finish in time.",
                    found=f"no result after {timeout_s:g} s",
                    expected="a result",
                    next_step="Start it again with more time.",
                )
            for update in self.poll():
                if update.kind == "failed" and update.error is not None:
                    raise update.error
                if update.kind == "result":
                    self.insert_result(update)
                updates.append(update)
            time.sleep(0.02)
        return updates

    def _refuse_a_second_job(self) -> None:
        if self.busy:
            raise WorkerError(
                "Another run is still going.",
                found="a run that has not ended",
                expected="one run at a time",
                next_step="Wait for it, or press Cancel.",
            )

    # the scene

    def insert_result(self, update: Update) -> ResultNodes:
        """Puts a finished analysis into the scene, all of it or nothing, and points the parameter node at it."""
        if update.folder is None:
            raise ValueError("only a result carries a folder")
        case = read_case(update.folder)
        volume_node = slicer.mrmlScene.GetNodeByID(self._job_volume_id)
        before = self.nodes().segmentation
        nodes = insert_case(case, update.folder, volume_node)
        if before is not None and before.GetDisplayNode() is not None:
            before.GetDisplayNode().SetVisibility(False)  # an older result may hold edits: it is hidden, not deleted
        node = parameter_node()
        write_parameters(
            node,
            replace(
                read_parameters(node),
                inputVolume=self._job_volume_id if volume_node is not None else None,
                segmentation=nodes.segmentation.GetID(),
                findings=nodes.findings.GetID(),
                report=nodes.report.GetID(),
                case=nodes.case.GetID(),
            ),
        )
        self._case_folder = (nodes.case.GetID(), update.folder)
        return nodes

    def nodes(self) -> ResultNodes:
        """The nodes of the current analysis."""
        node = parameter_node()
        find = node.GetNodeReference
        return ResultNodes(segmentation=find("segmentation"), findings=find("findings"), report=find("report"), case=find("case"))

    def case(self) -> Case | None:
        """The current analysis as the scene holds it, or None. Raises CaseError when another version wrote it."""
        node = self.nodes().case
        return case_from_text(node.GetText()) if node is not None and node.GetText() else None

    def report_text(self) -> str:
        """The draft report, disclaimer first; empty without an analysis."""
        case = self.case()
        return report_markdown(case) if case is not None else ""

    def _folder_of_case(self) -> Path | None:
        node = self.nodes().case
        if node is None or self._case_folder is None:
            return None
        identifier, folder = self._case_folder
        return folder if identifier == node.GetID() and folder.is_dir() else None


def _attach_last_lines(error: VelvetMedError, lines: Any) -> None:
    if isinstance(lines, list) and lines:
        error.add_note("\n".join(map(str, lines[-12:])))
