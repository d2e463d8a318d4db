"""Which bundles this machine has: those shipped with the library and those the user added."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from VelvetMedLib.bundle.config import CARD_FILE, CONFIG_FILE, BundleConfig, refuse
from VelvetMedLib.bundle.store import PICKLED_ENDINGS, plain_name, put_folder, read_config, verify_bundle
from VelvetMedLib.errors import BundleError

DEFAULT_BUNDLE = "demo"
MOST_MEMBERS = 64
MOST_UNPACKED_BYTES = 8 << 30
MOST_RATIO = 200
_DEVICE_NAMES = {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(1, 10)), *(f"lpt{n}" for n in range(1, 10))}


@dataclass(frozen=True)
class Entry:
    """One bundle of this machine. problem: why it cannot be used, else empty."""

    name: str
    origin: Literal["shipped", "added"]
    folder: Path
    config: BundleConfig | None
    bytes: int
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without the folder: a user's path is nobody else's business."""
        config = self.config
        return {
            "name": self.name,
            "origin": self.origin,
            "version": config.version if config else "",
            "recipe": config.recipe if config else "",
            "licence": config.licence if config else "",
            "intended_use": config.intended_use if config else "",
            "bytes": self.bytes,
            "problem": self.problem,
        }


def shipped_folder() -> Path:
    """Where the library's own bundles lie."""
    return Path(str(files("VelvetMedLib").joinpath("assets", "bundles")))


def user_folder() -> Path:
    """Where added bundles lie: under $VELVETMED_DATA, else the platform's folder for a user's data."""
    named = os.environ.get("VELVETMED_DATA")
    if named:
        return Path(named) / "bundles"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "velvetmed" / "bundles"


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def catalogue() -> tuple[Entry, ...]:
    """All bundles, shipped ones first; a shipped name cannot be shadowed. Only bundle.json is read, no weights."""
    found: dict[str, Entry] = {}
    places: tuple[tuple[Literal["shipped", "added"], Path], ...] = (("shipped", shipped_folder()), ("added", user_folder()))
    for origin, place in places:
        if not place.is_dir():
            continue
        for folder in sorted(p for p in place.iterdir() if p.is_dir() and plain_name(p.name)):
            if folder.name in found or not (folder / CONFIG_FILE).is_file():
                continue
            try:
                config, problem = read_config(folder), ""
            except BundleError as error:
                config, problem = None, f"{error.what} {error.found}"
            found[folder.name] = Entry(folder.name, origin, folder, config, _size(folder), problem)
    return tuple(found.values())


def entry_of(name: str) -> Entry:
    """The bundle of this name. Raises BundleError that lists those there are."""
    entries = catalogue()
    for entry in entries:
        if entry.name == name:
            return entry
    raise refuse(
        f"There is no model bundle called {name!r}." if plain_name(name) else "There is no such model bundle.",
        found="bundles: " + (", ".join(e.name for e in entries) or "none"),
        expected="the name of one of them, or the folder of a bundle",
        next_step="See 'velvetmed models list'; add a bundle with 'velvetmed models add FOLDER_OR_ZIP'.",
    )


def locate(path_or_name: Path | str) -> Path:
    """The folder of a bundle given by name or by path. A plain word is a catalogue name first, a folder second."""
    text = str(path_or_name)
    if isinstance(path_or_name, Path) or not plain_name(text):
        return Path(path_or_name)
    if any(e.name == text for e in catalogue()):
        return entry_of(text).folder
    return Path(text) if (Path(text) / CONFIG_FILE).is_file() else entry_of(text).folder


def model_card(name: str) -> str:
    """The model card of a bundle, as Markdown."""
    folder = locate(name)
    read_config(folder)
    path = folder / CARD_FILE
    if not path.is_file():
        raise refuse("The bundle has no model card.", found="no MODEL_CARD.md", expected="MODEL_CARD.md beside bundle.json")
    return path.read_text(encoding="utf-8")


def add_bundle(source: Path | str) -> Entry:
    """Copy a bundle from a folder or a zip into the user's bundles, after every check. Raises BundleError."""
    source = Path(source)
    home = user_folder()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adding-", dir=home) as temporary:
        staged = Path(temporary) / "bundle"
        if source.is_dir():
            config = read_config(source)
            staged.mkdir()
            for path in sorted(source.iterdir()):
                if not path.name.startswith(".") and path.is_file() and not path.is_symlink():
                    shutil.copyfile(path, staged / path.name)
        elif source.is_file() and zipfile.is_zipfile(source):
            staged = unpack(source, Path(temporary) / "unpacked")
        else:
            pickled = source.suffix.lower() in PICKLED_ENDINGS
            raise refuse(
                "This is not a model bundle.",
                found="a pickled weights file" if pickled else "neither a folder nor a zip",
                expected="a bundle folder or a zip of one",
                next_step="Convert pickled weights once with training/convert_weights.py."
                if pickled
                else "Give the folder or zip of a bundle.",
            )
        config = verify_bundle(staged)
        if any(e.name == config.id and e.origin == "shipped" for e in catalogue()):
            raise refuse(
                f"A shipped bundle is already called {config.id!r}.",
                found=f"id = {config.id}",
                expected="an id that no shipped bundle has",
                next_step="Ask its maker for another id, or use it by its folder.",
            )
        put_folder(staged, home / config.id)
    return entry_of(config.id)


def remove_bundle(name: str) -> int:
    """Delete an added bundle; returns the bytes freed. A shipped one cannot be removed."""
    entry = entry_of(name)
    if entry.origin == "shipped":
        raise refuse(
            f"The bundle {name!r} belongs to VelvetMed and stays.",
            found="a shipped bundle",
            expected="a bundle that was added",
            next_step="Only bundles with origin 'added' in 'velvetmed models list' can be removed.",
        )
    aside = entry.folder.with_name(f".{name}-removed-{os.getpid()}")
    os.replace(entry.folder, aside)
    shutil.rmtree(aside)
    return entry.bytes


def unpack(archive: Path, target: Path) -> Path:
    """Unpack a bundle zip safely; returns the folder that holds bundle.json.

    Links, absolute paths, drive letters, '..', device names and too many, too large or too tightly packed members are refused.
    """
    target.mkdir(parents=True)
    root = os.path.realpath(target)
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        total = sum(m.file_size for m in members)
        if len(members) > MOST_MEMBERS or total > MOST_UNPACKED_BYTES:
            raise refuse("The zip is larger than a bundle can be.", found=f"{len(members)} members, {total} bytes", expected="one bundle")
        for place, member in enumerate(members, start=1):
            _check_member(member, place, root)
            if member.is_dir():
                continue
            path = Path(root, *member.filename.replace("\\", "/").split("/"))
            path.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(member) as packed, path.open("xb") as out:
                _copy_capped(packed, out, member.file_size, place)
    homes = [p.parent for p in (target / CONFIG_FILE, *target.glob(f"*/{CONFIG_FILE}")) if p.is_file()]
    if len(homes) != 1:
        raise refuse("The zip is not one bundle.", found=f"{len(homes)} bundle.json", expected="exactly one, at the top or one folder down")
    return homes[0]


def _check_member(member: zipfile.ZipInfo, place: int, root: str) -> None:
    name = member.filename.replace("\\", "/")
    parts = [p for p in name.split("/") if p]
    bad = (
        name.startswith("/")
        or re.match(r"^[A-Za-z]:", name) is not None
        or ".." in parts
        or any(p.split(".")[0].lower() in _DEVICE_NAMES or ":" in p or "\0" in p for p in parts)
        or stat.S_ISLNK(member.external_attr >> 16)
        or os.path.commonpath([root, os.path.realpath(os.path.join(root, *parts))]) != root
    )
    if bad:
        raise refuse(
            "The zip holds a member that would leave its folder; nothing was kept.",
            found=f"member {place}",
            expected="plain files inside one folder",
        )
    if member.file_size > MOST_RATIO * max(member.compress_size, 1) and member.file_size > 1 << 20:
        raise refuse(
            "The zip holds a member that is packed too tightly to be real.", found=f"member {place}", expected=f"a ratio below {MOST_RATIO}"
        )


def _copy_capped(packed: Any, out: Any, size: int, place: int) -> None:
    """Copy exactly `size` bytes: a header may lie about what follows."""
    left = size
    while chunk := packed.read(min(1 << 20, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise refuse("The zip holds more than it declares; nothing was kept.", found=f"member {place}", expected=f"{size} bytes")
        out.write(chunk)
