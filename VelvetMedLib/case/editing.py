"""What a person changes in a Case: words and verdicts of sentences, edited segments and all that no longer holds because of them.

Every function takes a Case and returns a new one, its sentences checked anew (`case.checks`) where words or findings have changed.
A place is (number of the section, number of the sentence in it), from 0.
The model's own words are never lost: they stay in `Sentence.revision`, with whose they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal, TypeAlias

from VelvetMedLib.case.checks import checked
from VelvetMedLib.case.schema import Case, CaseFinding, Report, Revision, Section, Sentence
from VelvetMedLib.reports.ontology import LUNG_LOBES, ontology
from VelvetMedLib.reports.parse import parse_sentence
from VelvetMedLib.reports.records import State

Place: TypeAlias = tuple[int, int]
PERSONS_SECTION = "Added by hand"
LONGEST_SENTENCE = 2000
_ALSO_MEASURED_ON = {
    "cardiothoracic_ratio": (*LUNG_LOBES, "pleural_effusion", "pneumothorax"),
    "liver_minus_spleen_hu": ("liver", "spleen", "aorta"),
    "aortic_diameter_mm": LUNG_LOBES,
    "lung_fraction": LUNG_LOBES,
}
_MIDLINE = ("spinal_cord", "vertebrae")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# sentences


def sentences(case: Case) -> Iterator[tuple[Place, Section, Sentence]]:
    """Every sentence of the draft with its place."""
    for s, section in enumerate(case.report.sections if case.report is not None else ()):
        for n, sentence in enumerate(section.sentences):
            yield (s, n), section, sentence


def sentence_at(case: Case, place: Place) -> Sentence:
    """Raises IndexError where there is none."""
    if case.report is None or min(place) < 0:
        raise IndexError("no such sentence")
    return case.report.sections[place[0]].sentences[place[1]]


def rewrite(case: Case, place: Place, text: str, *, when: str | None = None) -> Case:
    """A person's words for a sentence, on one line. The same words as the model's make it the model's again.

    State and support were the model's judgement of its own words: for a person's, the state is what the words say of the
    finding, if they name it, and there is no support. Raises ValueError on an empty text.
    """
    text = one_line(text)
    before = sentence_at(case, place)
    revision = _revision(case, before, when)
    if text == revision.machine_text:
        after = replace(before, text=text, state=revision.machine_state, support=revision.machine_support, revision=revision)
    else:
        after = replace(before, text=text, state=_state_said(text, before), support=None, revision=replace(revision, verdict="accepted"))
    # Whoever writes the words now has seen the segments as they are now.
    return _with_sentence(case, place, replace(after, stale=before.stale and not after.by_person))


def judge(case: Case, place: Place, verdict: Literal["accepted", "rejected"] | None, *, when: str | None = None) -> Case:
    """Accepts or rejects a sentence, or takes the verdict back. An accepted sentence of a person is no longer stale."""
    before = sentence_at(case, place)
    revision = replace(_revision(case, before, when), verdict=verdict)
    stale = before.stale and not (verdict == "accepted" and before.by_person)
    return _with_sentence(case, place, replace(before, revision=revision, stale=stale))


def restore(case: Case, place: Place) -> Case:
    """The model's sentence as it was, without a verdict; a sentence that a person added is taken out."""
    before = sentence_at(case, place)
    if before.revision is None:
        return case
    told = before.revision
    if told.machine_text is None:
        return _with_sentence(case, place, None)
    return _with_sentence(
        case, place, replace(before, text=told.machine_text, state=told.machine_state, support=told.machine_support, revision=None)
    )


def add_sentence(case: Case, text: str, *, section: int | None = None, when: str | None = None) -> Case:
    """A person's own sentence at the end of a section; without one, in a section of its own at the end of the draft."""
    text = one_line(text)
    state = next((record.state for record in parse_sentence(text)), None)
    new = Sentence(text=text, state=state, revision=Revision(verdict="accepted", changed=when or now()))
    report = case.report or Report(style="structured", sections=())
    parts = list(report.sections)
    if section is None:
        section = next((n for n, part in enumerate(parts) if part.title == PERSONS_SECTION), len(parts))
    if section == len(parts):
        parts.append(Section(title=PERSONS_SECTION, sentences=()))
    parts[section] = replace(parts[section], sentences=(*parts[section].sentences, new))
    return checked(replace(case, report=replace(report, sections=tuple(parts))))


def one_line(text: str) -> str:
    """Text as one line without control characters. Raises ValueError where nothing is left or it is too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not line or len(line) > LONGEST_SENTENCE:
        raise ValueError(f"a sentence has 1 to {LONGEST_SENTENCE} characters")
    return line


def _revision(case: Case, sentence: Sentence, when: str | None) -> Revision:
    """The sentence's revision with a new time; made from the model's sentence at the first touch."""
    if sentence.revision is not None:
        return replace(sentence.revision, changed=when or now())
    return Revision(
        machine_text=sentence.text,
        machine_state=sentence.state,
        machine_support=sentence.support,
        model_id=f"{case.model.id} {case.model.version}".strip(),
        weights_sha256=str(case.run.get("weights_sha256") or case.model.sha256),
        changed=when or now(),
    )


def _state_said(text: str, sentence: Sentence) -> State | None:
    """What a person's words say of the sentence's finding; None where they do not name it."""
    said = [record for record in parse_sentence(text) if sentence.finding is None or record.name == sentence.finding]
    return said[0].state if said else None


def _with_sentence(case: Case, place: Place, sentence: Sentence | None) -> Case:
    assert case.report is not None
    parts = list(case.report.sections)
    lines = list(parts[place[0]].sentences)
    lines[place[1] : place[1] + 1] = [] if sentence is None else [sentence]
    parts[place[0]] = replace(parts[place[0]], sentences=tuple(lines))
    return checked(replace(case, report=replace(case.report, sections=tuple(part for part in parts if part.sentences))))


# segments, and what rests on them


@lru_cache(maxsize=64)
def rests_on(finding: str) -> frozenset[str]:
    """Names of the segments that a finding's state, measurements and place are read from; empty for an unknown finding."""
    known = {entry.name: entry for entry in ontology().findings}
    entry = known.get(finding)
    if entry is None:
        return frozenset()
    names = {*entry.requires, *_ALSO_MEASURED_ON.get(entry.measure.quantity, ()), *(_MIDLINE if entry.sided else ())}
    return frozenset(names | ({entry.lesion} if entry.lesion is not None else set()))


def mark_edited(case: Case, names: Collection[str]) -> Case:
    """The case after the voxels of these segments were changed: their figures, and findings and sentences on them, are stale."""
    wanted = set(names)
    if not wanted:
        return case
    labels = {segment.label for segment in case.segments if segment.name in wanted}

    def touched(finding: str | None, label: int | None) -> bool:
        return label in labels or (finding is not None and bool(rests_on(finding) & wanted))

    segments = tuple(replace(s, edited=True, stale=True) if s.name in wanted else s for s in case.segments)
    findings = tuple(
        replace(f, stale=True) if f.state != "not_assessed" and touched(f.name, f.link.label if f.link else None) else f
        for f in case.findings
    )
    marked = replace(case, segments=segments, findings=findings)

    def marked_sentence(sentence: Sentence) -> Sentence:
        label = sentence.link.label if sentence.link is not None else None
        if sentence.state == "not_assessed" or not any(touched(name, label) for name in _spoken_of(sentence)):
            return sentence
        told = sentence.revision
        if sentence.by_person and told is not None and told.verdict == "accepted":
            told = replace(told, verdict=None)  # it was accepted for the segments as they were: the person is asked again
        return replace(sentence, stale=True, revision=told)

    return _each_sentence(marked, marked_sentence)


def take_revised(case: Case, findings: Collection[CaseFinding], report: Report) -> Case:
    """The case with what was stale replaced by what a new look at the edited segments gave.

    findings, report: as if the model had segmented like the person. A state that a person has set stays, on the new figures. A
    sentence in a person's words stays too: the model's new words go into its revision, and it is stale until the person says
    that it holds. The model's own stale sentences are replaced, and a verdict on other words goes with them; so are those of no one
    finding, as they speak of several.
    """
    fresh = {f.name: f for f in findings}
    kept = tuple(_remeasured(f, fresh[f.name]) if f.stale and f.name in fresh else f for f in case.findings)
    old: dict[tuple[str, str | None, State | None], list[Sentence]] = {}
    titles = [section.title for section in case.report.sections] if case.report is not None else []
    for _, section, sentence in sentences(case):
        old.setdefault(_kind(section.title, sentence), []).append(sentence)
    stale = {f.name for f in case.findings if f.stale}
    parts: dict[str, list[Sentence]] = {title: [] for title in (*(s.title for s in report.sections), *titles)}
    for section in report.sections:
        for new in section.sentences:
            alike = old.get(_kind(section.title, new), [])
            before = next((sentence for sentence in alike if not _is_added(sentence)), None)
            if before is None:
                parts[section.title].append(new)
                continue
            alike.remove(before)
            parts[section.title].append(_renewed(before, new) if new.finding is None or new.finding in stale else before)
    for (title, finding, _state), left in old.items():
        # No longer in the model's draft: its own words go, a person's stay.
        parts[title] += [s for s in left if s.by_person or not (s.stale or finding is None)]
    order = [t for t in parts if t != PERSONS_SECTION] + [t for t in parts if t == PERSONS_SECTION]
    sections = tuple(Section(title=title, sentences=tuple(parts[title])) for title in order if parts[title])
    return checked(replace(case, findings=kept, report=Report(style=report.style, sections=sections)))


def _is_added(sentence: Sentence) -> bool:
    """Whether a person has added a sentence that no model wrote."""
    return sentence.revision is not None and sentence.revision.machine_text is None


def _spoken_of(sentence: Sentence) -> list[str | None]:
    """Findings that a sentence of the draft is about: its own, or those that one sentence tells together; None where it names none."""
    if sentence.finding is not None or _is_added(sentence):
        return [sentence.finding]
    return [record.name for record in parse_sentence(sentence.text)] or [None]


def _kind(title: str, sentence: Sentence) -> tuple[str, str | None, State | None]:
    """What an old and a new sentence of the same place share; those of no one finding are told apart by the model's state."""
    if sentence.finding is not None:
        return title, sentence.finding, None
    return title, None, sentence.state if sentence.revision is None else sentence.revision.machine_state


def _remeasured(before: CaseFinding, new: CaseFinding) -> CaseFinding:
    """A finding on new figures, in the state that a person has set if they have."""
    told = before.overruling
    if told is None:
        return new
    if told.machine_state is None:
        return before
    return replace(new, state=before.state, overruling=replace(told, machine_state=new.state, machine_reason=new.reason))


def _renewed(before: Sentence, new: Sentence) -> Sentence:
    """The model's new sentence in the place of an old one."""
    if before.revision is None:
        return new
    if not before.by_person:
        same = before.text == new.text
        told = replace(before.revision, machine_text=new.text, machine_state=new.state, machine_support=new.support)
        return replace(new, revision=told if same else None)
    if before.revision.machine_text is None:
        return before
    told = replace(before.revision, machine_text=new.text, machine_state=new.state, machine_support=new.support)
    return replace(before, link=new.link, revision=told)


def _each_sentence(case: Case, change: Callable[[Sentence], Sentence]) -> Case:
    if case.report is None:
        return case
    parts = tuple(replace(part, sentences=tuple(map(change, part.sentences))) for part in case.report.sections)
    return replace(case, report=replace(case.report, sections=parts))


def stale_segments(case: Case) -> tuple[str, ...]:
    """Names of the segments whose figures are out of date."""
    return tuple(s.name for s in case.segments if s.stale)


def anything_stale(case: Case) -> bool:
    """Whether any figure or sentence is out of date."""
    return bool(stale_segments(case)) or any(f.stale for f in case.findings) or any(s.stale for _, _, s in sentences(case))
