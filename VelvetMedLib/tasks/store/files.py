"""The files of a store's folder: their names, how they are made, opened and checked, and what goes wrong with them in words."""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.files import flush_folder
from VelvetMedLib.tasks.store.base import FORMAT_VERSION, Facts, damaged, foreign_version, refuse

MARK = "index.json"
ITEMS = "items.sqlite"
PLACES = "private/places.sqlite"
STUDIES = "studies"
REGIONS = "regions"
BUSY_S = 10.0
"""How long one program waits while another writes."""
SCHEMA = """
CREATE TABLE state (generation INTEGER NOT NULL, studies_crc INTEGER NOT NULL);
INSERT INTO state VALUES (1, 0);
CREATE TABLE items (
    number INTEGER PRIMARY KEY AUTOINCREMENT, volume TEXT NOT NULL UNIQUE, added TEXT NOT NULL, source TEXT NOT NULL,
    present TEXT NOT NULL, absent TEXT NOT NULL, organs TEXT NOT NULL, with_text INTEGER NOT NULL);
CREATE TABLE details (
    number INTEGER PRIMARY KEY, id TEXT, text TEXT, centers TEXT NOT NULL, picture BLOB, match_tokens BLOB, crc INTEGER NOT NULL);
"""
# Two tables: what filters read is small, and pictures do not lie between its rows.


def make_folder(folder: Path, facts: Facts) -> None:
    """An empty store: all of it or nothing. Raises IndexMismatchError where something else stands."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise refuse(
            "The index cannot be written there.", "something that is not an index", "a new or empty folder", "Choose another folder."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".index-", dir=folder.parent) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        with closing(sqlite3.connect(new / ITEMS)) as base:
            base.executescript(SCHEMA)
        for name in (STUDIES, REGIONS):
            (new / f"{name}-1.f32").touch()
        said = {"format_version": FORMAT_VERSION, "notice": RESEARCH_USE_ONLY, **asdict(facts)}
        (new / MARK).write_text(json.dumps(said, indent=1), encoding="utf-8")
        for path in new.iterdir():
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())
        if folder.exists():
            folder.rmdir()
        os.replace(new, folder)
    flush_folder(folder.parent)


def connect(path: Path) -> sqlite3.Connection:
    """A base whose commits reach the disk, and whose deleted rows are overwritten. Transactions are begun by hand."""
    # Opened for writing even to read: what a killed writer left half done is rolled back by whoever comes next.
    base = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=BUSY_S, isolation_level=None)
    base.execute("PRAGMA synchronous = EXTRA")
    base.execute("PRAGMA secure_delete = ON")
    return base


def mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The first rows of a vector file, read-only. Raises IndexMismatchError where it is shorter."""
    if 0 in shape:
        return np.zeros(shape, np.float32)
    try:
        return np.memmap(path, "<f4", "r", shape=shape)
    except (ValueError, FileNotFoundError):
        raise damaged("fewer vectors than cases") from None


def crc_of(words: Sequence[object], picture: bytes | None, tokens: bytes | None, regions: NDArray[np.float32]) -> int:
    """Of all that is said of a case."""
    crc = zlib.crc32(json.dumps(list(words)).encode())
    for blob in (picture or b"", tokens or b"", np.ascontiguousarray(regions).data):
        crc = zlib.crc32(blob, crc)
    return crc


def read_facts(folder: Path) -> Facts:
    """What index.json says. Raises IndexMismatchError where it is missing, damaged or of another version."""
    path = folder / MARK
    if not path.is_file():
        raise refuse("There is no index here.", "no index.json in the given folder", "an index folder", "Make one with 'velvetmed index'.")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise damaged("index.json is not JSON") from None
    if not isinstance(said, dict) or said.get("format_version") != FORMAT_VERSION:
        raise foreign_version(said.get("format_version") if isinstance(said, dict) else said)
    kinds = {"encoding_key": str, "dimension": int, "region_dimension": int, "salt": str}
    if wrong := [name for name, kind in kinds.items() if not isinstance(said.get(name), kind)]:
        raise damaged(f"index.json lacks {', '.join(wrong)}")
    return Facts(**{name: said[name] for name in kinds})


def _out_of_reach(found: str) -> Exception:
    return refuse(
        "The index cannot be read or written.", found, "a folder that can be written to, with room", "Make room, or check the rights."
    )


@contextmanager
def told() -> Iterator[None]:
    """Faults of the base and of the disk in words, without a path."""
    try:
        yield
    except sqlite3.Error as error:
        name = str(getattr(error, "sqlite_errorname", type(error).__name__))
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise refuse("The index is in use.", "another program that writes to it", "one writer at a time", "Try again.") from None
        if name.startswith(("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_IOERR")):
            raise _out_of_reach(name) from None
        raise damaged(name) from None
    except OSError as error:
        raise _out_of_reach(error.strerror or type(error).__name__) from None
