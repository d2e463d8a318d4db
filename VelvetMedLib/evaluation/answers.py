"""How right answers to questions are, by type of question, how many are answered, and whether they agree with the report.

Baselines see no image and learn from the other half of the cases: "majority" gives the commonest answer to this type of question (of
numbers the median), "question only" that to this type of question about this finding. A model that does not beat the second has read no
image. (Not from all other cases: leaving one "yes" out of as many "yes" as "no" makes "no" the commonest, and the baseline always wrong.)

An answer withheld is a wrong answer to the first figure of each type; "answered" is the share that is not withheld, "when answered" the
share right among those, for model and baselines on the same questions. Three ways to answer yes or no stand side by side: `POLICIES`.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from VelvetMedLib.evaluation.bootstrap import Measure, mean_of, ratio
from VelvetMedLib.evaluation.reports import SIZE_TOLERANCE_MM, SIZE_TOLERANCE_SHARE
from VelvetMedLib.reports import FindingRecord, fill_slots, ontology, parse_report
from VelvetMedLib.reports.lexicon import NUMBER_WORDS

VOLUME_TOLERANCE_SHARE, DENSITY_TOLERANCE_HU = 0.15, 10.0
"""A volume (density) is right within 15 % (10 HU) of the true one."""
POLICIES = {"firm": "what the product calls", "leaning": "uncertain ones by their lean", "forced": "all by their probability"}
"""Of yes-or-no questions that have a yes or no: uncertain and not assessed are withheld; what is uncertain is answered by its lean;
everything is answered, also what is not told from chance or not in view, by the lean of its score."""
WITHHELD = ("uncertain", "not assessed")
_SITES = tuple(sorted((ontology().site_display(s).lower() for f in ontology().findings for s in f.sites), key=len, reverse=True))
_WORDS = {
    "presence": r"yes|no\b|not assessed|uncertain",
    "place": r"yes|no\b|uncertain",
    "normal": r"yes|no\b",
    "side": r"both|left|right",
    "severity": r"mild|moderate|severe",
    "site": "|".join([*map(re.escape, _SITES), r"[tl]\d{1,2}"]),
} | dict.fromkeys((f"yes or no, {policy}" for policy in POLICIES), r"yes|no\b|uncertain")
_BALANCED = ("presence", "place", "normal", "side", "severity", *(f"yes or no, {policy}" for policy in POLICIES))
_UNITS = {"size": "mm", "volume": "ml", "density": "HU"}
_COMPARED = re.compile(r"\bthe ([a-z -]+?) \([^)]*\) (?:is (larger|smaller) than|and) the ([a-z -]+?) \(")


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One question with the true answer and the given one. group: cases that belong together (twins).

    finding: what is asked about, an organ for questions on organs. unanswered: as in `case.Answer`.
    forced: "yes" or "no" by the finding's score alone (`lean`).
    """

    case: int
    group: Hashable
    kind: str
    finding: str | None
    truth: str
    answer: str
    unanswered: str | None = None
    forced: str | None = None

    @property
    def withheld(self) -> bool:
        """Whether no answer was given, "uncertain" to a closed question included."""
        return self.unanswered is not None or (self.kind in _WORDS and key_of(self.kind, self.answer) in WITHHELD)


def score(kind: str, answer: str, truth: str, *, unanswered: str | None = None) -> float:
    """1 right, 0 wrong; for a list of findings its F1 against the true list. Numbers are right within their tolerance."""
    if kind == "beyond":
        return float(unanswered is not None)
    if kind == "findings":
        a, b = _listed(answer), _listed(truth)
        return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0
    if kind in _UNITS:
        said, true = number_of(kind, answer), number_of(kind, truth)
        if said is None or true is None:
            return 0.0
        allowed = {
            "size": max(SIZE_TOLERANCE_MM, SIZE_TOLERANCE_SHARE * true),
            "volume": VOLUME_TOLERANCE_SHARE * true,
            "density": DENSITY_TOLERANCE_HU,
        }
        return float(abs(said - true) <= allowed[kind] + 1e-9)
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
    if kind == "compare":
        compared = _COMPARED.search(plain)
        if compared is None:
            return plain.rstrip(".")
        return compared.group({"larger": 1, "smaller": 3}[compared.group(2)]) if compared.group(2) else "about the same"
    if kind == "normal" and plain.startswith("none of the findings"):
        return "yes"  # the careful way to say so: only what was looked for can be absent
    found = re.search(_WORDS[kind], plain)
    return found.group() if found else None


def _listed(text: str) -> frozenset[str]:
    """What a list of findings affirms: what is named before the uncertain ones."""
    return frozenset(r.name for r in parse_report(text.partition("Uncertain:")[0]) if r.state == "present")


def number_of(kind: str, text: str) -> float | None:
    """The first number with the kind's unit, sizes in mm; None where there is none."""
    found = re.search(r"(-?\d+(?:\.\d+)?)\s*(mm|cm|ml|hu)\b", text.lower())
    if found is None or found.group(2) not in ({"mm", "cm"} if kind == "size" else {_UNITS[kind].lower()}):
        return None
    return float(found.group(1)) * (10.0 if found.group(2) == "cm" else 1.0)


def baseline(answered: Sequence[Answered], keys: Sequence[Callable[[Answered], Hashable]]) -> list[str]:
    """For each question the commonest true answer in the other half of the groups among questions with the same key; where there is
    none by the first key, by the next; "" where there is none at all. Of equally common answers the first in the alphabet; of numbers
    the median.
    """
    half = {group: n % 2 for n, group in enumerate(dict.fromkeys(one.group for one in answered))}
    seen: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for one in answered:
        for n, key in enumerate(keys):
            seen[n, half[one.group], key(one)][one.truth] += 1

    def best(one: Answered) -> str:
        counts = next((c for n, key in enumerate(keys) if (c := seen.get((n, 1 - half[one.group], key(one))))), Counter[str]())
        numbers = [number_of(one.kind, text) for text in counts.elements()] if one.kind in _UNITS else []
        if known := [number for number in numbers if number is not None]:
            return f"{np.median(known):g} {_UNITS[one.kind]}"
        return min(counts, key=lambda answer: (-counts[answer], answer), default="")

    return [best(one) for one in answered]


def _kind(one: Answered) -> Hashable:
    return one.kind


def _kind_and_finding(one: Answered) -> Hashable:
    return one.kind, one.finding


def lean(probability: float, absent_below: float, present_from: float) -> str:
    """ "yes" from the middle of the two thresholds on (in log odds): there as much speaks for one call as for the other."""
    p, low, high = (math.log(share / (1.0 - share)) for share in np.clip([probability, absent_below, present_from], 1e-6, 1.0 - 1e-6))
    return "yes" if p >= (low + high) / 2 else "no"


def by_policy(answered: Sequence[Answered]) -> list[Answered]:
    """Questions on presence that have a yes or no, once for each of `POLICIES`."""
    closed = [one for one in answered if one.kind == "presence" and one.truth in ("yes", "no")]
    result = [replace(one, kind="yes or no, firm") for one in closed]
    for one in closed:
        doubtful = key_of("presence", one.answer) == "uncertain" and one.forced is not None
        result.append(replace(one, kind="yes or no, leaning", answer=str(one.forced) if doubtful else one.answer))
    forced = [replace(one, kind="yes or no, forced", answer=one.forced, unanswered=None) for one in closed if one.forced is not None]
    return [*result, *(forced if len(forced) == len(closed) else [])]


def measures(answered: Sequence[Answered], cases: int) -> dict[str, Measure]:
    """By type of question, for the model and both baselines: share right of all and of what the model answers, balanced where answers
    are of few kinds; of the model the share that it answers."""
    kinds = list(dict.fromkeys(one.kind for one in answered))
    answered = [*answered, *by_policy(answered)]
    given = {
        "model": [one.answer for one in answered],
        "majority": baseline(answered, [_kind]),
        "question only": baseline(answered, [_kind_and_finding, _kind]),
    }
    out: dict[str, Measure] = {}
    for name, texts in given.items():
        own = name == "model"
        points = [
            score(one.kind, text, one.truth, unanswered=one.unanswered if own else None) for one, text in zip(answered, texts, strict=True)
        ]
        for kind in dict.fromkeys(one.kind for one in answered):
            chosen = [one.kind == kind for one in answered]
            spoken = [there and not one.withheld for one, there in zip(answered, chosen, strict=True)]
            out[f"answers/{name}/{kind}"] = _share(answered, points, cases, chosen)
            if kind in _BALANCED:
                out[f"answers/{name}/{kind}, balanced"] = _balanced(answered, points, cases, chosen)
            if kind == "beyond":
                continue
            if own:
                out[f"answers/{name}/{kind}, answered"] = _share(answered, spoken, cases, chosen)
            out[f"answers/{name}/{kind}, when answered"] = _share(answered, points, cases, spoken)
            if kind in _BALANCED:
                out[f"answers/{name}/{kind}, when answered, balanced"] = _balanced(answered, points, cases, spoken)
        out[f"answers/{name}/mean of types"] = mean_of([out[f"answers/{name}/{kind}"] for kind in kinds])
    return out


def _share(answered: Sequence[Answered], points: Sequence[float], cases: int, chosen: Sequence[bool]) -> Measure:
    part, whole = np.zeros(cases), np.zeros(cases)
    for one, point, there in zip(answered, points, chosen, strict=True):
        if there:
            part[one.case] += point
            whole[one.case] += 1
    return ratio(part, whole)


def _balanced(answered: Sequence[Answered], points: Sequence[float], cases: int, chosen: Sequence[bool]) -> Measure:
    """Mean of the shares right among questions of each true answer; of yes and no both must be there, what was neither is left out."""
    truths = [key_of(one.kind, one.truth) if there else None for one, there in zip(answered, chosen, strict=True)]
    kinds = sorted({truth for truth in truths if truth is not None and truth not in WITHHELD})
    shares = [_share(answered, points, cases, [truth == kind for truth in truths]) for kind in kinds]
    if set(kinds) <= {"yes", "no"}:
        return lambda weights: sum((share(weights) for share in shares), np.zeros(len(weights))) / 2 if len(shares) == 2 else _none(weights)
    return mean_of(shares)


def _none(weights: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.full(len(weights), np.nan)


def consistency(answered: Sequence[Answered], said: Sequence[Sequence[FindingRecord]], reports: Sequence[str | None]) -> dict[str, Measure]:
    """Share of answers about findings that agree with the case's own findings, and with its draft report as it is read back.

    said, reports: by case. What the report does not mention, and an attribute that either leaves open, is not compared.
    """
    told = {"findings": said, "report": [None if text is None else parse_report(text) for text in reports]}
    out: dict[str, Measure] = {}
    for name, records in told.items():
        verdicts = [None if (own := records[one.case]) is None else agrees(one, own, whole=name == "findings") for one in answered]
        kept = [verdict is not None for verdict in verdicts]
        if any(kept):
            out[f"consistency/answers with {name}"] = _share(answered, [float(bool(v)) for v in verdicts], len(said), kept)
    return out


def agrees(one: Answered, records: Iterable[FindingRecord], *, whole: bool = True) -> bool | None:
    """Whether an answer says what the records say; None where there is nothing to compare. whole: the records are all that is known,
    so that "not assessed" must be answered so, too; else a finding that they do not assess may be answered from elsewhere."""
    by_name: Mapping[str, FindingRecord] = {record.name: record for record in records}
    if one.kind == "findings" and whole and one.unanswered is not None:
        return all(record.state == "not_assessed" for record in by_name.values())
    if one.kind == "findings" and whole:
        return _listed(one.answer) == frozenset(name for name, r in by_name.items() if r.state == "present")
    record = by_name.get(one.finding or "")
    if record is None or one.kind not in ("presence", "side", "site", "size", "count", "severity"):
        return None
    if not whole and record.state == "not_assessed":
        return None
    states = {"present": "yes", "absent": "no", "uncertain": "uncertain", "not_assessed": "not assessed"}
    if one.kind == "presence" or record.state == "absent":
        return key_of("presence", one.answer) == states[record.state]
    expected = _attribute(one.kind, record)
    if expected is None or one.unanswered is not None:
        return None
    return score(one.kind, one.answer, expected) == 1.0


def _attribute(kind: str, record: FindingRecord) -> str | None:
    if kind == "side":
        return record.side
    if kind == "site":
        return None if record.site is None else ontology().site_display(record.site)
    if kind == "size":
        return None if record.size_mm is None else fill_slots("[SIZE]", record)
    if kind == "count":
        return None if record.count is None else str(record.count)
    return record.severity
