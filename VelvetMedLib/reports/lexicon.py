"""The words that reports use for findings, places, sides, grades, negation and doubt, compiled from assets/report_lexicon.json."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, TypeAlias

from VelvetMedLib.reports.records import Severity, State

Pattern: TypeAlias = re.Pattern[str]

NUMBER_WORDS = {
    word: n
    for n, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"])
}
COUNT = re.compile(rf"\b(single|solitary|{'|'.join(list(NUMBER_WORDS)[1:])}|\d{{1,2}})\b(?! ?-?(?:mm|cm|ml|hu|%|\.\d|x ))")

_NUMBER = r"(\d+(?:[.,]\d+)?)"
_UNIT = r"(mm|cm|millimet(?:er|re)s?|centimet(?:er|re)s?)"
SIZE = re.compile(
    rf"{_NUMBER}(?: ?(?:mm|cm)?(?: ?x ?| ?- ?| to | by | and ){_NUMBER})?(?: ?(?:mm|cm)?(?: ?x ?| by ){_NUMBER})? ?-?{_UNIT}\b"
)  # fmt: skip
"""One to three numbers ("12 mm", "1.4 x 1.1 cm", "4 to 12 mm") and their unit."""
_SIZES = r"(?:\d+(?:[.,]\d+)? ?(?:(?:mm|cm)? ?(?:x|by|-) ?)?)+ ?(?:mm|cm)"
PRIOR_SIZE = re.compile(
    rf"\b(?:previously|prior|formerly|before|earlier|compared (?:with|to)|versus|vs|(?:having|had) been|was|from)"
    rf"(?: measured| measuring| at| of| about| approximately)? {_SIZES}(?: (?:previously|before|earlier))?|"
    rf"\bfrom \d+(?:[.,]\d+)? (?=to )|{_SIZES} (?:previously|before|earlier|(?:on|in) the (?:prior|previous|last))"
)
"""Sizes of an earlier scan, in front of its word or behind it."""
PERCENT = re.compile(rf"{_NUMBER} ?(?:%|per ?cent)")
RATIO = re.compile(
    r"\b(?:cardiothoracic ratio|ctr|ratio)(?: is| of| =| at| measures|:)?(?: about| approximately| to)? ?(0[.,]\d+|\d\d ?%)"
)  # fmt: skip
HOUNSFIELD = re.compile(r"(-?\d+(?:[.,]\d+)?) ?(?:hu|hounsfield units?)\b")
MILLILITRES = re.compile(rf"{_NUMBER} ?(?:ml|millilit(?:er|re)s?|cc)\b")
VERTEBRA = re.compile(
    r"\b([tl])h?[ -]?(\d{1,2})\b|\b(\d{1,2})(?:st|nd|rd|th) (thoracic|lumbar) vertebra|\b(thoracic|lumbar) vertebra (\d{1,2})\b"
)  # fmt: skip


@dataclass(frozen=True)
class CuePattern:
    """Words that change a finding's state. before: they stand in front of the finding ("no ..."), else behind it."""

    state: State
    before: bool
    pattern: Pattern


@dataclass(frozen=True)
class Lexicon:
    """All patterns, over lower-case text with single spaces.

    rewrites: spellings and shorthand, and the words that all other patterns know them by. cues: earlier entries win where they
    overlap. organ_*: ways to call an organ normal, borderline or not covered, and the findings that this speaks of.
    pseudo_negation: "no change", which denies nothing that follows.
    """

    rewrites: tuple[tuple[Pattern, str], ...]
    findings: tuple[tuple[str, Pattern], ...]
    organ_normal: tuple[tuple[Pattern, tuple[str, ...]], ...]
    organ_borderline: tuple[tuple[Pattern, tuple[str, ...]], ...]
    organ_unseen: tuple[tuple[Pattern, tuple[str, ...]], ...]
    pseudo_negation: Pattern
    cues: tuple[CuePattern, ...]
    scope_ends: Pattern
    grade: Pattern
    grades: dict[str, Severity]
    sites: tuple[tuple[Pattern, str], ...]


def _either(words: list[str]) -> str:
    return "(?:" + "|".join(words) + ")"


@lru_cache(maxsize=1)
def lexicon() -> Lexicon:
    """The shipped lexicon, read and compiled once."""
    data: dict[str, Any] = json.loads(files("VelvetMedLib").joinpath("assets", "report_lexicon.json").read_text(encoding="utf-8"))

    def organs(key: str, edge: str = "") -> tuple[tuple[Pattern, tuple[str, ...]], ...]:
        return tuple((re.compile(edge + _either(entry["words"])), tuple(entry["findings"])) for entry in data[key])

    grades: dict[str, Severity] = {word: grade for grade, words in data["grades"].items() for word in words}
    return Lexicon(
        rewrites=tuple((re.compile(shorthand), words) for shorthand, words in data["rewrites"]),
        findings=tuple((name, re.compile(rf"(?<![-\w]){_either(words)}(?!\w)")) for name, words in data["finding_terms"].items()),
        organ_normal=organs("organ_normal", r"\b"),
        organ_borderline=organs("organ_borderline"),
        organ_unseen=organs("organ_unseen"),
        pseudo_negation=re.compile(rf"\b{_either(data['pseudo_negation'])}\b"),
        cues=tuple(CuePattern(c["state"], c["stands"] == "pre", re.compile("|".join(c["words"]))) for c in data["cues"]),
        scope_ends=re.compile("|".join(data["scope_ends"])),
        grade=re.compile(rf"(?<![-\w])({'|'.join(sorted(grades, key=len, reverse=True))})(?![-\w])"),
        grades=grades,
        sites=tuple((re.compile(_either(words)), site) for site, words in data["sites"].items()),
    )
