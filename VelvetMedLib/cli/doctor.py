"""What this machine has, what is missing, what to do. Looks only; changes nothing and opens no connection."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from typing import Any

from VelvetMedLib import RESEARCH_USE_ONLY, __version__

NEEDED = {"torch": "2.2", "numpy": "1.26", "SimpleITK": "2.3", "safetensors": "0.4.3", "tokenizers": "0.19", "pydicom": "3.0.2"}
OPTIONAL = {
    "rich": "a progress bar",
    "matplotlib": "the contact sheet of a cohort ([review])",
    "jinja2": "review pages ([review])",
    "monai": "training and evaluation ([train])",
    "sacrebleu": "evaluation ([train])",
    "transformers": "training and language models ([train], [llm])",
}
LEAST_FREE_GB, LEAST_MEMORY_GB = 2.0, 3.0


def examine() -> dict[str, Any]:
    """All checks: each {name, ok, found, todo}. `ok` is True, False, or None for what is merely optional and absent."""
    checks = [_python(), *(_package(name, floor) for name, floor in NEEDED.items()), _device(), _memory(), _space(), *_bundles(), _sample()]
    checks += [_optional(name, use) for name, use in OPTIONAL.items()]
    return {
        "velvetmed": __version__,
        "ready": all(c["ok"] is not False for c in checks),
        "devices": _devices(),
        "checks": checks,
        "notice": RESEARCH_USE_ONLY,
    }


def render(report: dict[str, Any]) -> str:
    """The checks as lines."""
    marks = {True: "ok     ", False: "MISSING", None: "-      "}
    lines = [f"velvetmed {report['velvetmed']}"]
    for check in report["checks"]:
        lines.append(f"{marks[check['ok']]} {check['name']:<22} {check['found']}")
        if check["todo"]:
            lines.append(f"{'':<30} -> {check['todo']}")
    lines += ["Ready." if report["ready"] else "Not ready: see the lines marked MISSING.", RESEARCH_USE_ONLY]
    return "\n".join(lines)


def _check(name: str, ok: bool | None, found: str, todo: str = "") -> dict[str, Any]:
    return {"name": name, "ok": ok, "found": found, "todo": "" if ok else todo}


def _python() -> dict[str, Any]:
    return _check("Python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.system()}", "Use Python 3.11 or newer.")


def _version(name: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def _numbers(version: str) -> list[int]:
    parts = []
    for part in version.split("+")[0].split(".")[:3]:
        digits = "".join(c for c in part if c.isdigit())
        parts.append(int(digits) if digits else 0)
    return parts


def _package(name: str, floor: str) -> dict[str, Any]:
    version = _version(name)
    if version is None:
        return _check(name, False, "not installed", f"pip install '{name}>={floor}'")
    return _check(name, _numbers(version) >= _numbers(floor) or version == "unknown version", version, f"pip install -U '{name}>={floor}'")


def _optional(name: str, use: str) -> dict[str, Any]:
    version = _version(name)
    return _check(name, True if version else None, version or f"not installed; only for {use}")


def _devices() -> list[str]:
    """Names that `--device` takes here."""
    try:
        import torch
    except ImportError:
        return []
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def _device() -> dict[str, Any]:
    cores = os.cpu_count() or 1
    try:
        import torch
    except ImportError:
        return _check("compute", None, f"{cores} cores")
    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no CUDA device"
    return _check("compute", True, f"{cores} cores, {torch.get_num_threads()} torch threads, {cuda}")


def _memory() -> dict[str, Any]:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):
        return _check("memory", None, "unknown on this system")
    return _check("memory", total >= LEAST_MEMORY_GB, f"{total:.1f} GB", f"An analysis needs about {LEAST_MEMORY_GB:.0f} GB.")


def _space() -> dict[str, Any]:
    free = shutil.disk_usage(tempfile.gettempdir()).free / 1e9
    return _check("temporary space", free >= LEAST_FREE_GB, f"{free:.1f} GB free", f"Free at least {LEAST_FREE_GB:.0f} GB.")


def _bundles() -> list[dict[str, Any]]:
    try:
        from VelvetMedLib.bundle import catalogue
    except ImportError as problem:  # what is missing is said by its own line; this must not keep it from being said
        return [_check("bundle", None, f"not looked at: {problem.name or 'a package'} is missing")]
    found = [
        _check(
            f"bundle {e.name}",
            not e.problem,
            e.problem or f"version {e.config.version if e.config else ''}, {e.bytes / 1e6:.1f} MB",
            "Add it again.",
        )
        for e in catalogue()
    ]
    return found or [_check("bundle", False, "none", "velvetmed models add FOLDER_OR_ZIP")]


def _sample() -> dict[str, Any]:
    try:
        from VelvetMedLib.cohorts.sample import default_cache
    except ImportError as problem:
        return _check("sample scan", None, f"not looked at: {problem.name or 'a package'} is missing")
    there = (default_cache() / "sample").is_dir()
    return _check("sample scan", True if there else None, "in the cache" if there else "not fetched yet ('velvetmed sample')")
