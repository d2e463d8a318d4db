"""The draft report: sentences worded by a writer (`tasks.writers`), filled from measurement, and checked by parsing them back.

A sentence that says another finding, state, side, site, size, count or grade than the plan, or any number that was not
measured, is replaced by a composed one from `reports.prose`. Its support then is that of the finding alone.
The choice is made between whole sentences, not between tokens: what a denial reaches is known when the sentence is complete.
`DraftSettings.hold_from` confines it to findings of some confidence; numbers are filled from measurement in any case.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from VelvetMedLib.case import CaseFinding, Report, Section, Sentence
from VelvetMedLib.case.checks import unlike
from VelvetMedLib.reports import FindingRecord, State, ontology
from VelvetMedLib.reports.parse import parse_sentence
from VelvetMedLib.reports.phrases import fill_slots, phrase_book
from VelvetMedLib.reports.prose import write_sentence
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.prompts import available_slots
from VelvetMedLib.tasks.writers import DraftSettings, Writer, open_writer
from VelvetMedLib.tasks.writers.base import IMPRESSION, NOT_ASSESSED

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle


@dataclass(frozen=True)
class Draft:
    """The report and, per finding that has a sentence of its own, whether the writer's words were taken ("written") or the built-in
    phrases spoke ("composed")."""

    report: Report
    origin: dict[str, str]


DEFAULT = DraftSettings()


def draft_report(
    findings: tuple[CaseFinding, ...],
    encoding: Encoding,
    bundle: Bundle,
    *,
    settings: DraftSettings = DEFAULT,
    writer: Writer | None = None,
    run: Run | None = None,
) -> Draft:
    """The whole report, sections in the ontology's order, then what was not assessed, then the impression.

    writer: None = `open_writer(None, bundle)`.
    """
    titles = phrase_book()["sections"]
    wanted = {title for section, title in titles.items() if settings.has(section)}
    states = {f.name: f.state for f in findings}
    held = {f.name for f in findings if is_held(f, settings.hold_from)}
    planned = [f for f in findings if not _silent(f, findings) and _title(f) in wanted]
    together = [f for f in planned if settings.length == "brief" and f.state in ("absent", "not_assessed")]
    alone = [f for f in planned if f not in together]
    sentences: dict[str, list[Sentence]] = {title: [] for title in titles.values()}
    origin: dict[str, str] = {}
    records = [f.record() for f in alone]
    proposed = (writer or open_writer(None, bundle)).write(records, encoding, settings.style, run or Run())
    for finding, record, wording in zip(alone, records, proposed, strict=True):
        title = _title(finding)
        text = None if wording is None else accepted(wording.slotted, record, states, title, held)
        origin[finding.name] = "composed" if text is None else "written"
        support = finding_support(finding)
        if text is not None and wording is not None and wording.probability is not None and support is not None:
            support = round(math.sqrt(support * wording.probability), 4)
        text = text or compose(record, settings.style, title)
        state: State | None = finding.state
        if finding.name not in held:
            state = next((m.state for m in parse_sentence(text, title) if m.name == finding.name), None)
            support = support if state == finding.state else None
        sentences[title].append(Sentence(text=text, state=state, support=support, finding=finding.name, link=finding.link))
    for title, lines in sentences.items():
        lines += _together([f for f in together if _title(f) == title], settings.style, title)
    sections = [Section(title=title, sentences=tuple(lines)) for title, lines in sentences.items() if lines]
    if settings.has(NOT_ASSESSED):
        sections += _limits(findings)
    if settings.has(IMPRESSION):
        sections.append(Section(title="Impression", sentences=_impression(findings)))
    return Draft(Report(style=settings.style, sections=tuple(sections)), origin)


def _title(finding: CaseFinding) -> str:
    return str(phrase_book()["sections"][ontology().finding(finding.name).section])


def _together(findings: list[CaseFinding], style: str, title: str) -> list[Sentence]:
    """Findings without a sentence of their own in one sentence for each state, if it reads back as that; else one by one.

    Its support is the least of theirs.
    """
    sentences = []
    wordings: tuple[tuple[State, str], ...] = (("absent", "No {}."), ("not_assessed", "Not covered by this scan: {}."))
    for state, wording in wordings:
        same = [f for f in findings if f.state == state]
        text = wording.format(_listed([f.display for f in same]))
        read = {m.name: m.state for m in parse_sentence(text, title)}
        if len(same) > 1 and read == {f.name: state for f in same}:
            supports = [s for s in map(finding_support, same) if s is not None]
            sentences.append(Sentence(text=text, state=state, support=min(supports, default=None), finding=None, link=None))
        else:
            sentences += [
                Sentence(
                    text=compose(f.record(), style, title), state=state, support=finding_support(f), finding=f.name, link=f.link
                )
                for f in same
            ]  # fmt: skip
    return sentences


def _listed(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def is_held(finding: CaseFinding, hold_from: float | None) -> bool:
    """Whether no sentence may contradict a finding: one as sure as `hold_from`, or one that was not assessed."""
    support = finding_support(finding)
    return hold_from is not None and (support is None or support >= hold_from)


def finding_support(finding: CaseFinding) -> float | None:
    """How far the finding itself supports its state: its probability, or one minus it for an absent one."""
    if finding.probability is None:
        return None
    return round(1.0 - finding.probability if finding.state == "absent" else finding.probability, 4)


def _silent(finding: CaseFinding, findings: tuple[CaseFinding, ...]) -> bool:
    """Findings without a sentence of their own: what the model cannot tell (said together), and a nodule that is the mass."""
    if finding.state == "not_assessed" and (finding.reason or "").startswith("not assessed by this model"):
        return True
    mass = next((f for f in findings if f.name == "lung_mass"), None)
    both = finding.name == "lung_nodule" and finding.state == "present" and mass is not None and mass.state == "present"
    return both and mass is not None and finding.size_mm is not None and finding.size_mm == mass.size_mm


def accepted(
    slotted: str, record: FindingRecord, states: Mapping[str, str], title: str = "", held: Collection[str] | None = None
) -> str | None:
    """A writer's sentence with its slots filled, or None if it brings a number of its own, or anything in it is not in the record.

    held: names of the findings that no sentence may contradict, None = all. A sentence on another one may say anything but that.
    """
    if not slotted or re.search(r"\d", slotted):
        return None
    slots = set(re.findall(r"\[[A-Z]+\]", slotted))
    if slots - set(available_slots(record)):
        return None
    text = fill_slots(slotted, record)
    if held is None or record.name in held:
        return text if agrees(text, record, states, title) else None
    return None if any(m.name in held and states[m.name] != m.state for m in parse_sentence(text, title)) else text


def agrees(text: str, record: FindingRecord, states: Mapping[str, str], title: str = "") -> bool:
    """Whether a sentence, parsed back, says the record and nothing that contradicts the plan for other findings.

    Stricter than the flags on a person's sentence (`case.checks.differences`): no side of "both", no grade that is not on record.
    """
    mentions = {m.name: m for m in parse_sentence(text, title)}
    said = mentions.pop(record.name, None)
    if said is None or any(states.get(name) != m.state for name, m in mentions.items()):
        return False
    return said.state == record.state and not unlike(said, record)


def compose(record: FindingRecord, style: str, title: str = "", *, seed: str = "") -> str:
    """A sentence on a record in the built-in phrases, itself checked by parsing. The same record always gets the same words,
    so that one scan stored in two forms (DICOM and NIfTI) gets one report."""
    rng = np.random.default_rng([zlib.crc32(f"{seed}{record.name}".encode())])
    states = {record.name: record.state}
    for _ in range(12):
        text = write_sentence(record, rng, style).text
        if agrees(text, record, states, title):
            return text
    display = ontology().finding(record.name).display
    plain = {
        "present": f"There is {display}.",
        "absent": f"No {display}.",
        "uncertain": f"Possible {display}.",
        "not_assessed": f"{display[0].upper()}{display[1:]} is not assessed on this scan.",
    }
    return plain[record.state]


def _limits(findings: tuple[CaseFinding, ...]) -> list[Section]:
    """What the model does not tell from chance, said plainly and never as absent."""
    unknown = [f for f in findings if f.state == "not_assessed" and (f.reason or "").startswith("not assessed by this model")]
    if not unknown:
        return []
    lines = [
        Sentence(
            text=f"{f.display[0].upper()}{f.display[1:]} is not assessed by this model.",
            state="not_assessed", support=None, finding=f.name, link=None,
        )
        for f in unknown
    ]  # fmt: skip
    return [Section(title="Not assessed", sentences=tuple(lines))]


def _impression(findings: tuple[CaseFinding, ...]) -> tuple[Sentence, ...]:
    """Present findings again, most probable first; otherwise a sentence that claims no more than was looked at."""
    present = sorted((f for f in findings if f.state == "present" and not _silent(f, findings)), key=lambda f: -(f.probability or 0.0))
    lines = [
        Sentence(
            text=compose(f.record(), "itemised", seed="impression"),
            state="present", support=finding_support(f), finding=f.name, link=f.link,
        )
        for f in present
    ]  # fmt: skip
    if lines:
        return tuple(lines)
    assessed = sum(f.state != "not_assessed" for f in findings)
    uncertain = sum(f.state == "uncertain" for f in findings)
    doubt = f"; {uncertain} stay{'s' if uncertain == 1 else ''} uncertain" if uncertain else ""
    text = f"None of the findings that could be assessed ({assessed} of {len(findings)}) is called present{doubt}."
    return (Sentence(text=text, state=None, support=None, finding=None, link=None),)
