"""The torch side of the process boundary: answers requests on a private copy of stdout until stdin closes.

    python VelvetMedLib/worker/server.py --library-root ROOT          (or: python -m VelvetMedLib.worker.server --library-root ROOT)

A thread reads requests, so that `cancel` is heard while a handler works; handlers run one after the other on the main
thread. Nothing heavy is imported before a request needs it.
"""

from __future__ import annotations

import argparse
import os
import platform
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

if not __package__:
    # Started by file name: the folder on the path is this one, whose names must not shadow anybody's; the library's root is needed.
    _here = Path(__file__).resolve().parent
    sys.path[:] = [str(_here.parents[1]), *(entry for entry in sys.path if Path(entry or ".").resolve() != _here)]

from VelvetMedLib import __version__
from VelvetMedLib.errors import Cancelled, VelvetMedError, WorkerError
from VelvetMedLib.worker.protocol import GRACE_S, PROTOCOL_VERSION, Reply, Request, decode_request
from VelvetMedLib.worker.wording import is_out_of_memory, without_paths

_PROGRESS_EVERY_S = 0.05


class Context:
    """What a handler gets beside its parameters: a way to tell how far it is, and to learn that it should stop."""

    def __init__(self, request_id: int, send: Callable[[Reply], None]) -> None:
        self._id = request_id
        self._send = send
        self._stop = threading.Event()
        self._started = time.monotonic()
        self._last_sent = 0.0
        self._last_stage: str | None = None

    def progress(self, fraction: float, stage: str, seconds_left: float | None = None) -> None:
        """Report; the time left is estimated from the fraction where the handler does not know it."""
        self.cancel()
        now = time.monotonic()
        if stage == self._last_stage and now - self._last_sent < _PROGRESS_EVERY_S and fraction < 1.0:
            return
        fraction = min(max(float(fraction), 0.0), 1.0)
        if seconds_left is None and fraction >= 0.05:
            seconds_left = (now - self._started) * (1.0 - fraction) / fraction
        self._last_sent, self._last_stage = now, stage
        data = {"fraction": fraction, "stage": stage, "seconds_left": None if seconds_left is None else round(float(seconds_left), 1)}
        self._send(Reply(kind="progress", id=self._id, data=data))

    def cancel(self) -> None:
        """Raise `Cancelled` if the user asked to stop; called between tiles, layers and tokens."""
        if self._stop.is_set():
            raise Cancelled()

    def request_stop(self) -> None:
        """Called by the reading thread."""
        self._stop.set()


Handler: TypeAlias = Callable[[dict[str, Any], Context], Mapping[str, Any]]


class _Server:
    def __init__(self, handlers: Mapping[str, Handler], stdin: BinaryIO, stdout: BinaryIO, on_parent_gone: Callable[[], None]) -> None:
        self._handlers = handlers
        self._stdin = stdin
        self._stdout = stdout
        self._on_parent_gone = on_parent_gone
        self._writing = threading.Lock()
        self._lock = threading.Lock()
        self._todo: queue.SimpleQueue[tuple[Request, Context] | None] = queue.SimpleQueue()
        self._open: dict[int, Context] = {}
        self._running: int | None = None
        self._idle = threading.Event()

    def run(self) -> None:
        threading.Thread(target=self._read, name="velvetmed-requests", daemon=True).start()
        self._send(
            Reply(kind="ready", id=None, data={"protocol": PROTOCOL_VERSION, "version": __version__, "python": platform.python_version()})
        )
        while (item := self._todo.get()) is not None:
            request, context = item
            with self._lock:
                if request.id not in self._open:
                    continue  # Cancelled, and answered, while it waited for its turn.
                self._running = request.id
            reply = self._answer(request, context)
            with self._lock:
                self._running = None
                self._open.pop(request.id, None)
            self._send(reply)
        self._idle.set()

    def _send(self, reply: Reply) -> None:
        line = reply.encode()
        with self._writing:
            try:
                self._stdout.write(line)
                self._stdout.flush()
            except (OSError, ValueError):
                pass  # Nobody listens any more; stdin's end will say so too.

    def _read(self) -> None:
        for line in self._stdin:
            try:
                request = decode_request(line)
            except VelvetMedError as problem:
                self._send(Reply(kind="error", id=None, data=problem.as_dict()))
                continue
            if request.verb == "close":
                break
            if request.verb == "cancel":
                self._stop(request.id)
                continue
            context = Context(request.id, self._send)
            with self._lock:
                self._open[request.id] = context
            self._todo.put((request, context))
        # Closed, or the parent is gone: stop what runs, and do not wait for what does not listen.
        with self._lock:
            for context in self._open.values():
                context.request_stop()
        self._todo.put(None)
        if self._idle.wait(GRACE_S):
            time.sleep(GRACE_S)  # Only a library's own thread can keep the process alive now.
        self._on_parent_gone()

    def _stop(self, number: int) -> None:
        with self._lock:
            context = self._open.get(number)
            if context is None:
                return
            if number == self._running:
                context.request_stop()
                return
            # It still waits behind another: answered at once, or the client would take the silence for deafness.
            del self._open[number]
        self._send(Reply(kind="error", id=number, data=Cancelled().as_dict()))

    def _answer(self, request: Request, context: Context) -> Reply:
        try:
            context.cancel()
            handler = self._handlers.get(request.verb)
            if handler is None:
                raise WorkerError(
                    "The worker does not know this request.",
                    found=request.verb,
                    expected=", ".join(sorted(self._handlers)),
                    next_step="Use the same VelvetMed version for the program and the worker.",
                )
            reply = Reply(kind="result", id=request.id, data=dict(handler(request.params, context)))
            reply.encode()  # What cannot travel is this request's error, not the server's end.
            return reply
        except BaseException as problem:
            return Reply(kind="error", id=request.id, data=describe(problem))


def serve(handlers: Mapping[str, Handler], stdin: BinaryIO, stdout: BinaryIO, *, on_parent_gone: Callable[[], None] = lambda: None) -> None:
    """Answer requests with the given handlers until `close` or the end of `stdin`.

    on_parent_gone is called when the process has not ended by itself about a second after that.
    """
    _Server(handlers, stdin, stdout, on_parent_gone).run()


def describe(problem: BaseException) -> dict[str, Any]:
    """Any exception as the four parts that a user sees; for unexpected ones the place goes to stderr, without paths."""
    if isinstance(problem, VelvetMedError):
        return problem.as_dict()
    message = without_paths(f"{type(problem).__name__}: {problem}").strip().replace("\n", " ")
    print(message, file=sys.stderr)
    for frame in traceback.extract_tb(problem.__traceback__)[-8:]:
        print(f"  at {Path(frame.filename).name}:{frame.lineno} in {frame.name}", file=sys.stderr)
    if isinstance(problem, MemoryError) or is_out_of_memory(message):
        words = WorkerError(
            "The worker ran out of memory.",
            found=message,
            expected="enough free memory for the scan",
            next_step="Close other programs, or choose the CPU if the graphics card is too small, and start again.",
        )
        return {**words.as_dict(), "code": "memory"}
    if isinstance(problem, ImportError):
        words = WorkerError(
            f"The worker lacks the Python package {problem.name or 'it needs'}.",
            found=message,
            expected="every package that `velvetmed doctor` lists",
            next_step="Install the worker's packages in the setup panel, or choose another Python there.",
        )
        return {**words.as_dict(), "code": "missing_package"}
    words = WorkerError(
        "The worker met an error that it did not expect.",
        found=message,
        expected="the request to finish",
        next_step="Start it again; if it happens again, report it with the last lines of the worker's log.",
    )
    return {**words.as_dict(), "code": "internal"}


def protocol_streams() -> tuple[BinaryIO, BinaryIO]:
    """Take stdin and stdout for the protocol alone: everyone else's prints go to stderr, everyone else reads nothing."""
    stdin = os.fdopen(os.dup(0), "rb")
    stdout = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return stdin, stdout


def end_process_tree() -> None:
    """End this process, and what it started, now: nobody is left to answer to."""
    if sys.platform != "win32" and os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(3)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="velvetmed-worker", description="VelvetMed's worker: started by the program, not by hand.")
    parser.add_argument("--library-root", type=Path, help="the folder that holds VelvetMedLib")
    options = parser.parse_args(arguments)
    if options.library_root is not None and str(options.library_root) not in sys.path:
        sys.path.insert(0, str(options.library_root))
    # Ctrl-C in a shared terminal is for the program, which closes the worker itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stdin, stdout = protocol_streams()
    from VelvetMedLib.worker.handlers import make_handlers

    serve(make_handlers(), stdin, stdout, on_parent_gone=end_process_tree)
    return 0


if __name__ == "__main__":
    sys.exit(main())
