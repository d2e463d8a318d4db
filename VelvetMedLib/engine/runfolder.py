"""The run folder: one training, its resolved settings, where it was started, and a lock against a second one at the same time.

run.json           what defines the run: recipe, seed, steps, data, first start; compared when the line is called again
starts.jsonl       every start: versions, device, code state, step
quarantine.jsonl   studies left out, with the reason
log.jsonl          losses by step; training_curves.png, tensorboard/
checkpoints/       see `checkpoints`
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import VelvetMedLib
from VelvetMedLib.engine.files import differences
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.files import read_json, write_json
from VelvetMedLib.recipes.parts import FREE_ON_RESUME

RUN_FILE = "run.json"
PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "SimpleITK")


class RunFolder:
    """An existing or new run folder, locked for this process while it is open."""

    def __init__(self, folder: Path, *, lock: bool = True) -> None:
        self.folder = folder
        self._lock: TextIO | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if lock:
                self._lock = _locked(folder / ".lock")
        except OSError as error:
            raise TrainingError(
                "The run folder cannot be written.",
                found=error.strerror or type(error).__name__,
                expected="a folder in which files can be made",
                next_step="Give another folder with --run.",
            ) from error

    def check(self, definition: Mapping[str, Any]) -> bool:
        """Write run.json, or compare with the one that is there; True when the run is taken up again.

        definition: "recipe" and all else that decides what is learnt. Settings that move no weight may differ.
        """
        path = self.folder / RUN_FILE
        before = read_json(path)
        now = json.loads(json.dumps(dict(definition)))
        if before is None:
            write_json(path, now)
            return False
        changed = [name for name in differences(before, now) if not _is_free(name)]
        if changed:
            raise TrainingError(
                "This run folder holds a training with other settings.",
                found="different: " + ", ".join(changed[:6]) + (" ..." if len(changed) > 6 else ""),
                expected="the same line as the one that began the run",
                next_step="Call the line that began it, or give a new folder with --run.",
            )
        return True

    def note_start(self, facts: Mapping[str, Any]) -> None:
        """One more line in starts.jsonl, with the time."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **facts}
        with (self.folder / "starts.jsonl").open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _is_free(name: str) -> bool:
    """Whether a difference in this place of run.json moves no weight; a recipe may hold another one, whose loop it runs."""
    inside = name.removeprefix("recipe.").removeprefix("base.").removeprefix("encoders.")
    return name.startswith("recipe.") and inside in FREE_ON_RESUME


def environment(device: str, source: Path) -> dict[str, Any]:
    """Versions, machine class and state of the code below `source`; no host name, no user, no path."""
    versions = {"velvetmed": VelvetMedLib.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "device": device,
        "code": code_state(source),
    }


def code_state(source: Path) -> dict[str, Any]:
    """Commit of the source tree and whether files were changed; {} outside a git checkout."""
    try:
        commit = _git(source, "rev-parse", "HEAD")
        changed = _git(source, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "changed_files": len(changed.splitlines())}


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, check=True, timeout=20)
    return done.stdout.decode("utf-8", "replace").strip()


def _locked(path: Path) -> TextIO:
    """An open file that only one process can hold. The system frees it when the process ends, however it ends."""
    stream = path.open("a+", encoding="utf-8")
    try:
        if sys.platform == "win32":
            import msvcrt

            stream.seek(0)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        raise TrainingError(
            "Another training is running in this run folder.",
            found="the folder is locked by a living process",
            expected="one training per run folder",
            next_step="Wait for it or stop it, or give another folder with --run.",
        ) from None
    return stream
