"""Folders of a run that survive a kill, a full disk in words, and what differs between two records."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from VelvetMedLib.errors import TrainingError
from VelvetMedLib.files import flush_folder


def put_folder(new: Path, target: Path, aside: Path) -> None:
    """Move a finished folder to `target`; what was there moves to `aside` first, and what was there is removed.

    A kill between the steps leaves at least one whole folder under `target` or `aside`.
    """
    if target.exists():
        if aside.exists():
            # Renamed first, so that a kill while it is being removed leaves no half folder under a name that is read.
            doomed = aside.with_name(f".{aside.name}.{os.getpid()}.old")
            shutil.rmtree(doomed, ignore_errors=True)
            os.replace(aside, doomed)
            os.replace(target, aside)
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            os.replace(target, aside)
    os.replace(new, target)
    flush_folder(target.parent)


def disk_error(role: str, error: OSError, needed_bytes: int, kept: str) -> TrainingError:
    """The four parts for a write that the disk refused. role: what was being written; kept: what is safe."""
    return TrainingError(
        f"{role} could not be written.",
        found=error.strerror or type(error).__name__,
        expected=f"about {max(1, needed_bytes >> 20)} MiB of free, writable space in the run folder",
        next_step=f"Free some space and call the same line again. {kept}",
    )


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Dotted names at which two nested JSON objects differ."""
    one, two = _flat(first), _flat(second)
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def _flat(data: Mapping[str, Any], before: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{before}{key}.")
        else:
            out[f"{before}{key}"] = json.dumps(value)
    return out
