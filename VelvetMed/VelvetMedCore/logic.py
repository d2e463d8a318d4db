"""The module's logic: one worker, one job at a time, results into the scene. No qt: a widget or a script calls `poll`."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import slicer
from slicer.i18n import tr as _

from VelvetMedCore.drafting import DraftForm, form_of
from VelvetMedCore.library import library_root
from VelvetMedCore.models import list_models
from VelvetMedCore.parameters import parameter_node, read_parameters, write_parameters
from VelvetMedCore.protocols import WorkerConnection, WorkerEvent
from VelvetMedCore.results import VOLUME_ROLE, ResultNodes, case_from_text, case_to_text, fill_findings_table, insert_case
from VelvetMedCore.runner import Surroundings, worker_command
from VelvetMedCore.settings import Settings
from VelvetMedCore.volumes import instance_uids, read_volume_node
from VelvetMedLib.case import About, Answer, Case, Link, read_case, report_markdown, update_case, write_case
from VelvetMedLib.case.sources import write_sources
from VelvetMedLib.errors import Cancelled, CaseError, VelvetMedError, WorkerError
from VelvetMedLib.worker.client import WorkerClient, error_from

LOG = logging.getLogger("VelvetMed")
PARTS = ("segments", "findings", "report")
DEFAULT_FORM = DraftForm()


@dataclass(frozen=True, kw_only=True)
class Update:
    """What `poll` reports. progress: fraction, stage, seconds_left. result: folder. answer: answer. failed: error.

    done: data, the worker's answer to a request of `start_request`. name: whose run it was (the verb, or the name it was given).
    about: what `start_request` was given for the way back.
    """

    kind: Literal["progress", "result", "answer", "done", "failed", "cancelled"]
    name: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    fraction: float = 0.0
    stage: str = ""
    seconds_left: float | None = None
    folder: Path | None = None
    answer: Answer | None = None
    about: Any = None
    error: VelvetMedError | None = None


@dataclass(kw_only=True)
class _Job:
    request_id: int
    verb: str
    name: str = ""
    folder: Path | None = None
    volume_id: str = ""
    instance_uids: tuple[str, ...] = ()
    question: str = ""
    model: str = ""
    writer: str = ""
    about: Any = None


@dataclass(frozen=True, kw_only=True)
class _Session:
    """The Case folder behind the analysis in the scene. model, writer: what to name as `bundle` and `writer` in requests about it."""

    case_node_id: str
    folder: Path
    model: str
    writer: str = ""


class VelvetMedLogic:
    """connect makes a worker client when one is needed; tests pass a fake."""

    def __init__(self, connect: Callable[[], WorkerConnection] | None = None) -> None:
        self.settings = Settings()
        self._connect = connect or self._connect_worker
        self._worker: WorkerConnection | None = None
        self._job: _Job | None = None
        self._folders: list[Path] = []
        self._session: _Session | None = None
        self._folder_text = ""
        self._finished: _Job | None = None

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

    def start_analysis(self, volume_node: Any, *, model: str, form: DraftForm = DEFAULT_FORM, parts: Sequence[str] = PARTS) -> None:
        """Hands the volume over and returns at once; what follows comes from `poll`. form: of the draft. Raises VelvetMedError."""
        self._refuse_a_second_job()
        voxels_kji, ijk_to_ras = read_volume_node(volume_node)
        worker = self._running_worker()
        folder = self._new_folder()
        draft = form.request(self.settings) if "report" in parts else {}
        params = {
            "volume": worker.put_volume(voxels_kji, ijk_to_ras),
            "bundle": model,
            "device": self.settings.device,
            "out": str(folder),
            "parts": list(parts),
            **draft,
        }
        self._job = _Job(
            request_id=worker.request("analyze", params),
            verb="analyze",
            folder=folder,
            volume_id=volume_node.GetID(),
            instance_uids=instance_uids(volume_node),
            model=model,
            writer=draft.get("writer") or "",
        )

    def start_question(self, question: str, about: About | None = None) -> None:
        """Asks about the analysis in the scene; about: the segment or box that is meant, None = all of it. Raises VelvetMedError."""
        self._refuse_a_second_job()
        params: dict[str, Any] = {"case": str(self.case_folder()), "question": question, **self.model_params()}
        if about is not None:
            params["about"] = about.as_dict()
        self._job = _Job(request_id=self._running_worker().request("ask", params), verb="ask", question=question, about=about)

    def start_request(self, verb: str, params: Mapping[str, Any], *, name: str = "", about: Any = None) -> None:
        """Any other request; its answer comes as an update of kind done, with `name` (the verb by default) and `about`.

        Raises VelvetMedError.
        """
        self._refuse_a_second_job()
        self._job = _Job(request_id=self._running_worker().request(verb, dict(params)), verb=verb, name=name, about=about)

    def hand_over(self, volume_node: Any) -> dict[str, Any]:
        """The `volume` parameter of a request about a volume node. Raises VelvetMedError."""
        self._refuse_a_second_job()
        voxels_kji, ijk_to_ras = read_volume_node(volume_node)
        return self._running_worker().put_volume(voxels_kji, ijk_to_ras)

    def hand_over_array(self, array_kji: Any, ijk_to_ras: Any) -> dict[str, Any]:
        """The same for an array that is in no node, such as a label map."""
        self._refuse_a_second_job()
        return self._running_worker().put_volume(array_kji, ijk_to_ras)

    def case_volume(self) -> Any:
        """The node of the scan that was analysed; None where it is no longer in the scene."""
        node = self.nodes().case
        return node.GetNodeReference(VOLUME_ROLE) if node is not None else None

    def model_params(self) -> dict[str, Any]:
        """`bundle` and `device` of a request about the analysis in the scene: the model that made it."""
        case, session = self.case(), self._session
        if session is not None and session.model and self._is_current(session):
            model = session.model
        else:
            known = {entry.id: str(entry.folder) for entry in list_models(library_root())}
            model = known.get(case.model.id, "") if case is not None else ""
        return {"device": self.settings.device, **({"bundle": model} if model else {})}

    def draft_params(self) -> dict[str, Any]:
        """Form and writer of the draft in the scene, for a request that makes it anew. Raises CaseError."""
        case, session = self.case(), self._session
        if case is None:
            raise _no_analysis()
        used = session.writer if session is not None and self._is_current(session) else ""
        return form_of(case, used, self.settings)

    def case_folder(self) -> Path:
        """The Case folder of the analysis in the scene. After a scene was loaded it is made anew, without voxels and encoding.

        Raises CaseError where there is no analysis.
        """
        session, case, node = self._session, self.case(), self.nodes().case
        if session is not None and case is not None and self._is_current(session) and session.folder.is_dir():
            if (text := case_to_text(case)) != self._folder_text:
                update_case(session.folder, case)  # what a person changed since counts in answers, too
                self._folder_text = text
            return session.folder
        if case is None or node is None:
            raise _no_analysis()
        folder = self._new_folder()
        write_case(folder, case)
        self._session = _Session(case_node_id=node.GetID(), folder=folder, model="")
        return folder

    def _is_current(self, session: _Session) -> bool:
        node = self.nodes().case
        return node is not None and node.GetID() == session.case_node_id

    def private_folder(self) -> Path:
        """A new folder that only this user can enter; gone when the scene is closed or the module ends."""
        folder = Path(tempfile.mkdtemp(prefix="velvetmed-", dir=slicer.app.temporaryPath))
        self._folders.append(folder)
        return folder

    def _new_folder(self) -> Path:
        return self.private_folder() / "case"

    def cancel(self) -> None:
        """Asks the running job to stop; the end comes from `poll`. The scene stays as it was."""
        if self._job is not None and self._worker is not None:
            self._worker.cancel(self._job.request_id)

    def stop(self) -> None:
        """Ends the job and the worker with everything it started, at once, and forgets the session's Case folders."""
        self.drop_worker()
        self._session = None
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
        updates: list[Update] = []
        for event in self._worker.poll():
            update = self._understand(event)
            if update is None:
                continue
            if updates and updates[-1].kind == "progress":
                updates.pop()  # of several steps since the last look only the newest is worth drawing
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
        name = job.name or job.verb
        if event.kind == "progress":
            return Update(
                kind="progress",
                name=name,
                fraction=float(event.data.get("fraction", 0.0)),
                stage=str(event.data.get("stage", "")),
                seconds_left=event.data.get("seconds_left"),
            )
        self._job = None
        if event.kind == "result" and job.verb == "analyze":
            self._finished = job
            return Update(kind="result", name=name, folder=Path(event.data.get("case") or job.folder or ""))
        if event.kind == "result" and job.verb == "ask":
            return self._answered(job, event.data)
        if event.kind == "result":
            return Update(kind="done", name=name, data=event.data, about=job.about)
        error = error_from(event.data)
        if isinstance(error, Cancelled):
            return Update(kind="cancelled", name=name, about=job.about)
        _attach_last_lines(error, event.data.get("stderr"))
        return Update(kind="failed", name=name, about=job.about, error=error)

    def _answered(self, job: _Job, data: dict[str, Any]) -> Update:
        link = data.get("link")
        answer = Answer(
            question=job.question,
            answer=str(data.get("answer", "")),
            confidence=data.get("confidence"),
            finding=data.get("finding"),
            link=Link.from_dict(link) if isinstance(link, dict) else link,
            about=job.about,
            unanswered=data.get("unanswered"),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        case = self.case()
        node = self.nodes().case
        if case is not None and node is not None:
            node.SetText(case_to_text(replace(case, answers=(*case.answers, answer))))
        return Update(kind="answer", name=job.verb, answer=answer)

    def wait(self, timeout_s: float = 600.0) -> list[Update]:
        """Waits for the running job and puts its result into the scene: for scripts and tests, never for a GUI."""
        deadline = time.monotonic() + timeout_s
        updates: list[Update] = []
        while self.busy:
            if time.monotonic() > deadline:
                self.stop()
                raise WorkerError(
                    _("The worker did not finish in time."),
                    found=_("no result after {seconds:g} s").format(seconds=timeout_s),
                    expected=_("a result"),
                    next_step=_("Start it again with more time."),
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
                _("Another run is still going."),
                found=_("a run that has not ended"),
                expected=_("one run at a time"),
                next_step=_("Wait for it, or press Cancel."),
            )

    # the scene

    def insert_result(self, update: Update) -> ResultNodes:
        """Puts a finished analysis into the scene, all of it or nothing, and points the parameter node at it."""
        if update.folder is None:
            raise ValueError("only a result carries a folder")
        job = self._finished or _Job(request_id=0, verb="analyze")
        if job.instance_uids:
            write_sources(update.folder, job.instance_uids)
        case = read_case(update.folder)
        volume_node = slicer.mrmlScene.GetNodeByID(job.volume_id)
        before = self.nodes().segmentation
        nodes = insert_case(case, update.folder, volume_node)
        if before is not None and before.GetDisplayNode() is not None:
            before.GetDisplayNode().SetVisibility(False)  # an older result may hold edits: it is hidden, not deleted
        node = parameter_node()
        write_parameters(
            node,
            replace(
                read_parameters(node),
                inputVolume=job.volume_id if volume_node is not None else None,
                segmentation=nodes.segmentation.GetID() if nodes.segmentation is not None else None,
                findings=nodes.findings.GetID(),
                report=nodes.report.GetID(),
                case=nodes.case.GetID(),
            ),
        )
        self._session = _Session(case_node_id=nodes.case.GetID(), folder=update.folder, model=job.model, writer=job.writer)
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

    def change_case(self, case: Case) -> None:
        """Keeps what a person made of the analysis: the Case, its table and its report text in the scene follow together."""
        nodes = self.nodes()
        if nodes.case is None:
            return
        nodes.case.SetText(case_to_text(case))
        if nodes.findings is not None:
            fill_findings_table(nodes.findings, case)
        if nodes.report is not None:
            nodes.report.SetText(report_markdown(case))

    def report_text(self) -> str:
        """The draft report, disclaimer first; empty without an analysis."""
        case = self.case()
        return report_markdown(case) if case is not None else ""


def _no_analysis() -> CaseError:
    return CaseError(
        _("There is no analysis to ask about."),
        found=_("no analysis in the scene"),
        expected=_("an analysed volume"),
        next_step=_("Press Apply first."),
    )


def _attach_last_lines(error: VelvetMedError, lines: Any) -> None:
    if isinstance(lines, list) and lines:
        error.add_note("\n".join(map(str, lines[-12:])))
