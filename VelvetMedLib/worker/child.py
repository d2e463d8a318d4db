"""One child process with its pipes: started, listened to by threads, ended with everything it started itself."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from VelvetMedLib.worker.protocol import MAX_LINE_BYTES
from VelvetMedLib.worker.wording import without_paths

_STDERR_LINES = 40


class Child:
    """A running worker. `on_line` and `on_exit` are called from threads of this object, `on_exit` once and last."""

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        on_line: Callable[[bytes], None],
        on_exit: Callable[[int | None, list[str]], None],
    ) -> None:
        self._on_line = on_line
        self._on_exit = on_exit
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._reaped = False
        self._reaping = threading.Lock()
        self._ended = threading.Event()
        flags = 0
        if sys.platform == "win32":
            flags = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
        self.process = subprocess.Popen(
            list(argv),
            env={**env, "PYTHONUTF8": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=os.name == "posix",
            creationflags=flags,
        )
        self._readers = [self._thread(self._read_replies), self._thread(self._read_stderr)]
        self._thread(self._write)
        self._thread(self._watch)

    def send(self, line: bytes) -> None:
        """Queue a line; never waits, however busy the child is."""
        self._outbox.put(line)

    def close_stdin(self) -> None:
        """Tell the child that nothing more will come, after what is queued."""
        self._outbox.put(None)

    def stderr_tail(self) -> list[str]:
        """The child's last words, without paths."""
        return [without_paths(line) for line in list(self._stderr)]

    def kill_tree(self) -> None:
        """End the child and everything it started, at once. A launcher's own child would outlive a plain kill."""
        with self._reaping:
            if not self._reaped:
                _kill_tree(self.process.pid)

    def wait(self, timeout_s: float) -> bool:
        """Whether the child has ended, and `on_exit` was called, within the time."""
        return self._ended.wait(timeout_s)

    def _thread(self, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, name=f"velvetmed-worker{work.__name__}", daemon=True)
        thread.start()
        return thread

    def _read_replies(self) -> None:
        with _pipe(self.process.stdout) as stream:
            while line := stream.readline(MAX_LINE_BYTES + 2):
                self._on_line(line)

    def _read_stderr(self) -> None:
        with _pipe(self.process.stderr) as stream:
            while line := stream.readline(65536):
                text = line.decode("utf-8", "replace").rstrip()
                if text:
                    self._stderr.append(text)

    def _write(self) -> None:
        stream = _pipe(self.process.stdin)
        try:
            while (line := self._outbox.get()) is not None:
                stream.write(line)
                stream.flush()
        except (OSError, ValueError):
            pass  # The child is gone: the watcher reports it, with its reason.
        try:
            stream.close()
        except OSError:
            pass

    def _watch(self) -> None:
        if hasattr(os, "waitid"):
            # Seen dead but not yet reaped: its number still belongs to it, so its group can be ended without hitting a stranger.
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
            self.kill_tree()
            with self._reaping:
                code = self.process.wait()
                self._reaped = True
        else:
            code = self.process.wait()
            self._reaped = True
        for reader in self._readers:
            reader.join(timeout=2.0)
        self._outbox.put(None)
        self._on_exit(code, self.stderr_tail())
        self._ended.set()


def _kill_tree(pid: int) -> None:
    if sys.platform == "win32":
        subprocess.run(
            ["taskkill", "/T", "/F", "/PID", str(pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            creationflags=subprocess.CREATE_NO_WINDOW,
            check=False,
        )
    else:
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise RuntimeError("the child was started without this pipe")
    return stream
