"""A word of the command line run in the worker's Python without waiting for it: checks, and models that come and go."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import slicer
from slicer.i18n import tr as _

from VelvetMedCore.library import library_root
from VelvetMedCore.runner import Command, Surroundings, cli_command
from VelvetMedLib.errors import VelvetMedError, WorkerError
from VelvetMedLib.worker.client import Child, error_from

MISSING = "No module named"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an errand ended: the object that it printed, or an error in four parts."""

    data: dict[str, Any]
    error: VelvetMedError | None = None


class Errand:
    """A child process that prints one JSON object. Nothing here waits; `stop` ends it with everything it started."""

    def __init__(self, command: Command) -> None:
        """Starts it. Raises WorkerError where the program cannot be started."""
        self._lines: list[bytes] = []
        self._code: int | None = None
        self._last_words: list[str] = []
        self._done = threading.Event()
        try:
            self._child = Child(command.argv, command.env, on_line=self._lines.append, on_exit=self._ended)
        except OSError as problem:
            raise _not_started(problem) from None
        self._child.close_stdin()

    def _ended(self, code: int | None, last_words: list[str]) -> None:
        self._code, self._last_words = code, last_words
        self._done.set()

    def poll(self) -> Outcome | None:
        """None while it runs."""
        return self._outcome() if self._done.is_set() else None

    def stop(self) -> None:
        self._child.kill_tree()

    def _outcome(self) -> Outcome:
        try:
            data = json.loads(b"".join(self._lines).decode("utf-8", "replace"))
        except ValueError:
            data = None
        if self._code == 0 and isinstance(data, dict):
            return Outcome(data=data)
        problem = data.get("error") if isinstance(data, dict) else None
        if isinstance(problem, dict):
            return Outcome(data={}, error=error_from(problem))
        return Outcome(data={}, error=_broken(self._code, self._last_words))


def velvetmed_command(own_python: str, words: Sequence[str]) -> Command:
    """`velvetmed WORDS --json` in the chosen Python. Raises WorkerError where there is none."""
    surroundings = Surroundings(own_env=os.environ, startup_env=slicer.util.startupEnvironment)
    return cli_command(library_root(), own_python, (*words, "--json"), surroundings)


def _not_started(problem: OSError) -> WorkerError:
    return WorkerError(
        _("The chosen Python could not be started."),
        found=problem.strerror or type(problem).__name__,
        expected=_("a Python program, 3.11 or newer"),
        next_step=_("Choose another Python under Setup."),
    )


def _broken(code: int | None, last_words: list[str]) -> WorkerError:
    missing = [line.split(MISSING, 1)[1].strip().strip("'\"") for line in last_words if MISSING in line]
    if missing:
        return WorkerError(
            _("The chosen Python lacks the package {name}.").format(name=missing[-1].split(".")[0]),
            found=_("a Python without it"),
            expected=_("every package in the list of Setup"),
            next_step=_("Install the worker's packages, or choose another Python under Setup."),
        )
    return WorkerError(
        _("The check did not run to its end."),
        found=last_words[-1] if last_words else _("exit code {code}").format(code=code),
        expected=_("an answer from the chosen Python"),
        next_step=_("Choose another Python under Setup, 3.11 or newer."),
    )
