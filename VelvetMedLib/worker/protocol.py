"""The messages between client and worker: one JSON object a line, UTF-8, in both directions.

Client to worker: `{"id": 3, "verb": "analyze", "params": {...}}`.
Worker to client: `{"kind": "ready" | "progress" | "result" | "error", "id": 3 | null, "data": {...}}`.
Every request is answered by any number of `progress` and exactly one `result` or `error`, except `cancel` and `close`, which have no
answer of their own. Standard library only: both sides import this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from VelvetMedLib.errors import WorkerError

PROTOCOL_VERSION = 1
VERBS = ("hello", "load", "encode", "analyze", "segment", "findings", "report", "ask", "ground", "similar", "index", "cancel", "close")
UNANSWERED = frozenset({"cancel", "close"})
FINAL = frozenset({"result", "error"})
KINDS = frozenset({"ready", "progress"}) | FINAL
GRACE_S = 0.8
"""How long a cancelled or abandoned worker may take before it is ended by force."""
MAX_LINE_BYTES = 16 * 1024 * 1024
"""Voxels never travel in a line, so a longer one is a mistake and not a message."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the client asks for."""

    id: int
    verb: str
    params: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        return _line({"id": self.id, "verb": self.verb, "params": self.params})


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the worker says; `id` is the request's, or None for `ready`."""

    kind: str
    id: int | None
    data: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        return _line({"kind": self.kind, "id": self.id, "data": self.data})


def decode_request(line: bytes) -> Request:
    """Read one line from the client; a `WorkerError` says what is wrong with it."""
    message = _object(line)
    number, verb, params = message.get("id"), message.get("verb"), message.get("params", {})
    if type(number) is not int or not isinstance(verb, str) or not isinstance(params, dict):
        raise _malformed("a message without a whole number `id`, a text `verb` and an object `params`")
    return Request(id=number, verb=verb, params=params)


def decode_reply(line: bytes) -> Reply:
    """Read one line from the worker; a `WorkerError` says what is wrong with it."""
    message = _object(line)
    kind, number, data = message.get("kind"), message.get("id"), message.get("data", {})
    if kind not in KINDS or not (number is None or type(number) is int) or not isinstance(data, dict):
        raise _malformed("a message without a known `kind`, an `id` and an object `data`")
    return Reply(kind=str(kind), id=number, data=data)


def _line(message: Mapping[str, Any]) -> bytes:
    # NaN is not JSON: refusing it here beats a reader that fails elsewhere.
    return json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode("utf-8") + b"\n"


def _plain(value: Any) -> Any:
    """Numpy's scalars and arrays, and records of a Case, as plain JSON, so that handlers need not convert each one."""
    for method in ("tolist", "as_dict"):
        convert = getattr(value, method, None)
        if callable(convert):
            return convert()
    raise TypeError(f"a {type(value).__name__} cannot travel in a message")


def _object(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise _malformed(f"a message of {len(line)} bytes")
    try:
        message = json.loads(line.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise _malformed("bytes that are not one JSON object") from None
    if not isinstance(message, dict):
        raise _malformed(f"a JSON {type(message).__name__}")
    return message


def _malformed(found: str) -> WorkerError:
    return WorkerError(
        "A message between the program and its worker could not be read.",
        found=found,
        expected=f"one JSON object per line, protocol {PROTOCOL_VERSION}",
        next_step="Use the same VelvetMed version for the program and the worker, then start the run again.",
    )
