"""Questions and answers from finding records: to train and to measure with, and what is worth asking of a case."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from VelvetMedLib.reports.ontology import Finding, ontology
from VelvetMedLib.reports.phrases import COUNT, SIZE, choose, fill_slots
from VelvetMedLib.reports.records import FindingRecord

KINDS: tuple[str, ...] = (
    "presence", "side", "site", "size", "count", "severity", "findings", "normal", "volume", "density", "compare", "covered"
)  # fmt: skip
"""What can be asked. The last four, of organs, are understood but never generated here: they are answered from the segments."""

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
    text = choose(rng, _ASK[kind]).format(x=finding.display, a=article(finding), xs=_plural(finding.display))
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


def article(finding: Finding) -> str:
    """The finding's name as it stands in a question: "a lung nodule", "emphysema"."""
    return f"a {finding.display}" if finding.name in _COUNT_NOUNS else finding.display


def _plural(display: str) -> str:
    if display.endswith("lymphadenopathy"):
        return "enlarged mediastinal lymph nodes"
    return display + ("es" if display.endswith("s") else "s")


def suggested_questions(
    records: Iterable[FindingRecord], *, structures: Iterable[str] = (), of_place: bool = False, limit: int = 8
) -> list[str]:
    """A few questions worth asking of a case: the whole, details of what is present, doubts, what was looked for and not found,
    and the size of segmented structures (names, the most interesting first). What was not assessed is not asked for.
    of_place: of a segment or box instead: what it holds, its density and size, and whether what is in the scan lies there."""
    records = list(records)
    if of_place:
        seen = [ontology().finding(r.name) for r in records if r.state in ("present", "uncertain")]
        asked = ["What is seen here?", "What is the mean density?", "How large is it?", *(f"Is there {article(f)} here?" for f in seen)]
        return asked[:limit]
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
        result.append(f"Is there {article(finding)}?")
    absent = [ontology().finding(record.name) for record in records if record.state == "absent"]
    result += [f"Is there {article(finding)}?" for finding in absent[:_OF_EACH]]
    known = {structure.name: structure.display for structure in ontology().structures}
    result += [f"What is the volume of the {known[name]}?" for name in list(structures)[:_OF_EACH] if name in known]
    result.append("Is the scan normal?")
    return list(dict.fromkeys(result))[:limit]
