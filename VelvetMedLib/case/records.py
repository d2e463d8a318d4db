"""Frozen records that check and convert every field when they are made, so that a record of the wrong shape cannot exist."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Self, TypeVar

_R = TypeVar("_R", bound="Record")


class Record:
    """Base of the Case's dataclasses.

    Construction turns numpy scalars and lists into plain numbers and tuples and mappings into records, and raises
    TypeError or ValueError naming the field where a value does not fit its annotation. Numbers must be finite.
    """

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            where = f"{type(self).__name__}.{f.name}"
            object.__setattr__(self, f.name, coerce(hints[f.name], getattr(self, f.name), where))
        self.check()

    def check(self) -> None:
        """Rules across fields; raises ValueError."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; inverse of `from_dict`."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Raises TypeError or ValueError on unknown or missing keys and on values that do not fit."""
        return _build(cls, data, cls.__name__)


_KNOWN_HINTS: dict[type, dict[str, Any]] = {}
"""Resolving annotations takes most of the time of reading a Case, and a class never changes them."""


def _hints(cls: type) -> dict[str, Any]:
    if cls not in _KNOWN_HINTS:
        _KNOWN_HINTS[cls] = typing.get_type_hints(cls)
    return _KNOWN_HINTS[cls]


def _build(cls: type[_R], data: Any, where: str) -> _R:
    if not isinstance(data, Mapping):
        raise TypeError(f"{where}: expected a mapping, got {type(data).__name__}")
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(map(str, data)) - set(known))
    if unknown:
        raise TypeError(f"{where}: unknown keys {unknown}")
    needed = [n for n, f in known.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    missing = [n for n in needed if n not in data]
    if missing:
        raise TypeError(f"{where}: missing keys {missing}")
    return cls(**data)


def coerce(hint: Any, value: Any, where: str) -> Any:
    """A value as its annotation says: the conversions that JSON and numpy ask for, and no others."""
    if hint is Any:
        return _plain(value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            if type(None) in arguments:
                return None
            raise TypeError(f"{where}: must not be empty")
        inner = [a for a in arguments if a is not type(None)]
        return coerce(inner[0], value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"{where}: {value!r} is none of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        return _coerce_tuple(arguments, value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise TypeError(f"{where}: expected a mapping, got {type(value).__name__}")
        return {coerce(str, k, where): coerce(arguments[1], v, f"{where}[{k!r}]") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return _coerce_record(hint, value, where)
    return _coerce_scalar(hint, value, where)


def _coerce_record(hint: Any, value: Any, where: str) -> Any:
    if isinstance(value, hint):
        return value
    if isinstance(hint, type) and issubclass(hint, Record):
        return _build(hint, value, where)
    if not isinstance(value, Mapping):
        raise TypeError(f"{where}: expected a mapping, got {type(value).__name__}")
    return hint(**value)


def _coerce_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{where}: expected a list, got {type(value).__name__}")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(coerce(arguments[0], v, f"{where}[{n}]") for n, v in enumerate(value))
    if len(value) != len(arguments):
        raise ValueError(f"{where}: expected {len(arguments)} entries, got {len(value)}")
    return tuple(coerce(a, v, f"{where}[{n}]") for n, (a, v) in enumerate(zip(arguments, value, strict=True)))


def _coerce_scalar(hint: Any, value: Any, where: str) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} is not a finite number")
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TypeError(f"{where}: expected {hint.__name__}, got {type(value).__name__}")
    return value


def _plain(value: Any) -> Any:
    """A value in JSON's own types."""
    if isinstance(value, Record):
        return value.as_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if value is None or isinstance(value, (str, int, bool)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise TypeError(f"{type(value).__name__} value {value!r} cannot be stored as JSON")
