"""What the command line prints: results, JSON, errors in four parts, and progress (a bar on a terminal, plain lines elsewhere)."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from VelvetMedLib.errors import UsageError, VelvetMedError

PLAIN_EVERY_S = 10.0


class Progress(Protocol):
    """The progress callback of every task."""

    def __call__(self, fraction: float, stage: str, seconds_left: float | None) -> None: ...


def make_streams_forgiving() -> None:
    """A console that cannot show a character shows '?' for it; it never stops the work."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def silence_stdout() -> None:
    """After the reader of our output has gone: nothing more to say, and no complaint at exit."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def result(data: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print a result once, in the form that was asked for."""
    print(json.dumps(data, indent=1, ensure_ascii=False) if as_json else text, flush=True)


def error(problem: VelvetMedError, *, as_json: bool) -> None:
    """Four parts on stderr; with --json also an object on stdout."""
    if as_json:
        print(json.dumps({"error": problem.as_dict()}, indent=1, ensure_ascii=False), flush=True)
    print(f"velvetmed: {problem}", file=sys.stderr, flush=True)


def traceback_of(problem: BaseException) -> None:
    traceback.print_exception(problem, file=sys.stderr)


def system_error(problem: BaseException) -> VelvetMedError:
    """An operating system's refusal as a user error, without the path it concerns."""
    if isinstance(problem, MemoryError):
        return UsageError(
            "The memory of this machine is not enough.",
            found="no memory left",
            expected="enough free memory for the scan and the model",
            next_step="Close other programs, or use a smaller scan.",
        )
    reason = getattr(problem, "strerror", None) or type(problem).__name__
    return UsageError(
        "A file or folder could not be read or written.",
        found=str(reason).lower(),
        expected="input that can be read and an output folder with space and permission to write",
        next_step="Check the given paths, the permissions and the free space.",
    )


def own_fault(problem: BaseException) -> VelvetMedError:
    """A fault as a user error; a missing package is one that the user can mend."""
    if isinstance(problem, ModuleNotFoundError) and problem.name and not problem.name.startswith("VelvetMedLib"):
        package = problem.name.split(".")[0]
        return UsageError(
            f"The Python package {package} is missing.",
            found=f"no package {package} in this Python",
            expected="every package that 'velvetmed doctor' lists as needed",
            next_step=f"Install {package}, or use another Python; 'velvetmed doctor' says what else is missing.",
        )
    return VelvetMedError(
        "VelvetMed met a fault of its own.",
        found=type(problem).__name__,
        expected="a result, or an error that says what to change",
        next_step="Run the command again with --debug and report what it prints.",
    )


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """A progress callback for one piece of long work, shown on stderr."""
    if quiet:
        yield lambda fraction, stage, seconds_left: None
        return
    if sys.stderr.isatty():
        try:
            import rich.progress
        except ImportError:
            yield _PlainLines()
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn

        columns = (TextColumn("{task.description:>14}"), BarColumn(), TextColumn("{task.percentage:3.0f} %  {task.fields[left]}"))
        with rich.progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("starting", total=1.0, left="")

            def update(fraction: float, stage: str, seconds_left: float | None) -> None:
                bar.update(task, completed=fraction, description=stage, left=_left(seconds_left))

            yield update
        return
    yield _PlainLines()


class _PlainLines:
    """One line per stage, and one now and then in a long one."""

    def __init__(self) -> None:
        self._stage, self._said = "", 0.0

    def __call__(self, fraction: float, stage: str, seconds_left: float | None) -> None:
        now = time.monotonic()
        if stage != self._stage or now - self._said >= PLAIN_EVERY_S:
            self._stage, self._said = stage, now
            print(f"{stage}  {100 * fraction:.0f} %  {_left(seconds_left)}".rstrip(), file=sys.stderr, flush=True)


def _left(seconds: float | None) -> str:
    if seconds is None or seconds < 1:
        return ""
    return f"about {seconds:.0f} s left" if seconds < 100 else f"about {seconds / 60:.0f} min left"
