"""The store in a PostgreSQL database with pgvector, for archives beyond one machine. Opt-in, and headless only.

Nothing is sent but to the server whose `postgresql://` address the user gives, and only what an `Item` holds without its place:
where scans are never leaves the machine. One index per database. A password belongs into libpq's own password file, not into the address.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.errors import UsageError
from VelvetMedLib.tasks.store.base import (
    FORMAT_VERSION,
    Entry,
    Facts,
    Item,
    Where,
    array_bytes,
    bytes_array,
    check_items,
    foreign_version,
    no_such_case,
    now,
    organ_row,
    refuse,
)

SCHEMES = ("postgresql://", "postgres://")
SCHEMA = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE velvetmed_index (
    format_version int NOT NULL, encoding_key text NOT NULL, dimension int NOT NULL, region_dimension int NOT NULL, salt text NOT NULL);
CREATE TABLE velvetmed_cases (
    number bigserial PRIMARY KEY, volume text NOT NULL UNIQUE, added text NOT NULL, source text NOT NULL,
    present text[] NOT NULL, absent text[] NOT NULL, organs text[] NOT NULL, id text, text text, centers jsonb NOT NULL,
    picture bytea, match_tokens bytea, study vector({dimension}) NOT NULL);
CREATE TABLE velvetmed_regions (
    number bigint REFERENCES velvetmed_cases ON DELETE CASCADE, organ text, vector vector({region_dimension}) NOT NULL,
    PRIMARY KEY (organ, number));
"""


def is_address(place: Path | str) -> bool:
    """Whether a place names a database. A `Path` never does: what comes from Slicer cannot reach a server."""
    return isinstance(place, str) and place.startswith(SCHEMES)


class DatabaseStore:
    """`Store` behind one connection. Dot products are pgvector's, exact: no approximate index is made."""

    def __init__(self, address: str) -> None:
        with _told():
            self._db = _connect(address)
            try:
                self._facts = _read_facts(self._db)
            except BaseException:
                self._db.close()
                raise

    @staticmethod
    def exists(address: str) -> bool:
        with _told(), _connect(address) as db:
            return _has_index(db)

    @classmethod
    def create(cls, address: str, facts: Facts) -> DatabaseStore:
        with _told(), _connect(address) as db, db.transaction():
            # A vector type has at least one dimension, also where no organ will ever bring one.
            db.execute(SCHEMA.format(dimension=facts.dimension, region_dimension=max(facts.region_dimension, 1)))
            told = asdict(facts) | {"format_version": FORMAT_VERSION}
            names, marks = ", ".join(told), ", ".join(f"%({name})s" for name in told)
            db.execute(f"INSERT INTO velvetmed_index ({names}) VALUES ({marks})", told)
        return cls(address)

    @property
    def facts(self) -> Facts:
        return self._facts

    def __len__(self) -> int:
        with _told():
            return int(self._db.execute("SELECT count(*) FROM velvetmed_cases").fetchone()[0])

    def close(self) -> None:
        self._db.close()

    def knows(self, volume_sha256: str) -> bool:
        with _told():
            query = "SELECT 1 FROM velvetmed_cases WHERE volume = %s"
            return self._db.execute(query, (self._facts.salted(volume_sha256),)).fetchone() is not None

    def add(self, items: Sequence[Item]) -> int:
        check_items(items, self._facts)
        added = 0
        with _told(), self._db.transaction():
            for item in items:
                if self.knows(item.volume_sha256):
                    continue  # asked first, as a refused insertion uses up a number
                found = self._db.execute(
                    """INSERT INTO velvetmed_cases
                       (volume, added, source, present, absent, organs, id, text, centers, picture, match_tokens, study)
                       VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (volume) DO NOTHING RETURNING number""",
                    (
                        self._facts.salted(item.volume_sha256), now(), item.source, list(item.present), list(item.absent),
                        list(item.regions), item.id, item.text, json.dumps(dict(item.centers)), item.picture,
                        array_bytes(item.match_tokens), _words(item.study),
                    ),
                ).fetchone()  # fmt: skip
                if found is None:
                    continue
                added += 1
                for organ, vector in item.regions.items():
                    self._db.execute("INSERT INTO velvetmed_regions VALUES (%s, %s, %s)", (found[0], organ, _words(vector)))
        return added

    def remove(self, numbers: Sequence[int]) -> int:
        with _told():
            return int(self._db.execute("DELETE FROM velvetmed_cases WHERE number = ANY(%s)", (list(numbers),)).rowcount)

    def nearest(self, query: NDArray[np.float32], count: int, where: Where, region: str | None = None) -> list[tuple[int, float]]:
        own = where.exclude and self._facts.salted(where.exclude)
        filters: dict[str, tuple[str, Any]] = {
            "present": ("present @> %(present)s", list(where.present)),
            "absent": ("absent @> %(absent)s", list(where.absent)),
            "organs": ("organs @> %(organs)s", list(where.organs)),
            "source": ("source = %(source)s", where.source),
            "since": ("added >= %(since)s", where.since),
            "with_text": ("text IS NOT NULL", where.with_text),
            "own": ("volume <> %(own)s", own),
            "region": ("organ = %(region)s", region),
        }
        values = {name: value for name, (_, value) in filters.items()} | {"query": _words(query), "count": count}
        chosen = " AND ".join(["true", *(words for words, value in filters.values() if value)])
        column, tables = "study", "velvetmed_cases"
        if region is not None:
            organ_row(region)
            column, tables = "vector", "velvetmed_cases JOIN velvetmed_regions USING (number)"
        words = f"SELECT number, -({column} <#> %(query)s::vector) FROM {tables} WHERE {chosen} ORDER BY 2 DESC, number LIMIT %(count)s"
        with _told():
            return [(int(number), float(score)) for number, score in self._db.execute(words, values).fetchall()]

    def entries(self, numbers: Sequence[int]) -> list[Entry]:
        with _told(), self._db.transaction():
            query = """SELECT number, source, present, absent, id, text, centers, picture, match_tokens
                       FROM velvetmed_cases WHERE number = ANY(%s)"""
            cases = {row[0]: row[1:] for row in self._db.execute(query, (list(numbers),)).fetchall()}
            regions: dict[int, dict[str, NDArray[np.float32]]] = {}
            query = "SELECT number, organ, vector::text FROM velvetmed_regions WHERE number = ANY(%s)"
            for number, organ, vector in self._db.execute(query, (list(numbers),)).fetchall():
                regions.setdefault(number, {})[organ] = np.array(json.loads(vector), np.float32)
        if missing := set(numbers) - set(cases):
            raise no_such_case(min(missing))
        return [_entry(number, cases[number], regions.get(number, {})) for number in numbers]

    def place(self, number: int) -> str | None:
        """None: places are never sent."""
        self.entries([number])
        return None


def _entry(number: int, case: tuple[Any, ...], regions: dict[str, NDArray[np.float32]]) -> Entry:
    source, present, absent, name, text, centers, picture, tokens = case
    return Entry(
        number=number,
        id=name,
        present=tuple(present),
        absent=tuple(absent),
        source=source,
        text=text,
        picture=None if picture is None else bytes(picture),
        centers={organ: (x, y, z) for organ, (x, y, z) in centers.items()},
        regions=regions,
        match_tokens=bytes_array(None if tokens is None else bytes(tokens)),
    )


def _words(vector: NDArray[np.float32]) -> str:
    """A vector as pgvector reads it; nine digits bring every float32 back."""
    return "[" + ",".join(f"{x:.9g}" for x in vector.tolist()) + "]"


def _read_facts(db: Any) -> Facts:
    if not _has_index(db):
        raise refuse("There is no index here.", "a database without one", "an index", "Make one with 'velvetmed index'.")
    names = ("encoding_key", "dimension", "region_dimension", "salt")
    version, *values = db.execute(f"SELECT format_version, {', '.join(names)} FROM velvetmed_index").fetchone()
    if version != FORMAT_VERSION:
        raise foreign_version(version)
    return Facts(**dict(zip(names, values, strict=True)))


def _has_index(db: Any) -> bool:
    return db.execute("SELECT to_regclass('velvetmed_index')").fetchone()[0] is not None


def _connect(address: str) -> Any:
    try:
        import psycopg
    except ImportError:
        raise UsageError(
            "An index in a database needs the package psycopg.",
            found="a Python without it",
            expected="VelvetMed with its extra 'database'",
            next_step="Run: pip install 'velvetmed[database]'",
        ) from None
    return psycopg.connect(address, autocommit=True)


@contextmanager
def _told() -> Iterator[None]:
    """What the server or the driver says, by its kind alone: its words may repeat the address, a password or values."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.split(".")[0] != "psycopg":
            raise
        state = getattr(error, "sqlstate", None)
        raise refuse(
            "The database cannot be used.",
            type(error).__name__ + (f" (SQLSTATE {state})" if state else ""),
            "a PostgreSQL server with the extension pgvector, and the right to make tables in the schema",
            "Check the address, the server and your rights there.",
        ) from None
