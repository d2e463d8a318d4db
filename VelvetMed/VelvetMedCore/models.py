"""The models a user can choose from, read from their bundle.json alone: the GUI process never opens weights."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from slicer.i18n import tr as _

FORMAT_VERSION = 1
CARD_FILE = "MODEL_CARD.md"
LONGEST_CARD = 200_000


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One bundle and what its card says. folder is what the worker gets; it is not shown. problem: why it cannot be used.

    thresholds: finding to (absent below, present from), for what the model assesses.
    """

    id: str
    folder: Path
    origin: Literal["shipped", "added"] = "shipped"
    bytes: int = 0
    version: str = ""
    recipe: str = ""
    licence: str = ""
    training_data: str = ""
    intended_use: str = ""
    measured: str = ""
    thresholds: dict[str, tuple[float, float]] = field(default_factory=dict)
    problem: str = ""

    @property
    def title(self) -> str:
        return f"{self.id} {self.version}".strip()

    @property
    def size_mb(self) -> float:
        return self.bytes / 1e6

    def card(self) -> str:
        """The whole model card as Markdown; empty where there is none."""
        try:
            with (self.folder / CARD_FILE).open(encoding="utf-8", errors="replace") as stream:
                return stream.read(LONGEST_CARD)
        except OSError:
            return ""


def read_entry(folder: Path, origin: Literal["shipped", "added"] = "shipped") -> ModelEntry | None:
    """None when the folder holds no bundle at all; one that cannot be used is listed with its problem, so that it can be removed."""
    try:
        text = (folder / "bundle.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    if not isinstance(data, dict) or not isinstance(data.get("id"), str) or not data["id"]:
        return ModelEntry(id=folder.name, folder=folder, origin=origin, bytes=size, problem=_("Its description is damaged."))
    if data.get("format_version") != FORMAT_VERSION:
        problem = _("It was made for another version of VelvetMed.")
        return ModelEntry(id=data["id"], folder=folder, origin=origin, bytes=size, problem=problem)
    texts = {name: _text(data.get(name)) for name in ("version", "recipe", "licence", "training_data", "intended_use")}
    return ModelEntry(
        id=data["id"],
        folder=folder,
        origin=origin,
        bytes=size,
        measured=measured(data.get("results")),
        thresholds=_thresholds(data.get("findings")),
        **texts,
    )


def list_models(root: Path, *, environ: Mapping[str, str] = os.environ) -> list[ModelEntry]:
    """Shipped models first, then added ones; a shipped name cannot be shadowed."""
    places: tuple[tuple[Literal["shipped", "added"], Path], ...] = (
        ("shipped", root / "VelvetMedLib" / "assets" / "bundles"),
        ("added", added_models_folder(environ)),
    )
    found: dict[str, ModelEntry] = {}
    for origin, parent in places:
        # Folders that begin with a dot are models on their way in or out.
        for child in sorted(parent.iterdir()) if parent.is_dir() else ():
            entry = read_entry(child, origin) if child.is_dir() and not child.name.startswith(".") else None
            if entry is not None:
                found.setdefault(entry.id, entry)
    return list(found.values())


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


def measured(results: Any) -> str:
    """How a model was measured, in a sentence: what bundles of this project record; other records are only announced."""
    if not isinstance(results, dict) or not results:
        return _("Nothing is recorded.")
    held = results.get("held_out_synthetic")
    if not isinstance(held, dict):
        return _("See the whole card.")
    parts = []
    dice = held.get("organ_dice_mean")
    if isinstance(dice, (int, float)):
        parts.append(_("organ Dice {dice:.2f} on average").format(dice=dice))
    findings = held.get("findings")
    rows = [row for row in findings.values() if isinstance(row, dict) and row.get("assessed")] if isinstance(findings, dict) else []
    areas = [row["auroc"] for row in rows if isinstance(row.get("auroc"), (int, float))]
    if areas:
        text = _("AUROC {low:.2f} to {high:.2f} for {n} assessed findings")
        parts.append(text.format(low=min(areas), high=max(areas), n=len(areas)))
    cases = results.get("cases")
    count = cases.get("test") if isinstance(cases, dict) else None
    where = _("{n} held-out synthetic cases").format(n=count) if count else _("held-out synthetic cases")
    return _("{where}: {figures}. No patients.").format(where=where, figures=", ".join(parts)) if parts else _("See the whole card.")


def _thresholds(findings: Any) -> dict[str, tuple[float, float]]:
    found = {}
    for entry in findings if isinstance(findings, list) else []:
        if isinstance(entry, dict) and entry.get("assessed") is True:
            low, high = entry.get("threshold_absent"), entry.get("threshold_present")
            if isinstance(low, (int, float)) and isinstance(high, (int, float)):
                found[str(entry.get("name"))] = (float(low), float(high))
    return found


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else "; ".join(map(str, value)) if isinstance(value, list) else str(value)
