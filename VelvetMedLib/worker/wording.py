"""Words for what goes wrong in a worker: exits explained, and texts freed of paths before anyone sees them."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

from VelvetMedLib.errors import WorkerError

_QUOTED_PATH = re.compile(r"""(["'])[^"'\n]*[/\\][^"'\n]*\1""")
# Greedy on purpose: names of folders and files may hold spaces and a patient's identity, so everything between the
# first and the last separator of a line goes, with the rest of a file name up to its known ending.
_BARE_PATH = re.compile(
    r"""(?:file:)?(?:\b[A-Za-z]:)?(?:~|\.{1,2}|\b[\w.-]+)?[/\\](?:.*[/\\])?[^\s"',;:)\]]*"""
    r"""(?:[^"'\n]*?\.(?:nii(?:\.gz)?|nrrd|nhdr|dcm|mha|mhd|npy|npz|json|safetensors|xml|txt)\b)?""",
    re.IGNORECASE,
)
_MISSING = re.compile(r"ModuleNotFoundError: No module named ['\"]([\w.]+)['\"]")
_OUT_OF_MEMORY = re.compile(r"MemoryError|out of memory|can't allocate memory|cannot allocate memory|bad_alloc", re.IGNORECASE)


def without_paths(text: str) -> str:
    """The text with every file path replaced by `[path]`, each line cut to 300 characters."""
    lines = (_BARE_PATH.sub("[path]", _QUOTED_PATH.sub('"[path]"', line))[:300] for line in text.splitlines())
    return "\n".join(lines)


def is_out_of_memory(text: str) -> bool:
    """Whether a message of Python, torch or the C++ library says that memory ran out."""
    return bool(_OUT_OF_MEMORY.search(text))


def exit_error(exit_code: int | None, stderr: Sequence[str]) -> tuple[str, WorkerError]:
    """Why a worker ended that nobody ended on purpose: a short reason word and the error in four parts."""
    text = "\n".join(stderr)
    expected = "the worker to keep running until it is closed"
    missing = _MISSING.findall(text)
    if missing:
        package = missing[-1].split(".")[0]
        return "missing_package", WorkerError(
            f"The worker could not start because the Python package {package} is missing.",
            found=f"no package named {package} in the worker's Python",
            expected="every package that `velvetmed doctor` lists",
            next_step="Install the worker's packages in the setup panel, or choose another Python there.",
        )
    if is_out_of_memory(text):
        return "out_of_memory", WorkerError(
            "The worker ran out of memory.",
            found="an allocation that failed",
            expected="enough free memory for the scan",
            next_step="Close other programs, or choose the CPU if the graphics card is too small, and start again.",
        )
    if exit_code is not None and exit_code < 0:
        name = _signal_name(-exit_code)
        return "killed", WorkerError(
            "The worker was killed by the system or by another program.",
            found=f"an end by signal {name}",
            expected=expected,
            next_step="If memory was nearly full, close other programs; then start the run again: a fresh worker is used.",
        )
    return "crashed", WorkerError(
        "The worker ended unexpectedly.",
        found=f"exit code {exit_code}" if exit_code is not None else "no exit code",
        expected=expected,
        next_step="Start the run again: a fresh worker is used. If it happens again, `velvetmed doctor` names what is missing.",
    )


def start_error(problem: OSError) -> WorkerError:
    """The interpreter itself could not be started."""
    return WorkerError(
        "The worker could not be started.",
        found=f"{type(problem).__name__}: {problem.strerror or 'no reason given'}",
        expected="a Python interpreter that can be run",
        next_step="Choose the worker's Python again in the setup panel.",
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
