"""The store in a folder: append-only vector files, read through memory maps, and an SQLite base whose commit alone makes a case count.

    index.json             what the index is made with; written once
    items.sqlite           the cases; the order of their numbers is the order of the vectors
    studies-<g>.f32        float32 [N, D]
    regions-<g>.f32        float32 [N, 32, R]; an organ that a case does not show is NaN
    private/places.sqlite  where the scans are: its owner alone can read it, and the rest searches without it

Adding happens under the base's write lock: rows are written behind the last one that counts and flushed, then one commit names them.
A kill before the commit leaves bytes that nobody reads and the next addition overwrites. Removing writes the vector files anew as
generation <g> + 1 and one commit changes over, so that a removed case is gone and not only hidden. No mapped file is ever replaced.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.tasks.store.base import (
    STRUCTURES,
    Entry,
    Facts,
    Item,
    Where,
    array_bytes,
    bytes_array,
    check_items,
    damaged,
    no_such_case,
    now,
    organ_row,
)
from VelvetMedLib.tasks.store.files import ITEMS, MARK, PLACES, REGIONS, STUDIES, connect, crc_of, make_folder, mapped, read_facts, told

FEW = 4
"""A filter that leaves less than one case in so many has its rows read alone."""


@dataclass(frozen=True, eq=False)
class _Snapshot:
    """The cases that one transaction saw: numbers [N] ascending, and maps of their rows."""

    generation: int
    studies_crc: int
    numbers: NDArray[np.int64]
    studies: NDArray[np.float32]
    regions: NDArray[np.float32]

    def rows(self, numbers: Sequence[int]) -> NDArray[np.int64]:
        """Raises IndexMismatchError on a number that is not there."""
        rows = np.searchsorted(self.numbers, numbers)
        for number, row in zip(numbers, rows, strict=True):
            if row == len(self.numbers) or self.numbers[row] != number:
                raise no_such_case(number)
        return rows


class FolderStore:
    """`Store` in a folder of this machine. One instance belongs to one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._facts = read_facts(folder)
        if not (folder / ITEMS).is_file():
            raise damaged(f"{ITEMS} is missing")
        with told():
            self._base = connect(folder / ITEMS)
            try:
                self._base.execute("BEGIN")
                self._now = self._load()
                self._base.execute("COMMIT")
                if zlib.crc32(self._now.studies.data) != self._now.studies_crc:
                    raise damaged("vectors that were changed")
            except BaseException:
                self._base.close()
                raise

    @staticmethod
    def exists(folder: Path) -> bool:
        return (folder / MARK).is_file()

    @classmethod
    def create(cls, folder: Path, facts: Facts) -> FolderStore:
        """A new, empty store in a folder that is new or empty."""
        make_folder(folder, facts)
        return cls(folder)

    @property
    def facts(self) -> Facts:
        return self._facts

    def __len__(self) -> int:
        return len(self._now.numbers)

    def close(self) -> None:
        """Lets go of the base and the maps (the last reference to a map closes it)."""
        self._base.close()
        del self._now

    # reading

    def _load(self) -> _Snapshot:
        """Within a transaction: while it lasts, nobody can change over to other vector files."""
        generation, crc = self._base.execute("SELECT generation, studies_crc FROM state").fetchone()
        numbers = np.fromiter((row[0] for row in self._base.execute("SELECT number FROM items ORDER BY number")), np.int64)
        shapes = {STUDIES: (self._facts.dimension,), REGIONS: (STRUCTURES, self._facts.region_dimension)}
        studies, regions = (mapped(self._path(name, generation), (len(numbers), *shape)) for name, shape in shapes.items())
        return _Snapshot(generation, crc, numbers, studies, regions)

    def _path(self, name: str, generation: int) -> Path:
        return self._folder / f"{name}-{generation}.f32"

    def knows(self, volume_sha256: str) -> bool:
        with told():
            found = self._base.execute("SELECT 1 FROM items WHERE volume = ?", (self._facts.salted(volume_sha256),)).fetchone()
        return found is not None

    def nearest(self, query: NDArray[np.float32], count: int, where: Where, region: str | None = None) -> list[tuple[int, float]]:
        rows = self._now.studies if region is None else self._now.regions[:, organ_row(region)]
        if query.shape != rows.shape[1:]:
            raise ValueError(f"a query of shape {query.shape} for vectors of {rows.shape[1:]}")
        allowed, query = np.ones(len(rows), bool), query.astype(np.float32)
        with told():
            self._filter(allowed, where)
        places = np.flatnonzero(allowed)
        # The product takes as long as its rows take to be read: of few rows only these are.
        scores = np.asarray(rows[places] @ query if FEW * len(places) < len(rows) else (rows @ query)[places])
        seen = np.isfinite(scores)  # the rows of organs that are not seen are not
        numbers, scores = self._now.numbers[places[seen]], scores[seen]
        best = np.argpartition(-scores, count - 1)[:count] if count < len(scores) else np.arange(len(scores))
        return [(int(numbers[n]), float(scores[n])) for n in best[np.argsort(-scores[best], kind="stable")]]

    def _filter(self, allowed: NDArray[np.bool_], where: Where) -> None:
        """Clear the rows that `where` excludes, in place."""
        conditions: list[tuple[str, Any]] = [
            (f"instr({column}, ?) > 0", f" {name} ")
            for column, names in (("present", where.present), ("absent", where.absent), ("organs", where.organs))
            for name in names
        ]
        conditions += [("source = ?", where.source)] if where.source else []
        conditions += [("added >= ?", where.since)] if where.since else []
        conditions += [("with_text = ?", 1)] if where.with_text else []
        if conditions:
            words = " AND ".join(condition for condition, _ in conditions)
            found = self._base.execute(f"SELECT number FROM items WHERE {words}", [value for _, value in conditions])
            numbers = np.array(found.fetchall(), np.int64).reshape(-1)
            rows = np.searchsorted(self._now.numbers, numbers)
            known = rows < len(allowed)  # others may have added cases since
            rows = rows[known][self._now.numbers[rows[known]] == numbers[known]]
            kept = np.zeros_like(allowed)
            kept[rows] = True
            allowed &= kept
        if where.exclude is not None:
            own = self._base.execute("SELECT number FROM items WHERE volume = ?", (self._facts.salted(where.exclude),)).fetchone()
            if own is not None:
                allowed &= self._now.numbers != own[0]

    def entries(self, numbers: Sequence[int]) -> list[Entry]:
        rows = self._now.rows(numbers)
        marks = ", ".join("?" * len(numbers))
        query = f"""SELECT number, volume, source, present, absent, organs, id, text, centers, picture, match_tokens, crc
                    FROM items JOIN details USING (number) WHERE number IN ({marks})"""
        with told():
            found = {row[0]: row for row in self._base.execute(query, list(numbers))}
        if missing := set(numbers) - set(found):
            raise no_such_case(min(missing))
        return [self._entry(found[number], self._now.regions[row]) for number, row in zip(numbers, rows, strict=True)]

    def _entry(self, row: tuple[Any, ...], regions: NDArray[np.float32]) -> Entry:
        *words, picture, tokens, crc = row
        if crc_of(words, picture, tokens, regions) != crc:
            raise damaged(f"case {row[0]} was changed")
        number, _, source, present, absent, organs, name, text, centers = words
        return Entry(
            number=number,
            id=name,
            present=tuple(present.split()),
            absent=tuple(absent.split()),
            source=source,
            text=text,
            picture=picture,
            centers={organ: (x, y, z) for organ, (x, y, z) in json.loads(centers).items()},
            regions={organ: np.array(regions[organ_row(organ)]) for organ in organs.split()},
            match_tokens=bytes_array(tokens),
        )

    def place(self, number: int) -> str | None:
        self._now.rows([number])
        with told():
            volume = self._base.execute("SELECT volume FROM items WHERE number = ?", (number,)).fetchone()
            if volume is None or not (self._folder / PLACES).is_file():
                return None
            with self._places() as places:
                found = places.execute("SELECT place FROM places WHERE volume = ?", volume).fetchone()
        return None if found is None else str(found[0])

    # writing

    def add(self, items: Sequence[Item]) -> int:
        check_items(items, self._facts)
        with self._writing():
            fresh = {self._facts.salted(item.volume_sha256): item for item in items if not self.knows(item.volume_sha256)}
            if not fresh:
                return 0
            studies = np.stack([item.study for item in fresh.values()]).astype("<f4")
            regions = np.full((len(fresh), STRUCTURES, self._facts.region_dimension), np.nan, "<f4")
            for block, item in zip(regions, fresh.values(), strict=True):
                for organ, vector in item.regions.items():
                    block[organ_row(organ)] = vector
            self._append(STUDIES, studies)
            self._append(REGIONS, regions)
            if any(item.place for item in fresh.values()):
                with self._places() as places:
                    rows = [(volume, item.place) for volume, item in fresh.items() if item.place]
                    places.executemany("INSERT OR REPLACE INTO places VALUES (?, ?)", rows)
            for (volume, item), block in zip(fresh.items(), regions, strict=True):
                self._insert(volume, item, block)
            self._base.execute("UPDATE state SET studies_crc = ?", (zlib.crc32(studies.data, self._now.studies_crc),))
        return len(fresh)

    def _append(self, name: str, rows: NDArray[np.float32]) -> None:
        with self._path(name, self._now.generation).open("rb+") as stream:
            stream.seek(len(self) * rows[0].nbytes)
            stream.write(rows.data)
            stream.flush()
            os.fsync(stream.fileno())

    def _insert(self, volume: str, item: Item, regions: NDArray[np.float32]) -> None:
        present, absent, organs = (" ".join(["", *names, ""]) for names in (item.present, item.absent, item.regions))
        centers = json.dumps({organ: [round(x, 1) for x in center] for organ, center in item.centers.items()})
        found = [volume, item.source, present, absent, organs]
        number = self._base.execute(
            "INSERT INTO items (volume, source, present, absent, organs, added, with_text) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [*found, now(), item.text is not None],
        ).lastrowid
        details = [item.id, item.text, centers]
        tokens = array_bytes(item.match_tokens)
        crc = crc_of([number, *found, *details], item.picture, tokens, regions)
        self._base.execute("INSERT INTO details VALUES (?, ?, ?, ?, ?, ?, ?)", [number, *details, item.picture, tokens, crc])

    def remove(self, numbers: Sequence[int]) -> int:
        with self._writing():
            old = self._now
            there = sorted(set(numbers) & set(old.numbers.tolist()))
            keep = ~np.isin(old.numbers, there)
            for name, rows in ((STUDIES, old.studies), (REGIONS, old.regions)):
                with self._path(name, old.generation + 1).open("wb") as stream:
                    for start in range(0, len(keep), 4096):
                        stream.write(np.ascontiguousarray(rows[start : start + 4096][keep[start : start + 4096]]).data)
                    stream.flush()
                    os.fsync(stream.fileno())
            volumes = [self._base.execute("SELECT volume FROM items WHERE number = ?", (n,)).fetchone() for n in there]
            if (self._folder / PLACES).is_file():
                with self._places() as places:
                    places.executemany("DELETE FROM places WHERE volume = ?", volumes)
            for table in ("items", "details"):
                self._base.executemany(f"DELETE FROM {table} WHERE number = ?", [(n,) for n in there])
            crc = zlib.crc32(np.ascontiguousarray(old.studies[keep]).data)
            self._base.execute("UPDATE state SET generation = generation + 1, studies_crc = ?", (crc,))
            del old, rows
        with self._writing():
            pass  # the files of the generation before go
        return len(there)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The base's write lock: all that happens within counts with the commit at its end, or not at all."""
        with told():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                self._now = self._load()
                for path in self._folder.glob("*.f32"):
                    generation = re.fullmatch(rf"(?:{STUDIES}|{REGIONS})-(\d+)\.f32", path.name)
                    if generation is not None and int(generation[1]) != self._now.generation:
                        with suppress(OSError):  # on Windows a reader may still have it mapped: the next writer tries again
                            path.unlink()
                yield
                self._base.execute("COMMIT")
            except BaseException:
                self._base.rollback()
                raise
            self._base.execute("BEGIN")
            self._now = self._load()
            self._base.execute("COMMIT")

    @contextmanager
    def _places(self) -> Iterator[sqlite3.Connection]:
        path = self._folder / PLACES
        if not path.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with closing(connect(path)) as base:
            base.execute("BEGIN IMMEDIATE")
            base.execute("CREATE TABLE IF NOT EXISTS places (volume TEXT PRIMARY KEY, place TEXT NOT NULL)")
            yield base
            base.execute("COMMIT")
