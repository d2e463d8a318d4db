"""Fixture of the host's own tests: the running host, or a skip that names what is missing."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

TESTING = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def host() -> Any:
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    if str(TESTING) not in sys.path:
        sys.path.insert(0, str(TESTING))
    try:
        from slicer_host.host import start
    except ImportError as error:  # a missing system library of Qt shows as an ImportError
        pytest.skip(f"the Slicer test host cannot start here: {error}")
    return start()
