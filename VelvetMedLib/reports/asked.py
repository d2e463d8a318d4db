"""Typed questions, read: what kind of thing is asked, of which finding, of which organs, on which side; in anybody's words.

Rules only, driven by assets/question_lexicon.json and the words that reports use. A text that is not understood as it stands is read
once more with its spelling mended, and what it was read as is kept, so that nobody gets an answer to a question they did not ask.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal

from VelvetMedLib.reports.ontology import Finding, ontology
from VelvetMedLib.reports.parse import find_findings
from VelvetMedLib.reports.phrases import nouns_of
from VelvetMedLib.reports.records import Side

OF_ORGANS = ("volume", "size", "density", "compare", "covered", "site", "findings", "normal")
"""Kinds that can be asked of an organ alone."""
SHORTEST_MENDED, ALIKE = 4, 0.82
"""Words from this length on are mended, to a word at least this much like them (difflib's ratio: one slip in six letters)."""


@dataclass(frozen=True)
class Organ:
    """An organ as a question names it: a structure, or several together ("left lung"). names: of the ontology's structures."""

    display: str
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a question asks; None or empty where it does not tell.

    kind: one of `questions.KINDS`. finding: its name. organs: in order of mention; of two kidneys "kidneys" gives both.
    side: the one side that is named. beyond: why no scan can answer it. inside: the finding is asked for in the organs, not of them.
    by_density: a comparison of HU, not of volumes. claim: what a comparison says of the first organ, where it asks for yes or no.
    read_as: the text after its spelling was mended, None where it was read as it stands.
    """

    kind: str | None = None
    finding: str | None = None
    organs: tuple[Organ, ...] = ()
    side: Side | None = None
    beyond: str | None = None
    inside: bool = False
    by_density: bool = False
    claim: Literal["more", "less"] | None = None
    read_as: str | None = None

    @property
    def understood(self) -> bool:
        """Whether it asks something that a case can be held against."""
        if self.kind in ("findings", "normal"):
            return True
        return self.kind is not None and (self.finding is not None or (bool(self.organs) and self.kind in OF_ORGANS))

    @property
    def structures(self) -> tuple[str, ...]:
        """All structures that are named."""
        return tuple(dict.fromkeys(name for organ in self.organs for name in organ.names))


@lru_cache(maxsize=1)
def _lexicon() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(files("VelvetMedLib").joinpath("assets", "question_lexicon.json").read_text(encoding="utf-8"))
    data["rewritten"] = [(re.compile(pattern), words) for pattern, words in data["rewritten"]]
    data["beyond"] = [(re.compile("|".join(entry["words"])), entry["reason"]) for entry in data["beyond"]]
    data["kinds"] = [(kind, re.compile(pattern)) for kind, pattern in data["kinds"]]
    sides = r"(?:(left|right|both)(?:-sided)?(?: (?:and|or|than|to|with|against|versus|vs)(?: the)? (left|right))? )?"
    for organ in data["organs"]:
        words = "|".join(sorted(organ["words"], key=len, reverse=True))
        organ["pattern"] = re.compile(rf"\b{sides if 'left' in organ else ''}(?:{words})\b")
    return data


def understand(text: str) -> Asked:
    """A typed question, read."""
    words = re.sub(r"\s+", " ", text.lower().replace("\u2019", "'")).strip()
    asked = _read(words)
    if asked.understood or asked.beyond is not None:
        return asked
    mended = _mended(words)
    again = _read(mended)
    return replace(again, read_as=mended) if mended != words and again.understood else asked


def _read(words: str) -> Asked:
    beyond = next((reason for pattern, reason in _lexicon()["beyond"] if pattern.search(words)), None)
    for pattern, by in _lexicon()["rewritten"]:
        words = re.sub(r"\s+", " ", pattern.sub(by, words)).strip()
    findings = find_findings(words.rstrip("? "))
    kind = next((kind for kind, pattern in _lexicon()["kinds"] if pattern.search(words)), None)
    organs, inside = _organs(_without(words, findings[:1]), kind)
    sides = set(re.findall(r"\b(left|right)(?:-sided)?\b", words))
    side: Side | None = None
    if len(sides) == 1:
        side = "left" if "left" in sides else "right"
    asked = Asked(
        kind=kind,
        finding=findings[0] if findings else None,
        organs=organs,
        side=side,
        beyond=beyond,
        inside=inside,
        by_density=_DENSITY.search(words) is not None,
        claim=_claim(words) if kind == "compare" else None,
    )
    return _settled(asked, words)


_DENSITY = re.compile(r"\b(?:dens\w+|dark\w*|bright\w*|attenuation|hu|hounsfield)\b")
_CLAIM = re.compile(r"^(?:is|are) .*?\b(?:(larger|bigger|greater|heavier|denser|brighter)|smaller|lighter|darker)\b.* than\b")


def _claim(words: str) -> Literal["more", "less"] | None:
    found = _CLAIM.search(words)
    return None if found is None else "more" if found.group(1) else "less"


def _settled(asked: Asked, words: str) -> Asked:
    """Kind and finding brought together: "Is the heart big?" asks for cardiomegaly, "a nodule on the scan?" for no coverage."""
    kind, finding = asked.kind, asked.finding
    if finding is None and kind in ("presence", "normal", "size") and len(asked.structures) == 1:
        enlarged = _lexicon()["enlarged"].get(asked.structures[0])
        told = re.search(r"\b(?:too |abnormally )?(?:big|large|larger|bigger|enlarged|dilated|wide|widened|swollen|oversized)\b", words)
        if enlarged is not None and told is not None and not re.search(r"\bhow (?:big|large|wide)\b", words):
            finding, kind = enlarged, "presence"
    if finding is None and kind == "presence" and asked.organs and not asked.inside:
        # "Is there a spleen?", "Do you see the liver?"; "Is the liver cirrhotic?" asks for something else.
        organs = "|".join(re.escape(organ.display) for organ in asked.organs)
        kind = "covered" if re.search(rf"\b(?:{organs})s?(?: there| here| visible| seen| shown| present)?\W*$", words) else kind
    if finding is not None:
        if kind == "compare":
            kind = "side" if re.search(r"\b(?:left|right|side)\b", words) else "size"
        elif kind in ("findings", "covered", "normal", None):
            kind = "presence"
    return replace(asked, kind=kind, finding=finding)


def _without(words: str, findings: list[str]) -> str:
    """The text without the names of findings: a lung nodule names no lung."""
    names = [noun for name in findings for pair in nouns_of(name, held_out=False) for noun in pair if noun is not None]
    return re.sub("|".join(rf"\b{re.escape(noun)}\b" for noun in sorted(names, key=len, reverse=True)), "it", words) if names else words


def _organs(words: str, kind: str | None) -> tuple[tuple[Organ, ...], bool]:
    """Organs in order of mention, and whether the last is named as a place ("in the liver")."""
    found: list[tuple[int, Organ]] = []
    taken: list[tuple[int, int]] = []
    inside = False
    entries = sorted(_lexicon()["organs"], key=lambda o: -max(map(len, o["words"])))
    for organ in entries:
        for m in organ["pattern"].finditer(words):
            if any(m.start() < b and a < m.end() for a, b in taken):
                continue
            taken.append(m.span())
            inside |= bool(re.search(r"\b(?:in|of|within|on|inside)(?: (?:the|my|his|her|either|both))? ?$", words[: m.start()]))
            found += [(m.start(), one) for one in _meant(organ, m, words, kind)]
    found.sort(key=lambda pair: pair[0])
    return tuple(dict.fromkeys(organ for _, organ in found)), inside


def _meant(organ: dict[str, Any], m: re.Match[str], words: str, kind: str | None) -> list[Organ]:
    """One organ, or those sides of a pair that are meant. Both sides are two organs where they are compared, else one."""
    if "left" not in organ:
        return [Organ(organ["display"], tuple(organ["names"]))]
    sides = [side for side in m.groups() if side in ("left", "right")]
    if not sides and (behind := re.match(r" (?:on|of) the (left|right)(?: side)?\b(?! or)", words[m.end() :])):
        sides = [behind.group(1)]
    if kind == "compare" and (len(sides) == 2 or not sides or re.search(r"\b(?:than|with|to|and|or|against|versus|vs)\b", words)):
        # "Is the left kidney larger than the right?", "compare the kidneys"; but "the left kidney and the spleen" are two already.
        others = len(set(re.findall(r"\b(?:left|right)\b", words))) == 2 or not sides
        sides = list(dict.fromkeys([*sides, *(("left", "right") if others else ())]))
    if kind == "compare" or len(sides) == 1:
        return [Organ(f"{side} {organ['display']}", tuple(organ[side])) for side in sides]
    return [Organ(f"{organ['display']}s", (*organ["left"], *organ["right"]))]


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[str, ...]:
    """Words that slips are mended to: names of findings and organs, and the ordinary words of questions."""
    texts = [*_lexicon()["ordinary"], *(s.display for s in ontology().structures), *(f.display for f in ontology().findings)]
    texts += [noun for f in ontology().findings for pair in nouns_of(f.name, held_out=False) for noun in pair if noun is not None]
    texts += ["kidneys", "lungs", "nodules", "vertebra", "enlarged", "fatty", "stones", "pneumonia", "cyst"]
    return tuple(sorted({word for text in texts for word in re.findall(r"[a-z]+", text.lower()) if len(word) >= SHORTEST_MENDED}))


def _mended(words: str) -> str:
    """Each unknown longer word replaced by the known one most like it, if any is alike enough."""
    known = _vocabulary()

    def mend(m: re.Match[str]) -> str:
        word = m.group()
        if len(word) < SHORTEST_MENDED or word in known:
            return word
        return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=ALIKE)), word)

    return re.sub(r"[a-z]+", mend, words)


_SECTIONS = {"lung": ("lungs", "pleura"), "kidney": ("kidneys",), "aorta": ("vessels",), "vertebrae": ("bones",),
             "esophagus": ("mediastinum",), "trachea": ("mediastinum",), "stomach": ("mediastinum",)}  # fmt: skip


def findings_of(structure: str) -> tuple[Finding, ...]:
    """The findings that concern a structure ("What is wrong with the liver?"); none where none is looked for there."""
    sections = _SECTIONS.get(structure.split("_")[0], (structure,))
    related = [f for f in ontology().findings if f.section in sections]
    # Of the stomach and the gullet only the hernia, of the windpipe only the nodes: those that need it in view.
    return tuple(f for f in related if structure in f.requires) if sections == ("mediastinum",) else tuple(related)
