"""Similar cases: an index folder of study vectors and findings, searched exactly by image or by text, with the reason.

The folder holds `index.json` (written last: the commit mark), `vectors.npy` (float32 [N, D]), `thumbnails.npy` (uint8 [N, S, S])
and `items.sqlite`. It holds no identity: a case's own id, its findings, where its organs lie, and a salted hash of its volume.
Text only if asked for. Where the scans are is kept only if asked for, in `private/places.json`: a part of its own, which its
owner alone can read, which nothing shows, and without which the rest of the index still searches.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.errors import IndexMismatchError
from VelvetMedLib.reports import ontology
from VelvetMedLib.reports.parse import parse_report
from VelvetMedLib.shapes import Triple
from VelvetMedLib.tasks.crop import takes_one_crop, text_vectors
from VelvetMedLib.tasks.grounding import LONGEST_TEXT_TOKENS, checked_text
from VelvetMedLib.tasks.thumbnails import SIDE

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

FORMAT_VERSION = 2
MARK = "index.json"
PLACES = "private/places.json"
_FILES = ("vectors.npy", "thumbnails.npy", "items.sqlite")
_NO_PICTURE = np.zeros((SIDE, SIDE), np.uint8)


@dataclass(frozen=True, eq=False)
class Item:
    """One case for the index. present: names of its present findings, as its `source` says: a report or the model.
    text: its draft, kept only on request. thumbnail: uint8 [SIDE, SIDE]. centers: organ name to its centre in RAS mm.
    place: where the scan is; kept in the private part, on request."""

    id: str
    volume_sha256: str
    study: NDArray[np.float32]
    present: tuple[str, ...] = ()
    text: str | None = None
    source: Literal["report", "model"] = "model"
    thumbnail: NDArray[np.uint8] | None = None
    centers: Mapping[str, Triple] = field(default_factory=dict)
    place: str | None = None


@dataclass(frozen=True)
class Hit:
    """One result. number: the case's place in the index, from 1: its neutral name. similarity: cosine.
    shared: present findings that query and case have in common. source: whether a report or the model names the case's findings."""

    id: str
    similarity: float
    present: tuple[str, ...]
    shared: tuple[str, ...]
    text: str | None = None
    why: str = field(default="")
    number: int = 0
    source: str = "model"

    def as_dict(self) -> dict[str, Any]:
        entry = {
            "case": self.id,
            "number": self.number,
            "source": self.source,
            "similarity": self.similarity,
            "present": list(self.present),
            "shared": list(self.shared),
            "why": self.why,
        }
        return entry if self.text is None else entry | {"text": self.text}


def build_index(items: Iterable[Item], out: Path | str, encoding_key: str, *, keep_text: bool = False, keep_places: bool = False) -> int:
    """Write an index, all or nothing, replacing an older one; returns the number of cases. Two items of one volume count once.

    keep_places: also write the private part, by which a hit can be opened.
    """
    out = Path(out)
    salt = secrets.token_hex(16)
    chosen: dict[str, Item] = {}
    for item in items:
        chosen.setdefault(salted(item.volume_sha256, salt), item)
    if not chosen:
        raise _refuse("There is nothing to index.", "no case", "at least one analysed case or scan", "Run 'velvetmed analyze' first.")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).is_file())):
        raise _refuse(
            "The index cannot be written there.", "something that is not an index", "a new or empty folder", "Choose another folder."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".index-", dir=out.parent) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        vectors = np.stack([item.study for item in chosen.values()]).astype(np.float32)
        np.save(new / "vectors.npy", vectors, allow_pickle=False)
        pictures = np.stack([_NO_PICTURE if item.thumbnail is None else item.thumbnail for item in chosen.values()])
        np.save(new / "thumbnails.npy", pictures, allow_pickle=False)
        with closing(sqlite3.connect(new / "items.sqlite")) as base:
            base.execute(
                "CREATE TABLE items "
                "(row INTEGER PRIMARY KEY, id TEXT, volume TEXT UNIQUE, present TEXT, text TEXT, source TEXT, centers TEXT)"
            )
            rows = [
                (
                    row,
                    item.id,
                    volume,
                    json.dumps(list(item.present)),
                    item.text if keep_text else None,
                    item.source,
                    json.dumps({name: [round(x, 1) for x in center] for name, center in item.centers.items()}),
                )
                for row, (volume, item) in enumerate(chosen.items())
            ]
            base.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            base.commit()
        facts = {
            "format_version": FORMAT_VERSION,
            "notice": RESEARCH_USE_ONLY,
            "encoding_key": encoding_key,
            "count": len(chosen),
            "dimension": int(vectors.shape[1]),
            "salt": salt,
            "with_text": keep_text,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": {name: _sha256(new / name) for name in _FILES},
        }
        (new / MARK).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        if keep_places:
            _write_places(new, [item.place for item in chosen.values()])
        for path in (part for part in new.rglob("*") if part.is_file()):
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())
        _put(new, out)
    return len(chosen)


def _write_places(folder: Path, places: Sequence[str | None]) -> None:
    path = folder / PLACES
    path.parent.mkdir(mode=0o700)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        json.dump({"format_version": 1, "places": list(places)}, stream)


def _put(new: Path, out: Path) -> None:
    if not out.exists():
        os.replace(new, out)
        return
    aside = out.with_name(f".{out.name}-old-{os.getpid()}")
    os.replace(out, aside)
    try:
        os.replace(new, out)
    except OSError:
        os.replace(aside, out)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def salted(volume_sha256: str, salt: str) -> str:
    """The hash under which a volume stands in an index: useless without the index's own salt."""
    return hashlib.sha256(f"{salt}:{volume_sha256}".encode()).hexdigest()


class Index:
    """An open index, checked against its own hashes and against the bundle that searches it."""

    def __init__(self, folder: Path | str, bundle: Bundle) -> None:
        """Raises IndexMismatchError if the folder is damaged or was made by other weights or preprocessing."""
        folder = Path(folder)
        self._facts = _read_facts(folder)
        if self._facts["encoding_key"] != bundle.encoding_key:
            raise _refuse(
                "The index was made by another model or preprocessing.",
                f"an index for encodings {str(self._facts['encoding_key'])[:12]}...",
                f"encodings {bundle.encoding_key[:12]}... of bundle {bundle.config.id!r}",
                "Search with the bundle that made the index, or run 'velvetmed index' again.",
            )
        for name in _FILES:
            if not (folder / name).is_file() or _sha256(folder / name) != self._facts["files"].get(name):
                raise _damaged(f"{name} missing or changed")
        self._vectors = np.load(folder / "vectors.npy", allow_pickle=False, mmap_mode="r")
        if self._vectors.shape != (self._facts["count"], self._facts["dimension"]) or self._vectors.dtype != np.float32:
            raise _damaged(f"vectors of shape {self._vectors.shape}")
        with closing(sqlite3.connect(f"{(folder / 'items.sqlite').resolve().as_uri()}?mode=ro", uri=True)) as base:
            rows = base.execute("SELECT id, volume, present, text, source, centers FROM items ORDER BY row").fetchall()
        if len(rows) != len(self._vectors):
            raise _damaged(f"{len(rows)} items for {len(self._vectors)} vectors")
        self._folder = folder
        self._pictures = np.load(folder / "thumbnails.npy", allow_pickle=False, mmap_mode="r")
        if self._pictures.shape != (len(rows), SIDE, SIDE) or self._pictures.dtype != np.uint8:
            raise _damaged(f"thumbnails of shape {self._pictures.shape}")
        self._items = [(str(i), str(v), tuple(json.loads(p)), t) for i, v, p, t, _, _ in rows]
        self._sources = [str(row[4]) for row in rows]
        self._centers = [json.loads(row[5]) for row in rows]

    def thumbnail(self, number: int) -> NDArray[np.uint8] | None:
        """The picture of a case, uint8 [SIDE, SIDE], or None. number: from 1, as in `Hit`."""
        picture = np.array(self._pictures[self._row(number)])
        return picture if picture.any() else None

    def centers(self, number: int) -> dict[str, Triple]:
        """Where the organs of a case lie: name to centre in RAS mm."""
        return {name: (float(x), float(y), float(z)) for name, (x, y, z) in self._centers[self._row(number)].items()}

    def place(self, number: int) -> Path:
        """Where the scan of a case is. Raises IndexMismatchError where the index does not say, or nothing is there any more."""
        row, path = self._row(number), self._folder / PLACES
        try:
            places = json.loads(path.read_text(encoding="utf-8"))["places"]
            place = Path(places[row]) if len(places) == len(self._items) and places[row] else None
        except (OSError, ValueError, TypeError, KeyError):
            place = None
        if place is None or not place.exists():
            raise _refuse(
                "The scan of this case cannot be opened.",
                "an index that does not say where it is" if place is None else "no scan where it was when the index was made",
                "the scan in the folder that was indexed",
                "Build the index of the folder again on this computer.",
            )
        return place

    def _row(self, number: int) -> int:
        if not 1 <= number <= len(self._items):
            raise _refuse("There is no such case in the index.", f"case {number}", f"1 to {len(self._items)}", "Search again.")
        return number - 1

    def __len__(self) -> int:
        return len(self._items)

    def by_vector(
        self, vector: NDArray[np.float32], *, count: int = 5, present: Sequence[str] = (), exclude_volume: str | None = None
    ) -> list[Hit]:
        """The `count` nearest cases by cosine, exactly. The query's own volume is left out."""
        if vector.shape != (self._vectors.shape[1],):
            raise ValueError(f"a query of shape {vector.shape} for vectors of {self._vectors.shape[1]}")
        scores = np.asarray(self._vectors @ vector.astype(np.float32))
        if exclude_volume is not None:
            own = salted(exclude_volume, self._facts["salt"])
            scores = np.where([volume == own for _, volume, _, _ in self._items], -np.inf, scores)
        count = min(count, int(np.isfinite(scores).sum()))
        if count <= 0:
            return []
        best = np.argpartition(-scores, count - 1)[:count]
        return [self._hit(int(row), float(scores[row]), present) for row in sorted(best, key=lambda r: (-scores[r], r))]

    def by_text(self, text: str, bundle: Bundle, *, count: int = 5) -> list[Hit]:
        """The cases whose study vectors are nearest to a text's report vector."""
        sentences = checked_text(text)
        said = tuple(r.name for r in parse_report(" ".join(sentences)) if r.state == "present")
        return self.by_vector(text_vector(sentences, bundle), count=count, present=said)

    def _hit(self, row: int, score: float, present: Sequence[str]) -> Hit:
        name, _, found, text = self._items[row]
        shared = tuple(f for f in found if f in set(present))
        displays = [ontology().finding(f).display for f in shared]
        why = f"both show {', '.join(displays)}" if displays else "no finding in common is called present; similar as a whole"
        return Hit(name, round(score, 4), found, shared, text, why, row + 1, self._sources[row])


def text_vector(sentences: Sequence[str], bundle: Bundle) -> NDArray[np.float32]:
    """Report-level unit vector of a text, comparable with study vectors."""
    if takes_one_crop(bundle):
        return text_vectors([" ".join(sentences)], bundle)[0]
    import torch

    with torch.inference_mode():
        layout = bundle.tokenizer.layout([list(sentences)], LONGEST_TEXT_TOKENS).to(bundle.device)
        vector: NDArray[np.float32] = bundle.model.embed_text(layout)[0].float().cpu().numpy()
    return vector


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / MARK
    if not path.is_file():
        raise _refuse("There is no index here.", "no index.json in the given folder", "an index folder", "Make one with 'velvetmed index'.")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise _damaged("index.json is not JSON") from None
    if not isinstance(facts, dict) or facts.get("format_version") != FORMAT_VERSION:
        found = facts.get("format_version") if isinstance(facts, dict) else facts
        raise _refuse(
            "The index has a format version that this VelvetMed does not know.",
            f"format_version = {found!r}",
            f"format_version = {FORMAT_VERSION}",
            "Run 'velvetmed index' again.",
        )
    keys = {"encoding_key": str, "count": int, "dimension": int, "salt": str, "files": dict}
    if wrong := [k for k, kind in keys.items() if not isinstance(facts.get(k), kind)]:
        raise _damaged(f"index.json lacks {', '.join(wrong)}")
    return facts


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _damaged(found: str) -> IndexMismatchError:
    return _refuse("The index is damaged.", found, "the files as 'velvetmed index' wrote them", "Run 'velvetmed index' again.")


def _refuse(what: str, found: str, expected: str, next_step: str) -> IndexMismatchError:
    return IndexMismatchError(what, found=found, expected=expected, next_step=next_step)
