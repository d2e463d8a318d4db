"""Questions and answers from finding records, and typed questions back to what they ask about."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from VelvetMedLib.reports.ontology import Finding, ontology
from VelvetMedLib.reports.parse import find_findings
from VelvetMedLib.reports.phrases import COUNT, SIZE, choose, fill_slots
from VelvetMedLib.reports.records import FindingRecord

KINDS: tuple[str, ...] = ("presence", "side", "site", "size", "count", "severity", "findings", "normal", "volume")
"""What can be asked. `volume` (of an organ) is understood but never generated: it is answered from the segments."""

_ASK: dict[str, tuple[str, ...]] = {
    "presence": ("Is there {a}?", "Does the scan show {a}?", "Do you see {a}?", "Is {a} present?", "Any sign of {x}?", "Can {a} be seen?"),
    "side": (
        "On which side is the {x}?",
        "Is the {x} on the left or on the right?",
        "Which side is the {x} on?",
        "Which side shows the {x}?",
    ),
    "site": ("Where is the {x}?", "In which part is the {x}?", "What is the location of the {x}?", "Where exactly is the {x} located?"),
    "size": ("How large is the {x}?", "What is the size of the {x}?", "What is the diameter of the {x}?", "How big is the {x}?"),
    "count": ("How many {xs} are there?", "What is the number of {xs}?", "How many {xs} do you see?"),
    "severity": ("How severe is the {x}?", "What is the degree of the {x}?", "How would you grade the {x}?", "How pronounced is the {x}?"),
    "findings": ("What are the findings?", "Which abnormalities are there?", "What does the scan show?", "Which findings are present?"),
    "normal": ("Is the scan normal?", "Is this a normal examination?", "Is everything normal?"),
}
_YES = "yes"
_NO = "no"
_PERHAPS = "uncertain"
_UNSEEN = "not assessed on this scan"
_OF_EACH = 2
"""Suggested questions about absent findings and about structures: enough to show that they can be asked."""
_UNCERTAIN_RATE = 0.5
_NOT_ASSESSED_RATE = 0.06
_SIDE_WORDS = {"left": "left", "right": "right", "both": "both sides"}


@dataclass(frozen=True)
class Question:
    """A question with its answer. slotted_answer: the answer with [SIZE] and [COUNT] for numbers. finding: None where the
    question is about the whole scan."""

    question: str
    answer: str
    slotted_answer: str
    finding: str | None
    kind: str


def make_questions(
    records: Iterable[FindingRecord], rng: np.random.Generator, *, negative_rate: float | dict[str, float] = 0.28
) -> list[Question]:
    """Questions on one case. Every present finding is asked for; an absent one with `negative_rate`.

    "Yes" and "no" balance per finding over a cohort where the rate is prevalence / (1 - prevalence): the default fits a
    prevalence of 0.22, and a dict by finding name fits any other. Of uncertain findings half are asked for, of those not
    assessed a few, so that these answers are learned too.
    """
    questions: list[Question] = []
    records = list(records)
    for record in records:
        finding = ontology().finding(record.name)
        rate = negative_rate if isinstance(negative_rate, (int, float)) else negative_rate.get(record.name, 0.28)
        chance = {"present": 1.0, "absent": float(rate), "uncertain": _UNCERTAIN_RATE, "not_assessed": _NOT_ASSESSED_RATE}[record.state]
        if rng.random() >= chance:
            continue
        answer = {"present": _YES, "absent": _NO, "uncertain": _PERHAPS, "not_assessed": _UNSEEN}[record.state]
        questions.append(_question("presence", finding, answer, record, rng))
        if record.state == "present":
            questions += _details(finding, record, rng)
    questions += _whole(records, rng)
    return questions


def _details(finding: Finding, record: FindingRecord, rng: np.random.Generator) -> list[Question]:
    result = []
    if finding.sided and record.side:
        result.append(_question("side", finding, _SIDE_WORDS[record.side], record, rng))
    if record.site and (record.site in finding.sites or finding.name == "vertebral_compression"):
        result.append(_question("site", finding, ontology().site_display(record.site).lower(), record, rng))
    if finding.sized and record.size_mm is not None:
        result.append(_question("size", finding, SIZE, record, rng))
    if finding.countable and record.count is not None:
        result.append(_question("count", finding, COUNT, record, rng))
    if record.severity:
        result.append(_question("severity", finding, record.severity, record, rng))
    return result


def _whole(records: list[FindingRecord], rng: np.random.Generator) -> list[Question]:
    displays = [ontology().finding(r.name).display for r in records if r.state == "present"]
    listed = ", ".join(displays) if displays else "no abnormal findings"
    result = [Question(choose(rng, _ASK["findings"]), listed, listed, None, "findings")]
    if not displays or rng.random() < 0.3:
        answer = _NO if displays else _YES
        result.append(Question(choose(rng, _ASK["normal"]), answer, answer, None, "normal"))
    return result


def _question(kind: str, finding: Finding, slotted: str, record: FindingRecord, rng: np.random.Generator) -> Question:
    text = choose(rng, _ASK[kind]).format(x=finding.display, a=_with_article(finding), xs=_plural(finding.display))
    return Question(text, fill_slots(slotted, record).lower() if "[" in slotted else slotted, slotted, finding.name, kind)


_COUNT_NOUNS = frozenset(
    (
        "lung_nodule",
        "lung_mass",
        "pleural_effusion",
        "pneumothorax",
        "pericardial_effusion",
        "hiatal_hernia",
        "liver_lesion",
        "renal_cyst",
        "kidney_stone",
        "vertebral_compression",
    )
)


def _with_article(finding: Finding) -> str:
    return f"a {finding.display}" if finding.name in _COUNT_NOUNS else finding.display


def _plural(display: str) -> str:
    if display.endswith("lymphadenopathy"):
        return "enlarged mediastinal lymph nodes"
    return display + ("es" if display.endswith("s") else "s")


_KIND_CUES: tuple[tuple[str, str], ...] = (
    ("count", r"\bhow many\b|\bnumber of\b|\bcount\b"),
    ("volume", r"\bvolume\b|\bhow much\b|\bml\b|\bmillilit"),
    ("severity", r"\bhow (?:severe|bad|pronounced|marked|extensive)\b|\bseverity\b|\bdegree\b|\bgrade\b|\bextent\b"),
    ("size", r"\bhow (?:large|big|small|long|wide|thick)\b|\bsize\b|\bdiameter\b|\bmeasure|\bdimension|\blength\b|\bwidth\b"),
    ("side", r"\bwhich side\b|\bleft or\b|\bright or\b|\bwhat side\b|\bleft-sided or\b|\blateralit|\bwhich (?:kidney|lung)\b"),
    (
        "site",
        r"\bwhere\b|\blocation\b|\blocated\b|\bwhich (?:lobe|part|level|vertebra|segment)\b|\bin which\b|"
        r"\bwhat (?:lobe|part|level|vertebra)\b|\bposition\b",
    ),
    (
        "findings",
        r"\bfindings\b|\babnormalit|\bwhat does (?:the|this) (?:scan|ct|study|image)|\bwhat do you see\b|\bsummar|"
        r"\bwhat is wrong\b|\bdescribe\b|\bwhat is (?:seen|visible)\b|\bpatholog",
    ),
    ("normal", r"\b(?:is|are|does|looks?|everything|completely) (?:\w+ ){0,4}?(?:normal|unremarkable|healthy|fine|ok)\b"),
    (
        "presence",
        r"^(?:is|are|was|does|do|has|have|can|could|any|did)\b|\bis there\b|\bare there\b|\bany\b|\bevidence\b|"
        r"\bsigns? of\b|\bpresent\b|\?$",
    ),
)
_KINDS = tuple((kind, re.compile(pattern)) for kind, pattern in _KIND_CUES)


def parse_question(text: str) -> tuple[str | None, str | None, str | None]:
    """(finding, structure, kind) that a typed question is about; None for each that it does not tell.

    A lone structure with no finding ("Is the spleen enlarged?" names the finding; "How large is the liver?" does not).
    """
    words = re.sub(r"\s+", " ", text.lower()).strip()
    findings = find_findings(words.rstrip("? "))
    kind = next((kind for kind, pattern in _KINDS if pattern.search(words)), None)
    structure = _structure(words)
    finding = findings[0] if findings else None
    if finding is None and structure is None and kind == "presence":
        # "Is it ok?" asks nothing that we know of.
        kind = None
    if finding is None and kind == "normal" and structure is not None:
        finding = {"heart": "cardiomegaly", "spleen": "splenomegaly", "aorta": "aortic_dilatation"}.get(structure)
        kind = "presence" if finding else kind
    if finding is not None and kind in ("findings", "volume"):
        kind = "presence" if kind == "findings" else kind
    return finding, structure, kind


@lru_cache(maxsize=1)
def _structure_words() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Structure names by display, longest first, so that "left kidney" is tried before "kidney"."""
    words = {s.display: s.name for s in ontology().structures}
    words |= {"right middle lobe": "lung_middle_lobe_right", "oesophagus": "esophagus", "windpipe": "trachea", "thyroid": "thyroid_gland"}
    words |= {"vertebra": "vertebrae", "spine": "vertebrae", "rib": "ribs", "intestine": "bowel", "breastbone": "sternum"}
    ordered = sorted(words.items(), key=lambda pair: -len(pair[0]))
    return tuple((name, re.compile(rf"\b{re.escape(display)}\b")) for display, name in ordered)


def _structure(words: str) -> str | None:
    return next((name for name, pattern in _structure_words() if pattern.search(words)), None)


def suggested_questions(records: Iterable[FindingRecord], *, structures: Iterable[str] = (), limit: int = 8) -> list[str]:
    """A few questions worth asking of a case: the whole, details of what is present, doubts, what was looked for and not found,
    and the size of segmented structures (names, the most interesting first). What was not assessed is not asked for."""
    records = list(records)
    result = ["What are the findings?"]
    for record in (r for r in records if r.state == "present"):
        finding = ontology().finding(record.name)
        x = finding.display
        if finding.sized:
            result.append(f"How large is the {x}?")
        elif record.severity:
            result.append(f"How severe is the {x}?")
        if finding.sites and record.site:
            result.append(f"Where is the {x}?")
        elif finding.sided:
            result.append(f"On which side is the {x}?")
    for record in (r for r in records if r.state == "uncertain"):
        finding = ontology().finding(record.name)
        result.append(f"Is there {_with_article(finding)}?")
    absent = [ontology().finding(record.name) for record in records if record.state == "absent"]
    result += [f"Is there {_with_article(finding)}?" for finding in absent[:_OF_EACH]]
    known = {structure.name: structure.display for structure in ontology().structures}
    result += [f"What is the volume of the {known[name]}?" for name in list(structures)[:_OF_EACH] if name in known]
    result.append("Is the scan normal?")
    return list(dict.fromkeys(result))[:limit]
