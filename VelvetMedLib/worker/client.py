"""The light side of the process boundary: starts the worker, asks, listens and ends it. Standard library and numpy only.

No call waits for the worker except `wait` and `close`; a GUI calls `poll` from a timer of its own.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from VelvetMedLib import errors
from VelvetMedLib.errors import Cancelled, VelvetMedError, WorkerError
from VelvetMedLib.shapes import Affine, ArrayKJI
from VelvetMedLib.worker.child import Child
from VelvetMedLib.worker.private import PrivateFolder
from VelvetMedLib.worker.protocol import FINAL, GRACE_S, UNANSWERED, VERBS, Reply, Request, decode_reply
from VelvetMedLib.worker.wording import exit_error, start_error

__all__ = ["Child", "Event", "WorkerClient", "error_from", "server_argv"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happened. kind: ready | progress | result | error | exit.

    progress: {fraction, stage, seconds_left}. error: {code, what, found, expected, next_step, stderr}.
    exit: the same as error, with {reason, expected_exit, exit_code}; it has no request id.
    """

    kind: str
    request_id: int | None
    data: dict[str, Any]


@dataclass(kw_only=True)
class _Pending:
    files: list[Path]
    cancelled: bool = False
    timer: threading.Timer | None = None


@dataclass
class _Belongings:
    """What must not outlive the client; apart from it, so that it can be put away when the client is garbage."""

    folder: PrivateFolder | None = None
    child: Child | None = None
    abandoned: list[Child] = field(default_factory=list)

    def put_away(self) -> None:
        for child in [self.child, *self.abandoned]:
            if child is not None:
                child.kill_tree()
        if self.folder is not None:
            self.folder.remove()
        self.child, self.folder = None, None


def server_argv(interpreter: str, library_root: str | Path) -> list[str]:
    """The command that starts the worker of this library with the given Python, whatever that Python has on its path."""
    root = Path(library_root)
    return [interpreter, str(root / "VelvetMedLib" / "worker" / "server.py"), "--library-root", str(root)]


class WorkerClient:
    """One worker, started when first needed and started afresh after it ended.

    argv, env: the command and the whole environment of the child. workdir: where the private folder is made (default: the
    system's temporary folder).
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], *, workdir: str | Path | None = None) -> None:
        self._argv = list(argv)
        self._env = dict(env)
        self._workdir = None if workdir is None else Path(workdir)
        self._lock = threading.RLock()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._unread: deque[Event] = deque()
        self._pending: dict[int, _Pending] = {}
        self._last_id = 0
        self._closing = False
        self._own = _Belongings()
        # Also runs at interpreter exit: neither a process nor a folder is left behind.
        self._finalizer = weakref.finalize(self, self._own.put_away)

    @property
    def running(self) -> bool:
        """Whether a worker process exists now."""
        return self._own.child is not None

    @property
    def pid(self) -> int | None:
        """The process number of the running worker."""
        child = self._own.child
        return None if child is None else child.process.pid

    def start(self) -> None:
        """Start the worker unless it runs. Raises `WorkerError` if the interpreter cannot be started."""
        with self._lock:
            if self._own.child is not None:
                return
            self._closing = False
            reference = weakref.ref(self)
            # The threads hold no strong reference: a forgotten client is collected, and its worker with it.
            slot: list[Child] = []
            try:
                child = Child(
                    self._argv,
                    self._env,
                    on_line=lambda line: _forward(reference, lambda client: client._on_line(slot, line)),
                    on_exit=lambda code, stderr: _forward(reference, lambda client: client._on_exit(slot, code, stderr)),
                )
            except OSError as problem:
                raise start_error(problem) from None
            slot.append(child)
            self._own.child = child

    def put_volume(self, voxels_kji: ArrayKJI, ijk_to_ras: Affine, *, unit: str = "HU") -> dict[str, Any]:
        """Hand voxels over through the private folder; the result is the `volume` parameter of a request.

        voxels_kji: [k, j, i], numbers. ijk_to_ras: 4x4, mm. The file is deleted by the worker once read, or with its request.
        """
        if voxels_kji.ndim != 3 or voxels_kji.dtype.kind not in "iuf":
            raise WorkerError(
                "These voxels cannot be handed to the worker.",
                found=f"an array of {voxels_kji.ndim} axes and type {voxels_kji.dtype}",
                expected="three axes of whole or floating-point numbers",
                next_step="Choose a scalar volume.",
            )
        with self._lock:
            if self._own.folder is None:
                try:
                    self._own.folder = PrivateFolder(self._workdir)
                except OSError as problem:
                    raise _no_room(problem, voxels_kji.nbytes) from None
            try:
                path = self._own.folder.save_array(voxels_kji)
            except OSError as problem:
                raise _no_room(problem, voxels_kji.nbytes) from None
        return {"npy": str(path), "ijk_to_ras": np.asarray(ijk_to_ras, dtype=np.float64).tolist(), "unit": unit}

    def request(self, verb: str, params: Mapping[str, Any] | None = None) -> int:
        """Ask for something, starting the worker if need be; the returned number marks the events that answer."""
        if verb not in VERBS or verb in UNANSWERED:
            raise WorkerError(
                "The worker has no such request.",
                found=verb,
                expected=", ".join(v for v in VERBS if v not in UNANSWERED),
                next_step="Use one of these names.",
            )
        params = dict(params or {})
        with self._lock:
            self._last_id += 1
            number = self._last_id
            line = Request(id=number, verb=verb, params=params).encode()
            files = self._files_of(params)
            try:
                self.start()
            except WorkerError:
                _delete(files)
                raise
            self._pending[number] = _Pending(files=files)
            if self._own.child is not None:
                self._own.child.send(line)
        return number

    def poll(self) -> list[Event]:
        """Everything that happened since the last call; never waits."""
        events = list(self._unread)
        self._unread.clear()
        while True:
            try:
                events.append(self._events.get_nowait())
            except queue.Empty:
                return events

    def cancel(self, request_id: int) -> None:
        """Ask the worker to stop this request. If it does not answer within 0.8 s, it is ended with everything it started.

        Either way the request ends in an `error` event of code `cancelled`, never in a result.
        """
        with self._lock:
            pending = self._pending.get(request_id)
            child = self._own.child
            if pending is None or pending.cancelled or child is None:
                return
            pending.cancelled = True
            child.send(Request(id=request_id, verb="cancel").encode())
            reference = weakref.ref(self)
            pending.timer = threading.Timer(GRACE_S, lambda: _forward(reference, lambda client: client._overdue(child, request_id)))
            pending.timer.daemon = True
            pending.timer.start()

    def wait(self, request_id: int, timeout: float | None = None, *, on_progress: Callable[[Event], None] | None = None) -> dict[str, Any]:
        """Wait for the answer: the result's data, or the error raised. Other requests' events stay for `poll`.

        After `timeout` seconds the request is cancelled and a `WorkerError` raised.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        others: list[Event] = []
        try:
            while True:
                event = self._next(deadline)
                if event is None:
                    self.cancel(request_id)
                    raise WorkerError(
                        "The worker did not finish in time.",
                        found=f"no answer within {timeout:g} s",
                        expected="an answer",
                        next_step="Start the run again, with more time or a smaller scan.",
                    )
                if event.request_id != request_id:
                    others.append(event)
                elif event.kind == "result":
                    return event.data
                elif event.kind == "error":
                    raise error_from(event.data)
                elif on_progress is not None:
                    on_progress(event)
        finally:
            self._unread.extendleft(reversed(others))

    def kill(self) -> None:
        """End the worker at once; running requests end in an error event of code `cancelled`."""
        with self._lock:
            child = self._own.child
            if child is None:
                return
            for pending in self._pending.values():
                pending.cancelled = True
            self._abandon(child, Cancelled(), "closed", expected=True)

    def close(self) -> None:
        """End the worker, politely for 0.8 s and then by force, and remove the private folder. The client can be used again."""
        with self._lock:
            child = self._own.child
            self._closing = True
            for pending in self._pending.values():
                pending.cancelled = True
            if child is not None:
                child.send(Request(id=0, verb="close").encode())
                child.close_stdin()
        if child is not None and not child.wait(GRACE_S):
            child.kill_tree()
            child.wait(GRACE_S)
        with self._lock:
            if self._own.folder is not None:
                self._own.folder.remove()
                self._own.folder = None

    def __enter__(self) -> WorkerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self, deadline: float | None) -> Event | None:
        if self._unread:
            return self._unread.popleft()
        try:
            if deadline is None:
                return self._events.get()
            return self._events.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None

    def _files_of(self, params: Mapping[str, Any]) -> list[Path]:
        folder = self._own.folder
        if folder is None:
            return []
        paths = [Path(str(value["npy"])) for value in params.values() if isinstance(value, Mapping) and "npy" in value]
        # Only what this client wrote itself is ever deleted by it.
        return [path for path in paths if path.parent == folder.path]

    def _on_line(self, slot: list[Child], line: bytes) -> None:
        with self._lock:
            if not slot or slot[0] is not self._own.child:
                return
            try:
                reply = decode_reply(line)
            except WorkerError as problem:
                self._abandon(slot[0], problem, "protocol", expected=False)
                return
            if reply.kind == "ready":
                self._events.put(Event(kind="ready", request_id=None, data=reply.data))
                return
            pending = self._pending.get(reply.id) if reply.id is not None else None
            if pending is None or reply.id is None:
                return  # An answer to something already settled.
            if reply.kind in FINAL:
                self._settle(reply.id, reply)
            elif not pending.cancelled:
                self._events.put(Event(kind=reply.kind, request_id=reply.id, data=reply.data))

    def _settle(self, number: int, reply: Reply) -> None:
        pending = self._pending.pop(number)
        if pending.timer is not None:
            pending.timer.cancel()
        _delete(pending.files)
        # A result that comes after Cancel was pressed is not shown: the user was told that nothing is kept.
        kind, data = ("error", Cancelled().as_dict()) if pending.cancelled else (reply.kind, reply.data)
        self._events.put(Event(kind=kind, request_id=number, data=data))

    def _on_exit(self, slot: list[Child], code: int | None, stderr: list[str]) -> None:
        with self._lock:
            child = slot[0] if slot else None
            if child is not None and child is not self._own.child:
                if child in self._own.abandoned:
                    self._own.abandoned.remove(child)
                return
            self._own.child = None
            reason, problem = exit_error(code, stderr)
            closing = self._closing
            self._report_end(problem, "closed" if closing else reason, expected=closing, exit_code=code, stderr=stderr)

    def _overdue(self, child: Child, request_id: int) -> None:
        with self._lock:
            if self._own.child is child and request_id in self._pending:
                self._settle(request_id, Reply(kind="error", id=request_id))
                self._abandon(child, _stopped_with_another(), "cancelled", expected=True)

    def _abandon(self, child: Child, problem: VelvetMedError, reason: str, *, expected: bool) -> None:
        """End this child and forget it at once, so that the next request can start a fresh one without waiting."""
        self._own.child = None
        self._own.abandoned.append(child)
        child.kill_tree()
        self._report_end(problem, reason, expected=expected, exit_code=None, stderr=[] if expected else child.stderr_tail())

    def _report_end(self, problem: VelvetMedError, reason: str, *, expected: bool, exit_code: int | None, stderr: list[str]) -> None:
        words = {**problem.as_dict(), "stderr": stderr}
        for number in list(self._pending):
            self._settle(number, Reply(kind="error", id=number, data=words))
        exit_words = {**words, "reason": reason, "expected_exit": expected, "exit_code": exit_code}
        self._events.put(Event(kind="exit", request_id=None, data=exit_words))


def error_from(data: Mapping[str, Any]) -> VelvetMedError:
    """The error that the worker reported, as an exception of the same class."""
    code = str(data.get("code", "worker"))
    if code == Cancelled.code:
        return Cancelled()
    classes = {c.code: c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, VelvetMedError)}
    wanted = classes.get(code, WorkerError)
    return wanted(
        str(data.get("what", "The worker reported an error.")),
        found=str(data.get("found", "no detail")),
        expected=str(data.get("expected", "a result")),
        next_step=str(data.get("next_step", "Start the run again.")),
    )


def _forward(reference: weakref.ref[WorkerClient], call: Callable[[WorkerClient], None]) -> None:
    client = reference()
    if client is not None:
        call(client)


def _delete(files: Sequence[Path]) -> None:
    for path in files:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            pass  # Still being read (Windows); the folder goes as a whole at the end.


def _stopped_with_another() -> WorkerError:
    return WorkerError(
        "The worker was stopped together with a cancelled run.",
        found="a run that did not stop by itself within 0.8 s",
        expected="this request to be answered first",
        next_step="Start it again: a fresh worker is used.",
    )


def _no_room(problem: OSError, size_bytes: int) -> WorkerError:
    return WorkerError(
        "The scan could not be handed to the worker.",
        found=f"{type(problem).__name__}: {problem.strerror or 'no reason given'}",
        expected=f"{size_bytes / 1e6:.0f} MB of free space in the temporary folder",
        next_step="Free some space, or point the temporary folder (TMPDIR) to a larger disk, and start again.",
    )
