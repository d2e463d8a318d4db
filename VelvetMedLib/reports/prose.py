"""Report text from finding records: many wordings, four styles, combined negations; every sentence can be parsed back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from VelvetMedLib.reports.ontology import ontology
from VelvetMedLib.reports.phrases import build_parts, capitalise, choose, fill_slots, nouns_of, phrase_book, render_template
from VelvetMedLib.reports.records import FindingRecord, State

STYLES: tuple[str, ...] = ("structured", "narrative", "terse", "itemised")
"""Styles for training and for drafts."""
HELD_OUT_STYLE = "letter"
"""A fifth style that is never trained on: reports in it test understanding of unseen wording."""
ALL_STYLES: tuple[str, ...] = (*STYLES, HELD_OUT_STYLE)

_NAME_NEGATIVE = 0.7
_NAME_NOT_ASSESSED = 0.6
_JOIN_NEGATIVES = 0.55
_SHORT_STYLES = ("terse", "itemised")


@dataclass(frozen=True)
class ProseSentence:
    """One sentence. slotted: the same words with [SIZE], [COUNT] and [VALUE] for numbers. finding and state are None for
    sentences about none (technique, comparison). findings: all that the sentence speaks of, `finding` first.
    attributes: names of the record's fields that the sentence states (side, site, size_mm, count, severity, value)."""

    text: str
    slotted: str
    finding: str | None = None
    state: State | None = None
    findings: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProseSection:
    """A titled section of a report."""

    title: str
    sentences: tuple[ProseSentence, ...]


def write_sentence(record: FindingRecord, rng: np.random.Generator, style: str, *, held_out_wording: bool = False) -> ProseSentence:
    """One sentence on one record in any state. held_out_wording: only wordings that ordinary reports never use."""
    book = phrase_book()
    spec = book["findings"][record.name]
    frames = book["frames"][record.state]
    kind = "letter" if style == HELD_OUT_STYLE else "short" if style in _SHORT_STYLES else "full"
    if held_out_wording and kind != "letter":
        templates = [*frames["held_out"], *spec.get(f"held_out_{record.state}", ())]
    else:
        # A finding's own phrases are as likely as the general frames together, short styles use fewer of them.
        own = [t for t in spec[record.state] if kind != "letter"]
        general = list(frames[kind])
        templates = own if own and rng.random() < (0.25 if kind == "short" else 0.4) else general
    for _ in range(20):
        parts = build_parts(record, rng, held_out=held_out_wording, short_sites=style == "terse" and rng.random() < 0.7)
        rendered = render_template(choose(rng, templates), parts, rng)
        if rendered is not None:
            break
    else:
        # The first general frame of every state fits every record.
        parts = build_parts(record, rng, held_out=held_out_wording, short_sites=False)
        rendered = render_template(frames["held_out" if held_out_wording else "full"][0], parts, rng)
        assert rendered is not None
    slotted, said = rendered
    text = fill_slots(slotted, record, rng=rng)
    return ProseSentence(text, slotted, record.name, record.state, (record.name,), said)


def write_report(
    records: Iterable[FindingRecord], *, style: str, rng: np.random.Generator, held_out_wording: bool = False
) -> tuple[ProseSection, ...]:
    """A whole report. Findings that are present or uncertain are always said; negatives with p about 0.7, not-assessed ones
    with p about 0.6, alone or together. Technique and comparison stand in sections of their own.

    Raises ValueError on an unknown style.
    """
    if style not in ALL_STYLES:
        raise ValueError(f"unknown report style {style!r}; known: {', '.join(ALL_STYLES)}")
    by_name = {r.name: r for r in records}
    writer = _Writer(by_name, style, rng, held_out_wording)
    body = [(section, writer.section(section)) for section in ontology().sections]
    body = [(section, sentences) for section, sentences in body if sentences]
    sections = _preamble(style, rng)
    titles = phrase_book()["sections"]
    if style == "structured":
        sections += [ProseSection(titles[name], tuple(sentences)) for name, sentences in body]
    else:
        title = {"narrative": "Findings", "terse": "Findings", "itemised": "Findings", HELD_OUT_STYLE: "Report"}[style]
        together = [s for _, sentences in body for s in sentences]
        sections.append(ProseSection(title, tuple(_join(together, style, rng))))
    sections.append(ProseSection("Conclusion" if style == HELD_OUT_STYLE else "Impression", tuple(writer.impression())))
    return tuple(s for s in sections if s.sentences)


def render(sections: Sequence[ProseSection], style: str) -> str:
    """The report as one text: headings, one line per sentence where the style itemises, paragraphs elsewhere."""
    blocks = []
    for section in sections:
        texts = [s.text for s in section.sentences]
        if style == "itemised" and section.title == "Findings":
            body = "\n".join(f"{n}. {text}" for n, text in enumerate(texts, 1))
        else:
            body = " ".join(texts)
        blocks.append(f"{section.title}:\n{body}" if style in ("itemised", "narrative") else f"{section.title.upper()}: {body}")
    return "\n\n".join(blocks) + "\n"


def _preamble(style: str, rng: np.random.Generator) -> list[ProseSection]:
    book = phrase_book()

    def plain(text: str) -> ProseSentence:
        return ProseSentence(text, text)

    if style == "terse":
        return []
    title = "Examination" if style == HELD_OUT_STYLE else "Technique"
    sections = [ProseSection(title, (plain(choose(rng, book["technique"])),))] if rng.random() < 0.8 else []
    if rng.random() < 0.5:
        sections.append(ProseSection("Comparison", (plain(choose(rng, book["comparison"])),)))
    return sections


def _join(sentences: list[ProseSentence], style: str, rng: np.random.Generator) -> list[ProseSentence]:
    """Now and then a joining word before a positive sentence of a narrative."""
    if style != "narrative":
        return sentences
    joined = []
    for n, s in enumerate(sentences):
        if n and s.state == "present" and s.text.split()[0] in ("There", "The") and rng.random() < 0.2:
            joiner = choose(rng, phrase_book()["joiners"])
            s = ProseSentence(
                joiner + s.text[0].lower() + s.text[1:],
                joiner + s.slotted[0].lower() + s.slotted[1:],
                s.finding,
                s.state,
                s.findings,
                s.attributes,
            )
        joined.append(s)
    return joined


class _Writer:
    """Writes the sections of one report from its records."""

    def __init__(self, by_name: dict[str, FindingRecord], style: str, rng: np.random.Generator, held_out: bool) -> None:
        self.by_name, self.style, self.rng, self.held_out = by_name, style, rng, held_out
        self.book = phrase_book()

    def one(self, name: str) -> ProseSentence:
        return write_sentence(self.by_name[name], self.rng, self.style, held_out_wording=self.held_out)

    def section(self, section: str) -> list[ProseSentence]:
        here = [f.name for f in ontology().findings if f.section == section and f.name in self.by_name]
        state = {name: self.by_name[name].state for name in here}
        positive = [n for n in here if state[n] == "present" and not self._told_by_mass(n)]
        uncertain = [n for n in here if state[n] == "uncertain"]
        sentences = [self.one(n) for n in positive + uncertain]
        sentences += self._absent([n for n in here if state[n] == "absent"])
        sentences += self._not_assessed(section, here, [n for n in here if state[n] == "not_assessed"])
        return sentences

    def _told_by_mass(self, name: str) -> bool:
        """A lone mass is not called a nodule as well."""
        nodule, mass = self.by_name.get("lung_nodule"), self.by_name.get("lung_mass")
        if name != "lung_nodule" or nodule is None or mass is None or mass.state != "present":
            return False
        return (nodule.count or 1) == 1 and nodule.size_mm == mass.size_mm

    def _absent(self, names: list[str]) -> list[ProseSentence]:
        rng, sentences = self.rng, []
        left = list(names)
        for group in self.book["absent_together"]:
            if set(group["findings"]) <= set(left) and rng.random() < 0.3:
                text = choose(rng, group["held_out"] if self.held_out else group["texts"])
                sentences.append(ProseSentence(text, text, group["findings"][0], "absent", tuple(group["findings"])))
                left = [n for n in left if n not in group["findings"]]
        left = [n for n in left if rng.random() < _NAME_NEGATIVE]
        rng.shuffle(left)
        while left:
            size = min(len(left), int(rng.integers(2, 4)))
            if size >= 2 and rng.random() < _JOIN_NEGATIVES:
                sentences.append(self._list_absent(left[:size]))
                left = left[size:]
            else:
                sentences.append(self.one(left.pop()))
        return sentences

    def _list_absent(self, names: list[str]) -> ProseSentence:
        key = ("held_out_" if self.held_out else "") + ("two" if len(names) == 2 else "three")
        text = str(choose(self.rng, self.book["absent_lists"][key]))
        for slot, name in zip("abc", names, strict=False):
            one, many = choose(self.rng, nouns_of(name, self.held_out))
            words = {slot: one, slot + "s": many or one}
            for token, word in words.items():
                text = text.replace("{" + token + "}", word).replace("{" + capitalise(token) + "}", capitalise(word))
        return ProseSentence(text, text, names[0], "absent", tuple(names))

    def _not_assessed(self, section: str, here: list[str], names: list[str]) -> list[ProseSentence]:
        rng = self.rng
        group = self.book["not_assessed_together"].get(section)
        if group and names and len(names) == len(here) and rng.random() < 0.8:
            text = choose(rng, group["held_out"] if self.held_out else group["texts"])
            return [ProseSentence(text, text, names[0], "not_assessed", tuple(names))]
        return [self.one(n) for n in names if rng.random() < _NAME_NOT_ASSESSED]

    def impression(self) -> list[ProseSentence]:
        rng = self.rng
        present = [n for n in ontology().finding_names if n in self.by_name and self.by_name[n].state == "present"]
        present = [n for n in present if not self._told_by_mass(n)]
        if not present:
            text = choose(rng, self.book["normal"])
            return [ProseSentence(text, text)]
        style = self.style if self.style == HELD_OUT_STYLE else "itemised"
        chosen = present[: int(rng.integers(2, 5))]
        sentences = [write_sentence(self.by_name[n], rng, style, held_out_wording=self.held_out) for n in chosen]
        if rng.random() < 0.2:
            closing = choose(rng, self.book["closing"])
            sentences.append(ProseSentence(closing, closing))
        return sentences
