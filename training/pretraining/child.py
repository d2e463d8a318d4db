"""Under `Slicer --python-script` a training is only a parent: it runs itself again in PythonSlicer and ends with that code.

Standard library only, and slicer is never imported: this must work in the application's own process.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

NEEDED = ("torch", "numpy", "SimpleITK", "safetensors", "tokenizers")
PROBLEM = 2
SLICER_OPTIONS = frozenset({"-h", "--help", "--version", "--home", "--testing", "-c", "--python-script", "--python-code"})
"""Options that the application reads itself, before a script sees its own."""


def under_slicer(modules: Mapping[str, object] = sys.modules) -> bool:
    """Whether this Python is the one inside the Slicer application. PythonSlicer alone has no `slicer.app`."""
    return getattr(modules.get("slicer"), "app", None) is not None


def python_slicer(
    executable: str = sys.executable, environment: Mapping[str, str] = os.environ, which: Callable[[str], str | None] = shutil.which
) -> str | None:
    """The PythonSlicer program of the running application: by SLICER_HOME, beside the executable, then on the search path."""
    name = "PythonSlicer.exe" if os.name == "nt" else "PythonSlicer"
    homes = [Path(environment["SLICER_HOME"]) / "bin"] if environment.get("SLICER_HOME") else []
    beside = [Path(executable).parent, Path(executable).parent.parent / "bin"] if executable else []
    for folder in (*homes, *beside):
        if (folder / name).is_file():
            return str(folder / name)
    return which(name)


def run_again(script: Path, words: Sequence[str], python: str | None) -> int:
    """Run `script` with `words` in `python`, streams inherited; its exit code. A request to stop is handed on."""
    if python is None:
        sys.stderr.write(
            "Slicer's Python could not be found.\n"
            "  Found:    no program named PythonSlicer beside the application or on the search path\n"
            "  Expected: PythonSlicer, which comes with every Slicer\n"
            "  Next:     Start Slicer by its own launcher, or run this script with any Python that has torch installed.\n"
        )
        return PROBLEM
    child = subprocess.Popen([python, str(script), *words], env={**os.environ, "PYTHONUTF8": "1"})
    before = signal.signal(signal.SIGTERM, lambda *_: child.send_signal(signal.SIGTERM))
    try:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                # The terminal has sent it to the child too, which ends in order.
                continue
    finally:
        signal.signal(signal.SIGTERM, before)


def missing_packages(found: Callable[[str], object | None] = importlib.util.find_spec) -> list[str]:
    """What a training needs and this Python does not have."""
    return [name for name in NEEDED if found(name) is None]


def explain_missing(names: Sequence[str]) -> str:
    return (
        "Packages that training needs are not installed in this Python.\n"
        f"  Found:    no {', no '.join(names)}\n"
        "  Expected: torch, numpy, SimpleITK, safetensors and tokenizers\n"
        "  Next:     In Slicer, open the VelvetMed module and install its requirements; elsewhere: pip install 'velvetmed[train]'\n"
    )
