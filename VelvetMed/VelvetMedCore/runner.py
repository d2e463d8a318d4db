"""Finds the worker's Python and builds its command line and environment. Of Slicer it knows only the translator."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slicer.i18n import tr as _

from VelvetMedLib.errors import WorkerError
from VelvetMedLib.worker.client import server_argv

# The library is not installed in the worker's Python: its root arrives as the first argument and replaces the current folder.
CLI_BOOTSTRAP = "import sys; root = sys.argv.pop(1); sys.path[0] = root; from VelvetMedLib.cli import main; sys.exit(main(sys.argv[1:]))"
DROPPED = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A child process to start."""

    argv: tuple[str, ...]
    env: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What this process knows of its machine. startup_env: the environment before Slicer's launcher changed it."""

    own_env: Mapping[str, str]
    startup_env: Callable[[], Mapping[str, str]]
    which: Callable[[str], str | None] = shutil.which


def find_interpreter(own_python: str, surroundings: Surroundings) -> str:
    """The user's own Python when one is named, else PythonSlicer. Never sys.executable: that is Slicer itself."""
    if own_python:
        if not Path(own_python).is_file():
            raise WorkerError(
                _("The chosen Python does not exist."),
                found=_("no file at the chosen place"),
                expected=_("a Python program, 3.11 or newer, with torch installed"),
                next_step=_("Choose another Python in the setup panel, or clear the field to use Slicer's own."),
            )
        return own_python
    found = surroundings.which("PythonSlicer")
    if found is None:
        raise WorkerError(
            _("Slicer's Python could not be found."),
            found=_("no program named PythonSlicer on the search path"),
            expected=_("PythonSlicer, which comes with every Slicer"),
            next_step=_("Start Slicer by its own launcher, or choose another Python in the setup panel."),
        )
    return found


def child_environment(own_python: str, surroundings: Surroundings) -> dict[str, str]:
    """PythonSlicer needs Slicer's own environment; any other Python breaks in it and gets a cleaned one."""
    if not own_python:
        return {**surroundings.own_env, "PYTHONUTF8": "1"}
    cleaned = {name: value for name, value in surroundings.startup_env().items() if name not in DROPPED}
    return {**cleaned, "PYTHONNOUSERSITE": "1", "PYTHONUTF8": "1"}


def worker_command(root: Path, own_python: str, surroundings: Surroundings) -> Command:
    """The worker process."""
    python = find_interpreter(own_python, surroundings)
    return Command(argv=tuple(server_argv(python, root)), env=child_environment(own_python, surroundings))


def cli_command(root: Path, own_python: str, words: Sequence[str], surroundings: Surroundings) -> Command:
    """`velvetmed WORDS` in the worker's Python, where the script itself is not installed."""
    python = find_interpreter(own_python, surroundings)
    return Command(argv=(python, "-c", CLI_BOOTSTRAP, str(root), *words), env=child_environment(own_python, surroundings))
