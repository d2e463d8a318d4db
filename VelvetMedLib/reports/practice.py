"""How a report is varied while an encoder learns to read it: sections chosen, sentences shuffled, long texts replaced by short prompts.

Names after COLIPRI's glossary (methods.md 3.6); all numbers and details are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from VelvetMedLib.reports.opposites import label_phrase, statements
from VelvetMedLib.reports.phrases import choose
from VelvetMedLib.reports.sentences import is_irrelevant

IMPRESSION_TITLES = ("impression", "conclusion", "summary", "opinion")
FINDINGS, IMPRESSION, BOTH = "findings", "impression", "both"
LONGEST_PROMPT = 3
"""Sentences of a short prompt at most."""


def parts(sections: Sequence[tuple[str, Sequence[str]]]) -> dict[str, list[str]]:
    """Sentences of "findings", "impression" and "both", in the report's order; what has no sentence is not there.

    The impression are sections under such a title; findings is everything else but technique, comparison and indication.
    """
    found: dict[str, list[str]] = {FINDINGS: [], IMPRESSION: [], BOTH: []}
    for title, sentences in sections:
        if is_irrelevant(title):
            continue
        kind = IMPRESSION if title.strip().lower().startswith(IMPRESSION_TITLES) else FINDINGS
        found[kind] += sentences
        found[BOTH] += sentences
    return {kind: sentences for kind, sentences in found.items() if sentences}


def chosen_part(found: dict[str, list[str]], shares: Sequence[float], draw: np.random.Generator | None) -> str:
    """A key of `parts`: findings, impression or both with these shares; findings, else what there is, without a draw.

    A part that a report does not have is not drawn; then its share goes to the others.
    """
    wanted = np.array([share if kind in found else 0.0 for kind, share in zip((FINDINGS, IMPRESSION, BOTH), shares, strict=True)])
    if draw is None or wanted.sum() == 0:
        return FINDINGS if FINDINGS in found else BOTH
    return (FINDINGS, IMPRESSION, BOTH)[int(draw.choice(3, p=wanted / wanted.sum()))]


def shuffled(sentences: Sequence[str], draw: np.random.Generator) -> list[str]:
    """All sentences in a drawn order."""
    return [sentences[int(n)] for n in draw.permutation(len(sentences))]


def short_prompt(sections: Sequence[tuple[str, Sequence[str]]], sentences: Sequence[str], draw: np.random.Generator) -> list[str]:
    """1 to 3 of the sentences in a drawn order, or as likely one short phrase on a finding that the report states plainly.

    sections: the whole report, for the phrase. A report without a plain statement gives sentences.
    """
    wants_phrase = bool(draw.random() < 0.5)
    stated = statements(sections) if wants_phrase else []
    if stated:
        return [label_phrase(choose(draw, stated), draw)]
    count = int(draw.integers(1, min(LONGEST_PROMPT, len(sentences)) + 1))
    return shuffled(sentences, draw)[:count]
