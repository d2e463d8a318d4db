"""Which studies count as one another's positives: same study or same report, transitively closed (methods.md 1.4)."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def study_key(study: str) -> int:
    """The study as a signed 64-bit number: keys the noise of a pair, and names a group. The same on every machine."""
    return int.from_bytes(hashlib.blake2b(study.encode("utf-8"), digest_size=8).digest(), "little", signed=True)


def normalised_report(text: str) -> str:
    """Unicode NFKC, lower case, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def report_hash(text: str) -> str:
    """128-bit hash of the normalised FULL report: before fields are chosen, sentences sub-sampled, shuffled or shortened."""
    return hashlib.blake2b(normalised_report(text).encode("utf-8"), digest_size=16).hexdigest()


def close_groups(studies: Sequence[str], report_hashes: Sequence[str]) -> NDArray[np.int64]:
    """Group of each item of a cohort: items that share a study or a report, and what they share one with, are one group.

    studies, report_hashes: one entry per item (a volume with its report). The number of a group is the smallest
    `study_key` in it, so it does not depend on the order of the items. Take the whole cohort at once: closed within a
    batch only, two members of a group could meet as negatives when the item between them is elsewhere.
    """
    if len(studies) != len(report_hashes):
        raise ValueError(f"{len(studies)} studies but {len(report_hashes)} reports")
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for study, report in zip(studies, report_hashes, strict=True):
        parent[root(("study", study))] = root(("report", report))
    name: dict[tuple[str, str], int] = {}
    for study in set(studies):
        top = root(("study", study))
        name[top] = min(study_key(study), name.get(top, 1 << 63))
    return np.array([name[root(("study", study))] for study in studies], dtype=np.int64)
