"""What a store of indexed cases is: its records, its filters, and the few methods by which an index is read and grows.

A store holds no identity: of a case its own id, its findings, its organs, vectors, a small picture and a salted hash of its
volume; the text of its draft and the place of its scan only where an `Item` brings them, and a place never leaves the machine.
"""

from __future__ import annotations

import hashlib
import io
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.errors import IndexMismatchError, UsageError
from VelvetMedLib.reports import ontology
from VelvetMedLib.shapes import Triple

FORMAT_VERSION = 4
STRUCTURES = 32
"""Organs that may have a region vector: the structures of the ontology, by label - 1."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What an index is made with; never changes. region_dimension: 0 where the model has no organs."""

    encoding_key: str
    dimension: int
    region_dimension: int
    salt: str = field(default_factory=lambda: secrets.token_hex(16))

    def salted(self, volume_sha256: str) -> str:
        """The hash under which a volume stands in this index: useless without the index's own salt."""
        return hashlib.sha256(f"{self.salt}:{volume_sha256}".encode()).hexdigest()


@dataclass(frozen=True, eq=False, kw_only=True)
class CaseRecord:
    """What is kept of a case. id: of its Case; None for a plain scan, which goes by its number.

    present, absent: findings that its `source` (a report, or the model) calls so. centers: organ to its centre in RAS mm.
    regions: organ to its unit vector. picture: a PNG. match_tokens: [V, W] for a match head.
    """

    id: str | None = None
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    source: Literal["report", "model"] = "model"
    text: str | None = None
    picture: bytes | None = None
    centers: Mapping[str, Triple] = field(default_factory=dict)
    regions: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    match_tokens: NDArray[np.float16] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Item(CaseRecord):
    """A case for the index. study: its row [D], whose dot product with a query ranks it. place: where its scan is, for the private part."""

    volume_sha256: str
    study: NDArray[np.float32]
    place: str | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Entry(CaseRecord):
    """A case of the index. number: from 1, never given twice: its neutral name."""

    number: int


@dataclass(frozen=True, kw_only=True)
class Where:
    """Which cases a search may return; what is left out restricts nothing. Raises UsageError on a name that is not known.

    present, absent: findings called so (a finding that was not assessed is neither). organs: all of them in view.
    since: date "2026-11-22" from which on a case was added, in UTC. exclude: SHA-256 of a volume.
    """

    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    organs: tuple[str, ...] = ()
    source: Literal["report", "model"] | None = None
    since: str | None = None
    with_text: bool = False
    exclude: str | None = None

    def __post_init__(self) -> None:
        for name in (*self.present, *self.absent):
            if name not in ontology().finding_names:
                raise _unknown("finding", name, ontology().finding_names)
        for name in self.organs:
            organ_row(name)
        # Compared as text: other ways of writing a day would sort elsewhere.
        if self.since is not None and not re.fullmatch(r"\d{4}-[01]\d-[0-3]\d", self.since):
            raise UsageError(
                "The date cannot be read.", found=self.since, expected="a date such as 2026-11-22", next_step="Correct the date."
            )


class Store(Protocol):
    """Where cases are kept. Every search is exact. Methods raise IndexMismatchError where the store is damaged or out of reach."""

    @property
    def facts(self) -> Facts: ...

    def __len__(self) -> int: ...

    def knows(self, volume_sha256: str) -> bool:
        """Whether a case of this volume is there."""

    def add(self, items: Sequence[Item]) -> int:
        """Add cases whose volumes are not there yet, all or none; they survive anything from the moment this returns. The count."""

    def remove(self, numbers: Sequence[int]) -> int:
        """Take cases out with everything that was kept of them; returns how many there were."""

    def nearest(self, query: NDArray[np.float32], count: int, where: Where, region: str | None = None) -> list[tuple[int, float]]:
        """(number, dot product) of the nearest cases, best first; by the rows of studies, or by the unit vectors of an organ."""

    def entries(self, numbers: Sequence[int]) -> list[Entry]:
        """The cases of these numbers, in this order."""

    def place(self, number: int) -> str | None:
        """Where the scan of a case is, if that was kept."""

    def close(self) -> None: ...


def organ_row(name: str) -> int:
    """Row of an organ among region vectors. Raises UsageError on an unknown name."""
    try:
        return ontology().structure(name).label - 1
    except KeyError:
        raise _unknown("organ", name, [s.name for s in ontology().structures]) from None


def _unknown(what: str, found: str, names: Sequence[str]) -> UsageError:
    return UsageError(
        f"This {what} is not known.", found=found, expected="one of: " + ", ".join(names), next_step="Correct the name and try again."
    )


def now() -> str:
    """The time of an addition, UTC; its text sorts as the time does."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def array_bytes(array: NDArray[np.float16] | None) -> bytes | None:
    """An array with its shape; inverse of `bytes_array`."""
    if array is None:
        return None
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def bytes_array(data: bytes | None) -> NDArray[np.float16] | None:
    """Raises ValueError on damaged bytes."""
    return None if data is None else np.load(io.BytesIO(data), allow_pickle=False)


def check_items(items: Sequence[Item], facts: Facts) -> None:
    """Raise ValueError where a vector is not of the index's size or not finite."""
    for item in items:
        sizes = [(item.study, facts.dimension), *((v, facts.region_dimension) for v in item.regions.values())]
        if any(vector.shape != (size,) or not np.isfinite(vector).all() for vector, size in sizes):
            raise ValueError(f"vectors other than {facts.dimension} and {facts.region_dimension} finite numbers")


def foreign_version(found: object) -> IndexMismatchError:
    """An index of another format version."""
    return refuse(
        "The index was made by another version of VelvetMed and must be built again.",
        f"format_version = {found!r}",
        f"format_version = {FORMAT_VERSION}",
        "Delete it and run 'velvetmed index' again.",
    )


def no_such_case(number: int) -> IndexMismatchError:
    return refuse("There is no such case in the index.", f"case {number}", "the number of a case that is there", "Search again.")


def damaged(found: str) -> IndexMismatchError:
    return refuse("The index is damaged.", found, "what 'velvetmed index' wrote", "Delete it and run 'velvetmed index' again.")


def refuse(what: str, found: str, expected: str, next_step: str) -> IndexMismatchError:
    return IndexMismatchError(what, found=found, expected=expected, next_step=next_step)
