"""Settings of a recipe changed by dotted name, as on the command line: `optimiser.learning_rate=1e-3`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.config import Settings

S = TypeVar("S", bound=Settings)


def names_of(settings: Settings, before: str = "") -> dict[str, Any]:
    """Dotted name -> value of every plain setting, in order."""
    out: dict[str, Any] = {}
    for f in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, f.name)
        if isinstance(value, Settings):
            out |= names_of(value, f"{before}{f.name}.")
        else:
            out[before + f.name] = value
    return out


def overridden(settings: S, assignments: Iterable[str]) -> S:
    """`settings` with every `name=value` applied; of several for one name the last counts.

    All are applied before the settings check themselves, so that their order does not matter. Raises UsageError on an
    unknown name, a value of the wrong kind, or values that do not fit together.
    """
    changes: dict[str, str] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise UsageError(
                "A setting is not written as name=value.",
                found=assignment,
                expected="for example optimiser.learning_rate=1e-3",
                next_step="Write the dotted name, an equals sign and the value, without spaces.",
            )
        changes[name.strip()] = text.strip()
    return _changed(settings, changes, "", settings)


def _changed(settings: S, changes: Mapping[str, str], before: str, whole: Settings) -> S:
    """changes: names below `before` -> text."""
    hints = get_type_hints(type(settings))
    known = {f.name for f in fields(settings)}  # type: ignore[arg-type]
    inner: dict[str, dict[str, str]] = {}
    values: dict[str, Any] = {}
    for name, text in changes.items():
        first, dot, rest = name.partition(".")
        value = getattr(settings, first) if first in known else None
        group = isinstance(value, Settings)
        if first not in known or (dot and not group):
            raise _unknown(before + name, whole)
        if dot:
            inner.setdefault(first, {})[rest] = text
        elif isinstance(value, Settings):
            choices = ", ".join(f"{before}{name}.{n}" for n in names_of(value))
            raise UsageError(
                f"The setting {before}{name} is a group of settings.",
                found=f"{before}{name}={text}",
                expected=choices,
                next_step="Set one of these.",
            )
        else:
            values[first] = _parsed(before + name, hints[first], text)
    values |= {first: _changed(getattr(settings, first), below, f"{before}{first}.", whole) for first, below in inner.items()}
    changed: S = replace(settings, **values)  # type: ignore[type-var]
    return changed


def _unknown(name: str, whole: Settings) -> UsageError:
    known = list(names_of(whole))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or [n for n in known if n.endswith("." + name.split(".")[-1])]
    return UsageError(
        "There is no setting of this name.",
        found=name,
        expected="perhaps " + " or ".join(near) if near else "one of: " + ", ".join(known),
        next_step="Print all settings with the word 'settings' in place of a run.",
    )


def _parsed(name: str, hint: Any, text: str) -> Any:
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    for kind in kinds:
        if kind is NoneType and text.lower() in ("none", "null"):
            return None
        try:
            return _as(kind, text)
        except ValueError:
            continue
    raise UsageError(
        f"The setting {name} has the wrong kind of value.",
        found=text or "nothing",
        expected=_described(hint),
        next_step="Write the value in this form.",
    )


def _as(kind: Any, text: str) -> Any:
    if kind is bool:
        words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
        if text.lower() not in words:
            raise ValueError(text)
        return words[text.lower()]
    if kind in (int, float):
        return kind(text)
    if kind is str:
        return text
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        parts = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
        if Ellipsis not in inner and len(parts) != len(inner):
            raise ValueError(text)
        return tuple(_as(inner[0], part) for part in parts)
    raise ValueError(text)


def _described(hint: Any) -> str:
    if isinstance(hint, UnionType):
        return " or ".join(_described(kind) for kind in get_args(hint))
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        many = "values" if Ellipsis in inner else f"{len(inner)} values"
        return f"{many} of the kind {_described(inner[0])}, joined by commas"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", NoneType: "none"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))
