"""What a person makes of a Case's findings: thresholds of their own, and findings that the model missed.

Every function takes a Case and returns a new one. The model's own state is never lost: it stays in `CaseFinding.overruling`.
Sentences of the model that no longer agree with the findings become stale.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from VelvetMedLib.case.editing import now
from VelvetMedLib.case.schema import Case, CaseFinding, Link, Overruling, Sentence
from VelvetMedLib.reports.ontology import ontology
from VelvetMedLib.reports.records import Side, State
from VelvetMedLib.shapes import Triple

DISAGREE = "the model and the measurement disagree"
MEASURED_ORGANS = ("cardiothoracic_ratio", "liver_minus_spleen_hu", "craniocaudal_length_mm", "aortic_diameter_mm")
"""Quantities that are measured on organs and not on what the lesion head found: they may contradict the model (`tasks.findings`)."""


def state_by(probability: float, absent_below: float, present_from: float) -> State:
    """The state of a probability between two thresholds."""
    if probability >= present_from:
        return "present"
    return "absent" if probability < absent_below else "uncertain"


def set_thresholds(case: Case, name: str, absent_below: float, present_from: float, *, when: str | None = None) -> Case:
    """The model's finding of a name, judged anew from its stored probability by a person's thresholds.

    A measurement of an organ that contradicts them outright still makes it uncertain, as in the analysis. Raises ValueError
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


def carried_over(case: Case, findings: Iterable[CaseFinding]) -> Case:
    """The case with new findings of the model, and on top of them what a person had made of the old ones."""
    after = replace(case, findings=(*findings, *(f for f in case.findings if f.by_person)))
    names = {f.name for f in after.findings if not f.by_person and f.probability is not None}
    for old in case.findings:
        mine = old.overruling
        if mine is not None and mine.absent_below is not None and mine.present_from is not None and old.name in names:
            after = set_thresholds(after, old.name, mine.absent_below, mine.present_from, when=mine.changed)
    return after


def _of_model(case: Case, name: str) -> CaseFinding:
    found = next((f for f in case.findings if f.name == name and not f.by_person), None)
    if found is None:
        raise ValueError(f"the case has no finding {name}")
    return found


def _tempered(finding: CaseFinding, machine_reason: str | None, state: State) -> tuple[State, str | None]:
    """A state and, where the measurement contradicts it, why it is uncertain (rule 2 and 3 of `tasks.findings`)."""
    entry = ontology().finding(finding.name)
    if entry.measure.quantity not in MEASURED_ORGANS:
        return state, None
    if finding.value is not None:
        by_measure: State | None = entry.state_of(finding.value)
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
    states = {f.state for f in case.findings if f.name == name}
    strongest = next((s for s in ("present", "uncertain", "absent", "not_assessed") if s in states), None)
    edited = any(segment.stale for segment in case.segments)

    def judged(sentence: Sentence) -> Sentence:
        if sentence.finding != name or sentence.state is None or sentence.by_person:
            return sentence
        if sentence.state != strongest:
            return replace(sentence, stale=True)
        return sentence if edited else replace(sentence, stale=False)

    sections = tuple(replace(part, sentences=tuple(map(judged, part.sentences))) for part in case.report.sections)
    return replace(case, report=replace(case.report, sections=sections))
