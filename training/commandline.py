"""What the training scripts share: the words that all have, errors without a traceback, exit codes, the way out of Slicer's process.

Standard library only until a training begins: this must work in the application's own process.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from pretraining.child import explain_missing, missing_packages, python_slicer, run_again, under_slicer  # noqa: E402

PROBLEM, USAGE = 1, 2

ENDING = """exit codes: 0 done, 75 stopped on request with everything saved (call the same line again), 1 it cannot go on, 2 wrong words
Research use only. Not for clinical use."""


def new_parser(program: str, description: str, examples: str, *, help_options: bool = False) -> argparse.ArgumentParser:
    """No option may be one of Slicer's, which keeps -h and --help for itself: help is the word `help`.

    help_options: have -h and --help all the same, in a script without words.
    """
    return argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=f"examples:\n{examples}\n\n{ENDING}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=help_options,
        allow_abbrev=False,
    )


def add_settings_options(parser: argparse.ArgumentParser, presets: Sequence[str], about: str) -> None:
    """--preset (the first is the default) and --set."""
    parser.add_argument("--preset", choices=presets, default=presets[0], help=about)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting by its dotted name; may be repeated"
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Where a run lies, how long it is, and what it draws from."""
    parser.add_argument("--run", type=Path, metavar="DIR", help="run folder: checkpoints, logs, what comes out")
    parser.add_argument("--steps", type=int, metavar="N", help="optimiser steps of the whole run")
    add_seed(parser)
    parser.add_argument("--store", type=Path, metavar="DIR", help="prepared scans, shared by runs (default: in the run folder)")


def add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="everything random is drawn from it (default: 1)")


def add_machine_options(parser: argparse.ArgumentParser, *, device: str | None = None) -> None:
    """device: what is taken without --device; None = the GPU if there is one."""
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that prepare scans (default: 1)")
    parser.add_argument(
        "--device", default=device, metavar="NAME", help=f"cpu or cuda:0 (default: {device or 'the GPU if there is one'})"
    )  # fmt: skip
    add_traceback(parser)


def add_traceback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")


def require(options: argparse.Namespace, names: Sequence[str], program: str) -> None:
    """Raises UsageError for an option without value, and for steps that are none."""
    from VelvetMedLib.errors import UsageError

    for name in names:
        if getattr(options, name) is None:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"The option {option} is missing.", found="nothing", expected=option, next_step=f"Print '{program} help' for all."
            )
    if "steps" in names and options.steps < 1:
        raise UsageError("There is nothing to do.", found=f"--steps {options.steps}", expected="at least 1", next_step="Give more steps.")


def print_settings(settings: Any) -> None:
    """All settings by dotted name, one a line, as --set takes them."""
    from VelvetMedLib.recipes.overrides import names_of

    for name, value in names_of(settings).items():
        print(f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}")


def carry_out(work: Callable[[], int], *, traceback: bool, also_needed: Sequence[str] = ()) -> int:
    """Exit code of `work`; an error of the user's is said in its four parts. also_needed: packages beyond those of every training."""
    if missing := [*missing_packages(), *(name for name in also_needed if importlib.util.find_spec(name) is None)]:
        sys.stderr.write(explain_missing(missing))
        return PROBLEM
    from VelvetMedLib.errors import UsageError, VelvetMedError

    try:
        return work()
    except VelvetMedError as error:
        if traceback:
            raise
        sys.stderr.write(f"{error}\n")
        # A failed process must not wait for the others: torchrun ends them.
        return USAGE if isinstance(error, UsageError) else PROBLEM


def begin(script: str, main: Callable[[list[str]], int]) -> None:
    """Ends this process with the code of `main`, or, in Slicer's own process, with that of the script run again in PythonSlicer."""
    if under_slicer():
        sys.exit(run_again(Path(script).resolve(), sys.argv[1:], python_slicer()))
    keep_freed_memory()
    # One reader thread and torch's own threads share the cores; torchrun sets this itself.
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    sys.exit(main(sys.argv[1:]))


def keep_freed_memory() -> bool:
    """Whether this process now keeps what it frees for its next tensors; only glibc can be asked to.

    By default glibc returns every large block to the system, which must clear it page by page when the next tensor asks again:
    a step of the fine network on a CPU spent 29 % of its processor time so. A process then holds up to a quarter more memory.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(name, value) for name, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 1 << 26)))
