"""From the text of bundle.json to `BundleConfig`: unknown, missing and mistyped keys are refused by name, and so is whatever names code."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from VelvetMedLib.bundle.config import (
    FAMILIES,
    FORMAT_VERSION,
    VELVET,
    BundleConfig,
    Calibration,
    CropViewConfig,
    FileEntry,
    FindingEntry,
    FineViewConfig,
    GlobalViewConfig,
    LesionEntry,
    ViewsConfig,
    ZeroShotConfig,
    check,
    refuse,
)

CODE_KEYS = frozenset({"_target_", "_partial_", "_call_", "auto_map", "trust_remote_code", "__class__", "py/object", "_requires_"})
"""Keys by which other model formats name classes or code to import; data that asks for code is refused, not ignored."""


def parse(text: str) -> BundleConfig:
    """BundleConfig from the text of bundle.json. Raises BundleError that names the key at fault."""
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise refuse("bundle.json is not valid JSON.", found=str(error), expected="a JSON object") from None
    if not isinstance(data, dict):
        raise refuse("bundle.json is not a JSON object.", found=type(data).__name__, expected="a JSON object")
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise refuse(
            "The bundle has a format version that this VelvetMed does not know.",
            found=f"format_version = {version!r}",
            expected=f"format_version = {FORMAT_VERSION}",
            next_step="Update VelvetMed, or use a bundle made for this version.",
        )
    _refuse_code(data, "")
    family, views = data.get("family", VELVET), data.get("views")
    if family not in FAMILIES:
        raise refuse(
            "The bundle is of a kind that this VelvetMed does not know.", found=f"family = {family!r}", expected=" or ".join(FAMILIES)
        )
    if isinstance(views, dict) and (missing := [name for name in FAMILIES[family] if name not in views]):
        raise refuse("bundle.json lacks a key.", found=", ".join(f"views: no {n}" for n in missing), expected=", ".join(FAMILIES[family]))
    return _build(BundleConfig, data, "")


_OPTIONAL = {
    (BundleConfig, "family"),
    (BundleConfig, "zero_shot"),
    (FindingEntry, "prevalence"),
    (FindingEntry, "evidence"),
    (LesionEntry, "least_trust"),
    *((ViewsConfig, name) for name in ("global", "fine", "crop", "windowed")),
}
"""Keys that not every family has, or that bundles of older versions lack; `parse` asks for the views that a family needs."""
_NESTED: dict[tuple[type, str], type] = {
    (BundleConfig, "views"): ViewsConfig,
    (BundleConfig, "zero_shot"): ZeroShotConfig,
    (ViewsConfig, "global_"): GlobalViewConfig,
    (ViewsConfig, "fine"): FineViewConfig,
    (ViewsConfig, "crop"): CropViewConfig,
    (ViewsConfig, "windowed"): CropViewConfig,
    (FindingEntry, "calibration"): Calibration,
}
_LISTS: dict[tuple[type, str], type] = {(BundleConfig, "lesions"): LesionEntry, (BundleConfig, "findings"): FindingEntry}
_PLAIN: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float),
    "Mapping[str, Any]": (dict,),
}


def _build(kind: Any, data: Any, where: str) -> Any:
    """A dataclass from a dictionary; unknown, missing or mistyped keys are named with their place."""
    place = where or "bundle.json"
    if not isinstance(data, dict):
        raise refuse(f"'{place}' in bundle.json is not an object.", found=type(data).__name__, expected="a JSON object")
    known = {f.name.rstrip("_"): f for f in fields(kind)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise refuse(
            "bundle.json holds a key that is not known.",
            found=", ".join(f"{place}: {k}" for k in unknown),
            expected="only " + ", ".join(known),
        )
    missing = sorted(key for key in set(known) - set(data) if (kind, key) not in _OPTIONAL)
    if missing:
        raise refuse("bundle.json lacks a key.", found=", ".join(f"{place}: no {k}" for k in missing), expected=", ".join(known))
    values: dict[str, Any] = {}
    for key, value in data.items():
        name, spot = known[key].name, f"{where}.{key}".lstrip(".")
        expected = _PLAIN.get(str(known[key].type))
        if (kind, name) in _NESTED:
            value = _build(_NESTED[kind, name], value, spot)
        elif (kind, name) in _LISTS:
            check(isinstance(value, list), spot, type(value).__name__, "a list")
            value = tuple(_build(_LISTS[kind, name], entry, f"{spot}[{n}]") for n, entry in enumerate(value))
        elif kind is BundleConfig and name == "files":
            check(isinstance(value, dict), spot, type(value).__name__, "an object")
            value = {file: _build(FileEntry, entry, f"files.{file}") for file, entry in value.items()}
        elif expected is not None:
            right = isinstance(value, expected) and (bool in expected or not isinstance(value, bool))
            check(right, spot, f"{value!r}", known[key].type)
        else:
            value = _numbers(value, str(known[key].type), spot)
        values[name] = value
    return kind(**values)


def _numbers(value: Any, kind: str, where: str) -> Any:
    """Tuples of names or numbers from JSON lists."""
    if kind == "tuple[str, ...]":
        check(isinstance(value, list) and all(isinstance(v, str) for v in value), where, value, "a list of names")
        return tuple(value)
    check(isinstance(value, list), where, type(value).__name__, "a list of numbers")
    if kind.startswith("tuple[tuple"):
        return tuple(_numbers(v, "tuple[float, float]", where) for v in value)
    count = {"IntTriple": 3, "Triple": 3, "FourNumbers | None": 4}.get(kind, 2)
    types = (int,) if kind == "IntTriple" else (int, float)
    right = len(value) == count and all(isinstance(v, types) and not isinstance(v, bool) for v in value)
    check(right, where, value, f"{count} numbers")
    return tuple(value)


def _refuse_code(data: Any, where: str) -> None:
    if isinstance(data, dict):
        for key, value in data.items():
            if key in CODE_KEYS:
                raise refuse(
                    "bundle.json names code to run; nothing of it was loaded.",
                    found=f"the key '{key}'" + (f" in {where}" if where else ""),
                    expected="data only: no class, function or module names",
                    next_step="Do not use this bundle; ask its maker for one that holds data only.",
                )
            _refuse_code(value, f"{where}.{key}".lstrip("."))
    elif isinstance(data, list):
        for entry in data:
            _refuse_code(entry, where)


def _no_constant(name: str) -> float:
    raise ValueError(f"the number {name}")
