"""Files that survive a kill: written under a new name, flushed to the disk, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from VelvetMedLib.errors import TrainingError


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk. Windows cannot, and orders its renames itself."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """All or nothing, UTF-8, line ends as given."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """All or nothing, stable order of keys as given."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is no readable one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


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
