"""Statements that a report makes true, each with its opposite: plain rules, for training an encoder to tell "no effusion" from "effusion".

A statement is rewritten in one of a few forms ("there is X" and "there is no X"), true and opposite in the same form, so that
nothing but the negation tells the two apart. Names after COLIPRI's glossary (methods.md 3.6); rules and table are ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from VelvetMedLib.reports.lexicon import lexicon
from VelvetMedLib.reports.ontology import ontology
from VelvetMedLib.reports.parse import normalise, parse_sentence
from VelvetMedLib.reports.phrases import capitalise, choose, nouns_of
from VelvetMedLib.reports.records import State
from VelvetMedLib.reports.sentences import is_irrelevant

FORMS: tuple[tuple[str, str], ...] = (
    ("{X} present.", "No {x} present."),
    ("There {is} {x}.", "There {is} no {x}."),
    ("{X} {is} seen.", "No {x} {is} seen."),
    ("Evidence of {x}.", "No evidence of {x}."),
    ("{X}.", "No {x}."),
)
"""The rule table: a form of "X is present" and the same form of "X is absent". {is} agrees with the number of {x}."""

AMBIGUOUS = frozenset({"nodule", "mass", "effusion", "cyst", "consolidation", "area of consolidation", "compression fracture"})
"""Nouns of the phrase book that do not say, on their own, which organ is meant: fine inside a report, not in a sentence alone."""

_HEDGED = re.compile(
    r"\b(?:can(?:not|'t| not)|could not|may|might|could|possibl[ey]|probabl[ey]|likely|unlikely|suspicio(?:us|n)|suspect(?:ed)?|"
    r"suggest\w*|question\w*|equivocal|indeterminate|borderline|concern\w*|uncertain|presum\w*|appears? to|versus|vs|"
    r"differential|consistent with|compatible with|rule out|excluded?)\b|\?"
)
_COMPARED = re.compile(
    r"\b(?:unchanged|stable|new|newly|interval|prior|previous(?:ly)?|compar\w+|former(?:ly)?|again|persist\w*|known|"
    r"increas\w*|decreas\w*|progress\w*|regress\w*|resol\w+|improv\w*|worse\w*|larger|smaller|grown|no longer|since|still|remain\w*|now|"
    r"status post|history of|follow-up)\b"
)
_QUALIFIED = re.compile(
    r"\b(?:significant|relevant|definite|acute|suspicious|sizeable|sizable|other|further|additional|obvious|gross|major|dominant|"
    r"pathological|pathologically|clear|evident|discrete|focal|solid|calcified|active|malignant|residual|loculated|complex|tension|else|"
    r"except|apart from|aside from|more than|greater than)\b"
)
_PLACED = re.compile(r"\b(?:left|right|upper|lower|middle|apical|apex|basal|bases?|lobes?|lobar|segments?|here|there(?! (?:is|are|was)))\b")


@dataclass(frozen=True)
class Statement:
    """A finding that a report asserts or denies, and nothing else in it contradicts."""

    finding: str
    present: bool


@dataclass(frozen=True)
class Opposites:
    """A sentence that is true of a study, and its negated counterpart."""

    true: str
    opposite: str


def statements(sections: Iterable[tuple[str, Sequence[str]]]) -> list[Statement]:
    """What a report states so plainly that the opposite is false of the study, in order of mention.

    sections: the whole report, (title, sentences). A sentence counts if it speaks of one finding, without doubt, without a
    comparison with an earlier scan, and, where it denies, without limits of place, size or kind ("no large effusion" leaves
    room for a small one). A finding that the report both asserts and denies, or doubts, anywhere, is left out.
    """
    said: dict[str, set[State]] = {}
    found: dict[str, Statement] = {}
    for title, sentences in sections:
        if is_irrelevant(title):
            continue
        for sentence in sentences:
            records = parse_sentence(sentence, title)
            for record in records:
                said.setdefault(record.name, set()).add(record.state)
            if len(records) == 1 and plain(sentence, records[0].state):
                found.setdefault(records[0].name, Statement(records[0].name, records[0].state == "present"))
    return [s for name, s in found.items() if said[name] == {"present" if s.present else "absent"} and nouns(name)]


def plain(sentence: str, state: State) -> bool:
    """Whether a sentence on one finding in this state may be turned into its opposite."""
    words = normalise(sentence)
    if state not in ("present", "absent") or _HEDGED.search(words) or _COMPARED.search(words):
        return False
    if state == "present":
        return True
    limits = _QUALIFIED.search(words) or _PLACED.search(words) or lexicon().grade.search(words)
    return limits is None and not any(pattern.search(words) for pattern, _ in lexicon().sites)


def nouns(finding: str) -> list[tuple[str, str | None]]:
    """(singular, plural or None for a mass noun) of the curated list of a finding's names."""
    listed = [(one, many) for one, many in nouns_of(finding, held_out=False) if one is not None]
    return [pair for pair in listed if pair[0] not in AMBIGUOUS]


def opposites(statement: Statement, draw: np.random.Generator) -> Opposites:
    """A statement and its opposite in a drawn form and wording."""
    affirmed, denied = worded(statement.finding, choose(draw, FORMS), draw)
    return Opposites(affirmed, denied) if statement.present else Opposites(denied, affirmed)


def label_phrase(statement: Statement, draw: np.random.Generator) -> str:
    """A short statement like a test prompt: "Pleural effusion." or "No pleural effusion."."""
    affirmed, denied = worded(statement.finding, choose(draw, (FORMS[0], FORMS[4])), draw)
    return affirmed if statement.present else denied


def worded(finding: str, form: tuple[str, str], draw: np.random.Generator) -> tuple[str, str]:
    """ "X is present" and "X is absent" of a finding of the ontology in one form, with the same noun."""
    one, many = choose(draw, nouns(ontology().finding(finding).name))
    plural = many is not None and bool(draw.random() < 0.5)
    noun = many if plural and many is not None else one
    # A countable singular needs its article where it is asserted: "There is a lung nodule", but "There is no lung nodule".
    article = "" if plural or many is None else ("an " if noun[0] in "aeiou" else "a ")
    be = "are" if plural else "is"
    affirmed = form[0].format(x=article + noun, X=capitalise(article + noun if "{is}" in form[0] else noun), **{"is": be})
    denied = form[1].format(x=noun, **{"is": be})
    return affirmed, denied
