"""The models a user can choose from, read from their bundle.json alone: the GUI process never opens weights."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One bundle and what its card says. folder is what the worker gets; it is not shown."""

    id: str
    folder: Path
    version: str = ""
    recipe: str = ""
    licence: str = ""
    training_data: str = ""
    intended_use: str = ""

    @property
    def title(self) -> str:
        return f"{self.id} {self.version}".strip()


def read_entry(folder: Path) -> ModelEntry | None:
    """None when the folder holds no bundle of this format: the worker says what is wrong with it when it is used."""
    try:
        data = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict) or data.get("format_version") != FORMAT_VERSION or not data.get("id"):
        return None
    texts = {name: _text(data.get(name)) for name in ("version", "recipe", "licence", "training_data", "intended_use")}
    return ModelEntry(id=str(data["id"]), folder=folder, **texts)


def list_models(root: Path, *, environ: Mapping[str, str] = os.environ) -> list[ModelEntry]:
    """Shipped models first, then added ones."""
    folders: list[Path] = []
    for parent in (root / "VelvetMedLib" / "assets" / "bundles", added_models_folder(environ)):
        if parent.is_dir():
            folders += sorted(child for child in parent.iterdir() if child.is_dir())
    entries = [entry for entry in map(read_entry, folders) if entry is not None]
    return list({entry.folder.resolve(): entry for entry in entries}.values())


def added_models_folder(environ: Mapping[str, str]) -> Path:
    """Where `velvetmed models add` keeps bundles on this kind of machine."""
    if environ.get("VELVETMED_DATA"):
        return Path(environ["VELVETMED_DATA"]) / "bundles"
    if sys.platform == "win32":
        base = Path(environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "velvetmed" / "bundles"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else "; ".join(map(str, value)) if isinstance(value, list) else str(value)
