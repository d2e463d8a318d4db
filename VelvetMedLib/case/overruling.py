"""What a person makes of a Case's findings: thresholds of their own, and findings that the model missed.

Every function takes a Case and returns a new one. The model's own state is never lost: it stays in `CaseFinding.overruling`.
Sentences of the model that no longer agree with the findings become stale.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np

from VelvetMedLib.case.checks import checked
from VelvetMedLib.case.editing import Place, now, rewrite, sentences
from VelvetMedLib.case.schema import Case, CaseFinding, Link, Overruling, Sentence
from VelvetMedLib.reports.ontology import ontology
from VelvetMedLib.reports.parse import parse_sentence
from VelvetMedLib.reports.prose import STYLES, write_sentence
from VelvetMedLib.reports.records import Side, State
from VelvetMedLib.shapes import Triple

DISAGREE = "the model and the measurement disagree"
MEASURED = ("cardiomegaly", "hepatic_steatosis", "splenomegaly", "aortic_dilatation", "pleural_effusion")
"""Findings whose measurement can contradict the model, in the analysis and here."""


def state_by(probability: float, absent_below: float, present_from: float) -> State:
    """The state of a probability between two thresholds."""
    if probability >= present_from:
        return "present"
    return "absent" if probability < absent_below else "uncertain"


def set_thresholds(case: Case, name: str, absent_below: float, present_from: float, *, when: str | None = None) -> Case:
    """The model's finding of a name, judged anew from its stored probability by a person's thresholds.

    A measurement that contradicts them outright still makes it uncertain, as in the analysis. Raises ValueError
    where the thresholds are not 0 <= absent_below <= present_from <= 1, or the finding has no probability.
    """
    if not 0.0 <= absent_below <= present_from <= 1.0:
        raise ValueError(f"thresholds must rise from 0 to 1, got {absent_below} and {present_from}")
    before = _of_model(case, name)
    if before.probability is None:
        raise ValueError(f"{name} was not assessed: there is no probability to judge")
    told = before.overruling
    machine_state, machine_reason = (before.state, before.reason) if told is None else (told.machine_state, told.machine_reason)
    state, reason = _tempered(before, machine_reason, state_by(before.probability, absent_below, present_from))
    mine = Overruling(
        machine_state=machine_state,
        machine_reason=machine_reason,
        absent_below=absent_below,
        present_from=present_from,
        changed=when or now(),
    )
    return _with_finding(case, before, replace(before, state=state, reason=reason, overruling=mine))


def reset_thresholds(case: Case, name: str) -> Case:
    """The finding as the model's own thresholds have it."""
    before = _of_model(case, name)
    told = before.overruling
    if told is None or told.machine_state is None:
        return case
    return _with_finding(case, before, replace(before, state=told.machine_state, reason=told.machine_reason, overruling=None))


def add_finding(
    case: Case,
    name: str,
    *,
    point_ras_mm: Triple,
    state: State = "present",
    side: Side | None = None,
    site: str | None = None,
    when: str | None = None,
) -> Case:
    """A finding of the ontology that a person saw at a point. Raises ValueError on a name, side or site that it cannot have."""
    known = {finding.name: finding for finding in ontology().findings}
    if name not in known:
        raise ValueError(f"{name} is no finding of the ontology")
    finding = known[name]
    if side is not None and not finding.sided:
        raise ValueError(f"{name} has no side")
    if site is not None and site not in finding.sites:
        raise ValueError(f"{site} is no place of {name}")
    if state not in ("present", "uncertain"):
        raise ValueError(f"a missed finding is present or uncertain, not {state}")
    new = CaseFinding(
        name=name,
        display=finding.display,
        state=state,
        side=side,
        site=site,
        link=Link(kind="point", center_ras_mm=point_ras_mm),
        overruling=Overruling(changed=when or now()),
    )
    return _agreeing(replace(case, findings=(*case.findings, new)), name)


def remove_finding(case: Case, finding: CaseFinding) -> Case:
    """Without a finding that a person added; the model's own stay. Raises ValueError on any other."""
    if not finding.by_person or finding not in case.findings:
        raise ValueError("only a finding that a person added can be removed")
    place = case.findings.index(finding)
    return _agreeing(replace(case, findings=(*case.findings[:place], *case.findings[place + 1 :])), finding.name)


def reworded(case: Case) -> Case:
    """Stale sentences of the model that a person's thresholds or additions have contradicted, in words that agree again.

    What a threshold of theirs decided is still the model's finding and its sentence the model's; what they added themselves
    becomes a sentence in their words, with the model's kept in its revision. Sentences on edited segments stay stale: these are
    measured again first. The same case always gets the same words.
    """
    for place, _section, sentence in list(sentences(case)):
        if sentence.finding is None or not sentence.stale or sentence.by_person:
            continue
        found = _strongest(case, sentence.finding)
        if found is None or found.stale or found.state == sentence.state:
            continue
        style = case.report.style if case.report is not None else "structured"
        text = _composed(found, style)
        if found.by_person:
            case = rewrite(case, place, text)
        else:
            case = _with_words(case, place, found, text)
    return case


def _with_words(case: Case, place: Place, found: CaseFinding, text: str) -> Case:
    """The case with the model's sentence at a place in other words, with the state, support and place of its finding."""
    assert case.report is not None
    support = found.probability if found.probability is None or found.state != "absent" else 1.0 - found.probability
    parts = list(case.report.sections)
    lines = list(parts[place[0]].sentences)
    lines[place[1]] = replace(lines[place[1]], text=text, state=found.state, support=support, link=found.link, stale=False)
    parts[place[0]] = replace(parts[place[0]], sentences=tuple(lines))
    return checked(replace(case, report=replace(case.report, sections=tuple(parts))))


def _composed(finding: CaseFinding, style: str) -> str:
    """A sentence on a finding, written from its record and checked by reading it back."""
    record = finding.record()
    rng = np.random.default_rng([zlib.crc32(finding.name.encode())])
    for _ in range(12):
        text = write_sentence(record, rng, style if style in STYLES else "structured").text
        if [(said.name, said.state) for said in parse_sentence(text)] == [(record.name, record.state)]:
            return text
    plain = {"present": "There is {name}.", "absent": "No {name}.", "uncertain": "Possible {name}."}
    return plain.get(finding.state, "{name} is not assessed.").format(name=finding.display)


def _strongest(case: Case, name: str) -> CaseFinding | None:
    """Of the findings of a name the one that counts: present before uncertain before absent."""
    order = ("present", "uncertain", "absent", "not_assessed")
    return min((f for f in case.findings if f.name == name), key=lambda f: order.index(f.state), default=None)


def _of_model(case: Case, name: str) -> CaseFinding:
    found = next((f for f in case.findings if f.name == name and not f.by_person), None)
    if found is None:
        raise ValueError(f"the case has no finding {name}")
    return found


def _tempered(finding: CaseFinding, machine_reason: str | None, state: State) -> tuple[State, str | None]:
    """A state and, where the measurement contradicts it, why it is uncertain (rule 2 and 3 of `tasks.findings`)."""
    if finding.name not in MEASURED:
        return state, None
    if finding.value is not None:
        by_measure: State | None = ontology().finding(finding.name).state_of(finding.value)
    else:
        # A cut-off organ gives no value; that it was already beyond the threshold is what the reason then tells.
        by_measure = "present" if machine_reason == DISAGREE else None
    return ("uncertain", DISAGREE) if {state, by_measure} == {"present", "absent"} else (state, None)


def _with_finding(case: Case, before: CaseFinding, after: CaseFinding) -> Case:
    place = case.findings.index(before)
    return _agreeing(replace(case, findings=(*case.findings[:place], after, *case.findings[place + 1 :])), after.name)


def _agreeing(case: Case, name: str) -> Case:
    """Marks the model's sentences about a finding whose state is no longer the findings' own, and takes the mark back."""
    if case.report is None:
        return case
    found = _strongest(case, name)
    strongest = found.state if found is not None else None
    edited = any(segment.stale for segment in case.segments)

    def judged(sentence: Sentence) -> Sentence:
        if sentence.finding != name or sentence.state is None or sentence.by_person:
            return sentence
        if sentence.state != strongest:
            return replace(sentence, stale=True)
        return sentence if edited else replace(sentence, stale=False)

    sections = tuple(replace(part, sentences=tuple(map(judged, part.sentences))) for part in case.report.sections)
    return checked(replace(case, report=replace(case.report, sections=sections)))
