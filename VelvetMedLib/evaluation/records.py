"""What a report can say at most, from the records behind a synthetic study: the group and the oracle of retrieval."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.reports import FindingRecord

Facts = frozenset[tuple[str, ...]]


def facts_of(findings: Iterable[FindingRecord]) -> Facts:
    """Name, state, side and place of every finding; sizes are left out, since not every wording gives them."""
    return frozenset((r.name, r.state, r.side or "", str(r.site or "")) for r in findings)


def record_word(findings: Iterable[FindingRecord]) -> str:
    """Short word for the facts of a study: equal for studies whose reports cannot tell them apart."""
    text = "\n".join("|".join(fact) for fact in sorted(facts_of(findings)))
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest()


def record_scores(facts: Sequence[Facts]) -> NDArray[np.float64]:
    """[N, N] overlap (intersection over union) of what is present: the scores of a reader who reads every report and scan right."""
    present = [frozenset(fact for fact in one if fact[1] == "present") for one in facts]
    return np.array([[len(a & b) / len(a | b) if a | b else 1.0 for b in present] for a in present])
