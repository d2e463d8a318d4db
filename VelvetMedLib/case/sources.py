"""The private file of a Case: UIDs of the DICOM instances that its scan came from. Only the DICOM export reads it; nothing copies it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

SOURCES = "source.private.json"
FORMAT_VERSION = 1
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")


def is_uid(text: str) -> bool:
    """Whether a text is a DICOM unique identifier (PS3.5, 9.1: up to 64 digits and dots)."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def write_sources(folder: Path | str, instance_uids: Sequence[str]) -> None:
    """Write the file beside `case.json`, readable by its owner alone. Raises ValueError on anything that is not a UID."""
    if wrong := sum(not is_uid(uid) for uid in instance_uids):
        raise ValueError(f"{wrong} of {len(instance_uids)} entries are not DICOM UIDs")
    target = Path(folder) / SOURCES
    part = target.with_name(f".{SOURCES}.{os.getpid()}.part")
    text = json.dumps({"format_version": FORMAT_VERSION, "instance_uids": list(instance_uids)})
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def read_sources(folder: Path | str) -> tuple[str, ...]:
    """The UIDs; empty where the Case has no such file or it cannot be read as one."""
    try:
        data = json.loads((Path(folder) / SOURCES).read_text(encoding="utf-8"))
        uids = data["instance_uids"] if data["format_version"] == FORMAT_VERSION else []
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return tuple(uid for uid in uids if isinstance(uid, str) and is_uid(uid)) if isinstance(uids, list) else ()
