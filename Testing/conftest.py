"""Fixtures and skips that every room's tests share: the sample scan, and what this machine can show or draw."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# Fixtures that several rooms need; here because pytest wants this in the topmost conftest.
pytest_plugins = (
    "Testing.plugins.bundles",
    "Testing.plugins.colipri_bundles",
    "Testing.plugins.fine_parts",
    "Testing.plugins.language",
    "Testing.plugins.postgres",
    "Testing.plugins.records",
    "Testing.plugins.studies",
)

REPOSITORY = Path(__file__).resolve().parents[1]

# Qt draws into memory, and no test ever waits for a screen.
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
# Which arithmetic is faster here and now must not decide a test.
os.environ.setdefault("VELVETMED_PRECISION", "fp32")


@cache
def _why_no_gui() -> str | None:
    for module, package in (("PySide6", "PySide6_Essentials"), ("vtk", "slicer-core")):
        if importlib.util.find_spec(module) is None:
            return f"the Python package {package} is not installed"
    for library in ("EGL", "GL", "xkbcommon", "fontconfig"):
        if os.name == "posix" and ctypes.util.find_library(library) is None:
            return f"the system library {library} is missing (see scripts/system_packages.sh)"
    return None


@cache
def _why_no_browser() -> str | None:
    if importlib.util.find_spec("playwright") is None:
        return "the Python package playwright is not installed"
    if not any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")):
        return "no Chromium on this machine (see scripts/system_packages.sh)"
    return None


@cache
def _why_no_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA device on this machine"


_REASONS = {"gui": _why_no_gui, "browser": _why_no_browser, "gpu": _why_no_gpu}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, why_not in _REASONS.items():
        if item.get_closest_marker(marker) and (reason := why_not()):
            pytest.skip(reason)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def sample() -> Any:
    """The sample scan: .ct, .mask, .structures, .dicom, .xml (paths). Skips with the reason where it cannot be had."""
    from VelvetMedLib.cohorts.sample import get_sample
    from VelvetMedLib.errors import DownloadError

    try:
        return get_sample()
    except DownloadError as problem:
        pytest.skip(f"the sample scan cannot be had: {problem.what} {problem.found}")
