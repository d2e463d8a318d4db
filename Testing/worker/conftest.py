"""A client of the test worker, and helpers that look at processes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from VelvetMedLib.worker.client import Event, WorkerClient

ECHO_WORKER = Path(__file__).with_name("echo_worker.py")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[WorkerClient]:
    with WorkerClient([sys.executable, str(ECHO_WORKER)], dict(os.environ), workdir=tmp_path) as made:
        yield made


@pytest.fixture
def until() -> Callable[..., list[Event]]:
    """Poll a client until an event of the wanted kind came, as a GUI's timer does; returns all events seen."""

    def wait(client: WorkerClient, kind: str, timeout_s: float = 10.0) -> list[Event]:
        seen: list[Event] = []
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            seen += client.poll()
            if any(event.kind == kind for event in seen):
                return seen
            time.sleep(0.01)
        raise AssertionError(f"no {kind} event within {timeout_s} s; seen: {seen}")

    return wait


@pytest.fixture
def gone() -> Callable[..., bool]:
    """Whether a process ends within the time (a zombie counts as ended)."""

    def wait(pid: int, timeout_s: float = 3.0) -> bool:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if not _alive(pid):
                return True
            time.sleep(0.02)
        return False

    return wait


def _alive(pid: int) -> bool:
    status: Any = Path(f"/proc/{pid}/status")
    if status.parent.parent.is_dir() and Path("/proc/self").exists():
        try:
            return "State:\tZ" not in status.read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
