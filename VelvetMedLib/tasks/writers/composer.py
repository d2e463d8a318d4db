"""The composer: words findings with phrases of the user's own reports (`reports.own_phrases`); where none fits it has none to propose,
and the built-in phrases speak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from VelvetMedLib.errors import UsageError
from VelvetMedLib.reports import FindingRecord
from VelvetMedLib.reports.own_phrases import Phrases, harvest
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.store import Where, open_store, store_exists
from VelvetMedLib.tasks.writers.base import Wording

REPORT_ENDINGS = (".txt", ".md")
MOST_REPORT_BYTES = 1 << 20
CASE_MARK = "case.json"


class Composer:
    """phrases: None = the built-in ones alone."""

    def __init__(self, phrases: Phrases | None = None) -> None:
        self.phrases = phrases

    @property
    def facts(self) -> Mapping[str, Any]:
        if self.phrases is None:
            return {"kind": "composer", "own_phrases": 0}
        return {"kind": "composer", "own_phrases": len(self.phrases.phrases), "sha256": self.phrases.sha256}

    def write(self, records: Sequence[FindingRecord], encoding: Encoding, style: str, run: Run) -> list[Wording | None]:
        run.check()
        found = [None if self.phrases is None else self.phrases.best(record) for record in records]
        return [None if phrase is None else Wording(phrase.worded(record)) for phrase, record in zip(found, records, strict=True)]


def gather(source: Path | str) -> Phrases:
    """The phrases of a folder of reports (.txt and .md, in folders inside it as well; drafts of Cases are no reports of the user's),
    or of the texts that an index keeps. Raises UsageError where there is no report, IndexMismatchError for a damaged index."""
    found = harvest(_of_index(source) if store_exists(source) else _of_folder(Path(source)))
    if not found.reports:
        raise UsageError(
            "There is no report to take phrases from.",
            found="no text",
            expected="a folder with .txt or .md files, or an index that was made with --keep-text",
            next_step="Choose another folder or index.",
        )
    return found


def _of_folder(folder: Path) -> Iterator[str]:
    cases = {path.parent for path in folder.rglob(CASE_MARK)}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.suffix.lower() not in REPORT_ENDINGS or not path.is_file() or cases & set(path.parents):
            continue
        if path.stat().st_size <= MOST_REPORT_BYTES:
            yield path.read_text(encoding="utf-8", errors="replace")


def _of_index(place: Path | str) -> Iterator[str]:
    with closing(open_store(place)) as store:
        anywhere = np.eye(1, store.facts.dimension, dtype=np.float32)[0]
        for number, _ in store.nearest(anywhere, len(store), Where(with_text=True)):
            yield store.entries([number])[0].text or ""
