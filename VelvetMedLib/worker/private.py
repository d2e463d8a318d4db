"""The private folder through which voxels travel: one per client, mode 0700, gone at exit, on error and at the next start."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

_PREFIX = "velvetmed-worker-"
_LOCK = "in-use"
_SETTLING_S = 60.0


class PrivateFolder:
    """A folder of random name that only this user can enter, held by a lock for as long as its owner lives."""

    def __init__(self, parent: Path | None = None) -> None:
        base = Path(parent) if parent is not None else Path(tempfile.gettempdir())
        remove_stale(base)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        self._lock: IO[bytes] | None = (self.path / _LOCK).open("wb")
        _try_lock(self._lock)
        self._count = 0

    def save_array(self, array: np.ndarray[Any, Any]) -> Path:
        """Write one array as `.npy` (no objects, ever); the name says nothing about it."""
        if array.dtype.hasobject:
            raise TypeError("arrays of Python objects do not travel")
        self._count += 1
        path = self.path / f"{self._count:06d}.npy"
        # A flipped or transposed view is written element by element otherwise: much slower than one copy.
        contiguous = np.ascontiguousarray(array)
        with path.open("wb") as out:
            np.save(out, contiguous, allow_pickle=False)
        return path

    def remove(self) -> None:
        """Delete the folder with everything in it; safe to call twice."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        shutil.rmtree(self.path, ignore_errors=True)


def remove_stale(parent: Path) -> None:
    """Delete folders that a crashed program left behind; one that is in use holds its lock and stays."""
    for folder in parent.glob(_PREFIX + "*"):
        try:
            if folder.is_symlink() or not _is_mine(folder) or time.time() - folder.stat().st_mtime < _SETTLING_S:
                continue
            with (folder / _LOCK).open("r+b") as lock:
                if not _try_lock(lock):
                    continue
                if sys.platform != "win32":
                    shutil.rmtree(folder, ignore_errors=True)
            if sys.platform == "win32":
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue


def _is_mine(folder: Path) -> bool:
    return sys.platform == "win32" or folder.stat().st_uid == os.getuid()


def _try_lock(stream: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
