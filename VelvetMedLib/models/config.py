"""Shared behaviour of the network settings: to and from plain dictionaries, and checks whose messages name the setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from types import NoneType, UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from VelvetMedLib.errors import UsageError


class Settings:
    """Base of the frozen keyword-only dataclasses that describe a network.

    Every architecture number is a field, so that a bundle's JSON alone rebuilds the network. Subclasses check
    themselves in `__post_init__` with `require`.
    """

    def require(self, ok: bool, setting: str, expected: str) -> None:
        """Raise `UsageError` naming `setting` unless `ok`."""
        if not ok:
            name = type(self).__name__
            raise UsageError(
                f"The setting {name}.{setting} cannot be used.",
                found=f"{setting} = {getattr(self, setting)!r}",
                expected=expected,
                next_step=f"Change {setting} in the architecture settings ({name}).",
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; inverse of `from_dict`."""
        return {key: _plain(value) for key, value in asdict(self).items()}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build from a dictionary; an unknown or missing key is a `UsageError` that names it."""
        known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise UsageError(
                f"The architecture settings ({cls.__name__}) hold keys that this version does not know.",
                found=", ".join(unknown),
                expected="only: " + ", ".join(sorted(known)),
                next_step="Use a version of VelvetMed that knows these settings, or a bundle made for this one.",
            )
        hints = get_type_hints(cls)
        values = {key: _typed(f"{cls.__name__}.{key}", hints[key], value) for key, value in data.items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise UsageError(
                f"The architecture settings ({cls.__name__}) are incomplete.",
                found=str(error).split(") ", 1)[-1],
                expected="a value for every setting without a default",
                next_step="Use a complete bundle, or add the missing setting.",
            ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _typed(name: str, hint: Any, value: Any) -> Any:
    """JSON knows neither tuples nor our dataclasses: restore both from the field's type, and refuse any other kind of value."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    for kind in kinds:
        if kind is NoneType and value is None:
            return None
        if isinstance(kind, type) and issubclass(kind, Settings) and isinstance(value, Mapping):
            return kind.from_dict(value)
        if get_origin(kind) is tuple and isinstance(value, list | tuple):
            inner = get_args(kind)
            kinds_of = inner[:1] * len(value) if Ellipsis in inner else inner
            if len(kinds_of) == len(value):
                return tuple(_typed(name, hint, v) for hint, v in zip(kinds_of, value, strict=True))
        if kind is float and type(value) is int:
            return float(value)
        if isinstance(kind, type) and type(value) is kind:
            return value
    raise UsageError(
        f"The setting {name} has the wrong kind of value.",
        found=repr(value)[:80],
        expected=getattr(hint, "__name__", str(hint)),
        next_step="Use a bundle made by VelvetMed, or correct the setting.",
    )
