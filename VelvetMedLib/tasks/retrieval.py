"""Similar cases: an index searched exactly by image, by text or by one organ, each hit with its reason.

Where the cases are kept is a `tasks.store.Store`; what is kept of them, and what never is, stands there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.reports import ontology
from VelvetMedLib.reports.parse import parse_report
from VelvetMedLib.shapes import Triple
from VelvetMedLib.tasks.grounding import checked_text
from VelvetMedLib.tasks.matching import MOST_CANDIDATES, match_logits, need_match_head
from VelvetMedLib.tasks.statements import scan_query, words_query
from VelvetMedLib.tasks.store import Entry, Store, Where, open_store, refuse
from VelvetMedLib.tasks.text_vectors import text_vectors

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

ANY_CASE = Where()


@dataclass(frozen=True)
class Hit:
    """One result. number: the case's neutral name. similarity: cosine of what was compared; for words, plus how far the case bears out
    what they state (`tasks.statements`). match: what re-ranking added to it.

    shared: present findings that query and case have in common. source: whether a report or the model names the case's findings.
    region: the organ in which the two are most alike, or by which they were compared, with its cosine; None for words.
    """

    number: int
    id: str
    similarity: float
    present: tuple[str, ...]
    shared: tuple[str, ...]
    source: str
    why: str
    text: str | None = None
    region: tuple[str, float] | None = None
    match: float | None = None
    picture: bytes | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without the picture."""
        region = None if self.region is None else {"organ": self.region[0], "similarity": self.region[1]}
        entry = {
            "case": self.id,
            "number": self.number,
            "source": self.source,
            "similarity": self.similarity,
            "present": list(self.present),
            "shared": list(self.shared),
            "region": region,
            "why": self.why,
        }
        more = {"text": self.text, "match": self.match}
        return entry | {name: value for name, value in more.items() if value is not None}


class Index:
    """An open index, checked against the bundle that searches it. Close it, or use it in a `with`."""

    def __init__(self, place: Path | str, bundle: Bundle) -> None:
        """place: a folder, or the address of a database. Raises IndexMismatchError if it is damaged or was made by other weights or
        preprocessing."""
        self.bundle = bundle
        self._store = open_store(place)
        try:
            check_key(self._store, bundle)
        except BaseException:
            self._store.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._store.close()

    def __len__(self) -> int:
        return len(self._store)

    def remove(self, numbers: Sequence[int]) -> int:
        """Take cases out with everything that was kept of them; returns how many there were."""
        return self._store.remove(numbers)

    def centers(self, number: int) -> Mapping[str, Triple]:
        """Where the organs of a case lie: name to centre in RAS mm."""
        return self._store.entries([number])[0].centers

    def place(self, number: int) -> Path:
        """Where the scan of a case is. Raises IndexMismatchError where the index does not say, or nothing is there any more."""
        said = self._store.place(number)
        if said is None or not Path(said).exists():
            raise refuse(
                "The scan of this case cannot be opened.",
                "an index that does not say where it is" if said is None else "no scan where it was when the index was made",
                "the scan in the folder that was indexed",
                "Build the index of the folder again on this computer.",
            )
        return Path(said)

    def by_vector(
        self,
        vector: NDArray[np.float32],
        *,
        count: int = 5,
        where: Where = ANY_CASE,
        present: Sequence[str] = (),
        regions: Mapping[str, NDArray[np.float32]] | None = None,
        region: str | None = None,
    ) -> list[Hit]:
        """The `count` nearest cases by cosine, exactly.

        vector: the query's study vector, or its vector of the organ `region`. present, regions: the query's findings and vectors of
        organs, for the reasons.
        """
        query = scan_query(vector, self.bundle) if region is None else vector
        ranked = self._store.nearest(query, count, where, region)
        entries = self._store.entries([number for number, _ in ranked])
        return [_hit(entry, score, present, regions or {}, region) for entry, (_, score) in zip(entries, ranked, strict=True)]

    def by_text(self, text: str, *, count: int = 5, where: Where = ANY_CASE, rerank: bool = False) -> list[Hit]:
        """The cases nearest to a text: by cosine, and by what it states of findings where the bundle weighs that.

        rerank: by similarity plus match logit, among the best 256. Raises BundleError without a trained match head.
        """
        if rerank:
            need_match_head(self.bundle)
        sentences = checked_text(text)
        records = parse_report(" ".join(sentences))
        said = tuple(r.name for r in records if r.state == "present")
        query = words_query(text_vectors([sentences], self.bundle)[0], records, self.bundle)
        ranked = self._store.nearest(query, max(count, MOST_CANDIDATES) if rerank else count, where)
        entries = self._store.entries([number for number, _ in ranked])
        hits = [_hit(entry, score, said, {}, None) for entry, (_, score) in zip(entries, ranked, strict=True)]
        if rerank and hits:
            tokens = [entry.match_tokens for entry in entries[:MOST_CANDIDATES] if entry.match_tokens is not None]
            logits = match_logits(sentences, tokens, self.bundle)
            judged = [replace(hit, match=round(float(logit), 4)) for hit, logit in zip(hits, logits, strict=False)]
            judged.sort(key=lambda hit: -(hit.similarity + (hit.match or 0.0)))
            hits = judged + hits[len(judged) :]
        return hits[:count]


def check_key(store: Store, bundle: Bundle) -> None:
    """Refuse a store of another model or preprocessing."""
    if store.facts.encoding_key != bundle.encoding_key:
        raise refuse(
            "The index was made by another model or preprocessing.",
            f"an index for encodings {store.facts.encoding_key[:12]}...",
            f"encodings {bundle.encoding_key[:12]}... of bundle {bundle.config.id!r}",
            "Use the bundle that made the index, or make another index elsewhere.",
        )


def _hit(entry: Entry, score: float, present: Sequence[str], regions: Mapping[str, NDArray[np.float32]], region: str | None) -> Hit:
    shared = tuple(name for name in entry.present if name in set(present))
    alike = {organ: float(vector @ regions[organ]) for organ, vector in entry.regions.items() if organ in regions}
    best = max(alike.items(), key=lambda item: item[1], default=None) if region is None else (region, score)
    found = ", ".join(ontology().finding(name).display for name in shared)
    why = f"both show {found}" if shared else "no finding in common is called present"
    if best is not None:
        why += f"; {'compared' if region else 'most alike'} in the {ontology().structure(best[0]).display} ({best[1]:.2f})"
    elif not shared:
        why += "; similar as a whole"
    return Hit(
        number=entry.number,
        id=entry.id or f"scan-{entry.number}",
        similarity=round(score, 4),
        present=entry.present,
        shared=shared,
        source=entry.source,
        why=why,
        text=entry.text,
        region=None if best is None else (best[0], round(best[1], 4)),
        picture=entry.picture,
    )
