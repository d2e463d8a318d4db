"""How right answers to questions are, by type of question, beside two baselines that see no image.

Baselines learn from the other half of the cases: "majority" gives the commonest answer to this type of question, "question only"
the commonest answer to this type of question about this finding. A model that does not beat the second has read no image.
(Not from all other cases: leaving one "yes" out of as many "yes" as "no" makes "no" the commonest, and the baseline always wrong.)
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from VelvetMedLib.evaluation.bootstrap import Measure, mean_of, ratio
from VelvetMedLib.evaluation.reports import SIZE_TOLERANCE_MM, SIZE_TOLERANCE_SHARE
from VelvetMedLib.reports import ontology, parse_report
from VelvetMedLib.reports.lexicon import NUMBER_WORDS

_SITES = tuple(sorted((ontology().site_display(s).lower() for f in ontology().findings for s in f.sites), key=len, reverse=True))
_WORDS = {
    "presence": r"yes|no\b|not assessed|uncertain",
    "normal": r"yes|no\b",
    "side": r"both|left|right",
    "severity": r"mild|moderate|severe",
    "site": "|".join([*map(re.escape, _SITES), r"[tl]\d{1,2}"]),
}


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One question with the true answer and the given one. group: cases that belong together (twins)."""

    case: int
    group: Hashable
    kind: str
    finding: str | None
    truth: str
    answer: str


def score(kind: str, answer: str, truth: str) -> float:
    """1 right, 0 wrong; for a list of findings its F1 against the true list. A size is right within the reports' tolerance."""
    if kind == "findings":
        a, b = _listed(answer), _listed(truth)
        return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0
    if kind == "size":
        said, true = _millimetres(answer), _millimetres(truth)
        if said is None or true is None:
            return 0.0
        return float(abs(said - true) <= max(SIZE_TOLERANCE_MM, SIZE_TOLERANCE_SHARE * true) + 1e-9)
    key = key_of(kind, truth)
    return float(key is not None and key_of(kind, answer) == key)


def key_of(kind: str, text: str) -> str | None:
    """The word that decides an answer of this kind; None where there is none ("cannot be answered")."""
    plain = text.lower()
    if plain.startswith("this question cannot be answered"):
        return "not assessed" if kind == "presence" else None
    if kind == "count":
        numbers = (int(word) if word.isdigit() else NUMBER_WORDS.get(word) for word in re.findall(r"\d+|[a-z]+", plain))
        return next((str(number) for number in numbers if number is not None), None)
    if kind == "normal" and plain.startswith("none of the"):
        return "yes"  # the careful way to say so: only what was looked for can be absent
    found = re.search(_WORDS[kind], plain)
    return found.group() if found else None


def _listed(text: str) -> frozenset[str]:
    return frozenset(r.name for r in parse_report(text) if r.state == "present")


def _millimetres(text: str) -> float | None:
    found = re.search(r"(\d+(?:\.\d+)?)\s*(mm|cm)", text.lower())
    return None if found is None else float(found.group(1)) * (10.0 if found.group(2) == "cm" else 1.0)


def baseline(answered: Sequence[Answered], keys: Sequence[Callable[[Answered], Hashable]]) -> list[str]:
    """For each question the commonest true answer in the other half of the groups among questions with the same key; where there is
    none by the first key, by the next; "" where there is none at all. Of equally common answers the first in the alphabet.
    """
    half = {group: n % 2 for n, group in enumerate(dict.fromkeys(one.group for one in answered))}
    seen: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for one in answered:
        for n, key in enumerate(keys):
            seen[n, half[one.group], key(one)][one.truth] += 1

    def commonest(one: Answered) -> str:
        counts = next((c for n, key in enumerate(keys) if (c := seen.get((n, 1 - half[one.group], key(one))))), Counter[str]())
        return min(counts, key=lambda answer: (-counts[answer], answer), default="")

    return [commonest(one) for one in answered]


def _kind(one: Answered) -> Hashable:
    return one.kind


def _kind_and_finding(one: Answered) -> Hashable:
    return one.kind, one.finding


def measures(answered: Sequence[Answered], cases: int) -> dict[str, Measure]:
    """Accuracy by kind of question for the model and both baselines, and balanced accuracy (of yes and no) of questions on presence."""
    given = {
        "model": [one.answer for one in answered],
        "majority": baseline(answered, [_kind]),
        "question only": baseline(answered, [_kind_and_finding, _kind]),
    }
    out: dict[str, Measure] = {}
    kinds = list(dict.fromkeys(one.kind for one in answered))
    for name, texts in given.items():
        points = [score(one.kind, text, one.truth) for one, text in zip(answered, texts, strict=True)]
        for kind in kinds:
            out[f"answers/{name}/{kind}"] = _accuracy(answered, points, cases, lambda one, kind=kind: one.kind == kind)  # type: ignore[misc]
        out[f"answers/{name}/mean of types"] = mean_of([out[f"answers/{name}/{kind}"] for kind in kinds])
        yes, no = (
            _accuracy(answered, points, cases, lambda one, said=said: one.kind == "presence" and one.truth == said)  # type: ignore[misc]
            for said in ("yes", "no")
        )
        out[f"answers/{name}/presence, balanced"] = lambda weights, yes=yes, no=no: 0.5 * (yes(weights) + no(weights))  # type: ignore[misc]
    return out


def _accuracy(answered: Sequence[Answered], points: Sequence[float], cases: int, chosen: Callable[[Answered], bool]) -> Measure:
    part, whole = np.zeros(cases), np.zeros(cases)
    for one, point in zip(answered, points, strict=True):
        if chosen(one):
            part[one.case] += point
            whole[one.case] += 1
    return ratio(part, whole)
