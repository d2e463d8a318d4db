"""Whether the sentences of a draft say what was found and measured: rules, each with its reason in words.

A contradiction says the opposite of a finding, of a measurement, or of a place, size, number or grade on record. What nothing on
record bears out is unsupported. Whoever wrote the sentence, the model or a person, the same rules hold:

* state: it affirms what the findings deny, or denies what they affirm. A denial of one side denies nothing of the other.
* measurement: the measured value alone tells the opposite ("no effusion" with 40 ml, "normal heart size" with a ratio of 0.6).
* side, site, size, count, grade, value: they differ from the finding's. One side of two is no contradiction.
* certainty: it affirms or denies outright what the findings call uncertain.
* assessed: it speaks of what was not assessed.
* number: a number with a unit that equals no measurement of what the sentence names. Earlier sizes are among them: one scan has no prior.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from VelvetMedLib.case.schema import Case, CaseFinding, Flag, Rule, Segment, Sentence
from VelvetMedLib.reports.lexicon import HOUNSFIELD, MILLILITRES, PERCENT, RATIO, SIZE
from VelvetMedLib.reports.ontology import Finding, ontology
from VelvetMedLib.reports.parse import normalise, parse_sentence
from VelvetMedLib.reports.records import FindingRecord, State
from VelvetMedLib.reports.sentences import is_irrelevant

SIZE_TOLERANCE_MM = 0.6
"""Sizes are written in whole millimetres or tenths of a centimetre."""
_STATES: tuple[State, ...] = ("present", "uncertain", "absent", "not_assessed")
_WHOLE: dict[str, float] = {"1": 0.006, "HU": 0.6, "mm": SIZE_TOLERANCE_MM, "ml": 0.6}
"""How far a written value may be from the measured one, by unit: half of its last digit, and a little."""


def checked(case: Case) -> Case:
    """The case with the flags of all its sentences made anew."""
    if case.report is None:
        return case

    def flagged(sentence: Sentence, title: str) -> Sentence:
        flags = flags_of(sentence.text, title, case.findings, case.segments)
        return sentence if flags == sentence.flags else replace(sentence, flags=flags)

    sections = tuple(replace(part, sentences=tuple(flagged(s, part.title) for s in part.sentences)) for part in case.report.sections)
    return replace(case, report=replace(case.report, sections=sections))


def flags_of(text: str, title: str, findings: Iterable[CaseFinding], segments: Iterable[Segment] = ()) -> tuple[Flag, ...]:
    """What is wrong with one sentence under a heading, by the rules above; empty where all of it is on record."""
    findings, segments = tuple(findings), tuple(segments)
    if is_irrelevant(title) or not findings:
        return ()
    flags: list[Flag] = []
    said = _said(text, title)
    for record in said:
        known = sorted((f for f in findings if f.name == record.name), key=lambda f: _STATES.index(f.state))
        if known and record.state != "not_assessed":
            flags += _against(record, known[0], _measured(known[0], segments))
    wrong = {flag.rule for flag in flags}
    flags += _numbers(text, said, findings, segments) if not wrong & {"size", "value"} else []
    return tuple(dict.fromkeys(flags))


def unlike(said: FindingRecord, known: FindingRecord) -> frozenset[str]:
    """What a sentence states of a finding that the record does not hold just so, as field names: it holds another, or none.

    A draft may say none of it (`tasks.report.agrees`); what of it speaks against a record is the lenient question of `differences`.
    """
    stated = {name for name in ("side", "site", "count", "severity") if getattr(said, name) not in (None, getattr(known, name))}
    numbers = {"size_mm": SIZE_TOLERANCE_MM}
    if said.size_mm is None or known.size_mm is None:  # else the value is the size again
        numbers["value"] = _WHOLE[ontology().finding(said.name).measure.unit]
    for name, tolerance in numbers.items():
        number, measured = getattr(said, name), getattr(known, name)
        if number is not None and (measured is None or abs(number - measured) > tolerance):
            stated.add(name)
    return frozenset(stated)


def differences(said: FindingRecord, known: FindingRecord) -> Iterator[Flag]:
    """Where a sentence and a record that both see a finding differ in place, size, number or grade; what the record lacks is left open."""
    finding = ontology().finding(said.name)
    name = finding.display
    # Of several the record holds the largest one's place and size only.
    one = known.count == 1 if finding.countable else finding.sized
    other = {fact for fact in unlike(said, known) if getattr(known, fact) is not None}
    if "side" in other and known.side != "both":
        yield _contradiction("side", f"The {name} was found {_on(known.side)}, not {_on(said.side)}.")
    elif "site" in other:
        place, found = ontology().site_display(str(said.site)), ontology().site_display(str(known.site))
        yield (
            _contradiction("site", f"The {name} was found here: {found}, not {place}.")
            if one
            else Flag(
                kind="unsupported", rule="site", reason=f"The largest {name} was found here: {found}; of others the place is not on record."
            )
        )
    if "size_mm" in other and said.size_mm is not None and known.size_mm is not None:
        kind: Literal["contradiction", "unsupported"] = "contradiction" if one or said.size_mm > known.size_mm else "unsupported"
        yield Flag(kind=kind, rule="size", reason=f"The largest {name} was measured at {known.size_mm:g} mm, not {said.size_mm:g} mm.")
    if "value" in other and known.value is not None:
        yield _contradiction("value", f"The {_quantity(finding)} was measured as {_with_unit(known.value, finding)}.")
    if "count" in other:
        yield _contradiction("count", f"Counted: {known.count}, not {said.count}.")
    if "severity" in other:
        yield _contradiction("grade", f"By measurement the {name} is {known.severity}, not {said.severity}.")


def _against(said: FindingRecord, known: CaseFinding, measured: float | None) -> Iterator[Flag]:
    finding = ontology().finding(said.name)
    name = finding.display
    other_side = said.side is not None and known.side not in (None, "both", said.side)
    if said.state == "absent" and other_side:
        return
    opposite: State | None = {"present": "absent", "absent": "present"}.get(said.state)  # type: ignore[assignment]
    if opposite is not None and measured is not None and finding.state_of(measured) == opposite:
        yield _contradiction("measurement", f"The {_quantity(finding)} was measured as {_with_unit(measured, finding)}.")
    elif known.state == opposite:
        yield _contradiction("state", f"The findings call the {name} {known.state}.")
    elif known.state == "not_assessed":
        yield Flag(kind="unsupported", rule="assessed", reason=f"The {name} was not assessed.")
    elif known.state == "uncertain" and opposite is not None:
        yield Flag(kind="unsupported", rule="certainty", reason=f"The findings call the {name} uncertain.")
    if said.state in ("present", "uncertain") and known.state in ("present", "uncertain"):
        yield from differences(said, known.record())


def _measured(finding: CaseFinding, segments: Iterable[Segment]) -> float | None:
    """The value that the finding's state is decided on: its own, or the volume of its segment."""
    entry = ontology().finding(finding.name)
    if finding.value is not None or entry.measure.unit != "ml":
        return finding.value
    return next((s.volume_ml for s in segments if s.name == entry.lesion), None)


def _numbers(text: str, said: Iterable[FindingRecord], findings: Iterable[CaseFinding], segments: Iterable[Segment]) -> list[Flag]:
    """Numbers with a unit that equal no measurement of the findings and structures that the sentence names; if it names none, of any."""
    words = normalise(text)
    named = {record.name for record in said}
    organs = {s.name for s in segments if re.search(rf"\b{re.escape(s.display.lower())}\b", words)}
    lesions = {ontology().finding(name).lesion for name in named}
    anything = not named and not organs
    known: dict[str, list[float]] = {"mm": [], "ml": [], "HU": [], "1": []}
    for finding in findings:
        entry = ontology().finding(finding.name)
        if anything or finding.name in named or organs & set(entry.requires):
            known["mm"] += [finding.size_mm] if finding.size_mm is not None else []
            known["ml"] += [finding.volume_ml] if finding.volume_ml is not None else []
            known[entry.measure.unit] += [abs(finding.value)] if finding.value is not None else []
    for segment in segments:
        if anything or segment.name in organs | lesions:
            known["ml"].append(segment.volume_ml)
            known["HU"] += [abs(segment.mean_hu)] if segment.mean_hu is not None else []
    return [
        Flag(kind="unsupported", rule="number", reason=f"No measurement of this scan is {written}.")
        for written, value, unit, tolerance in _written(words)
        if not any(abs(value - number) <= tolerance for number in known[unit])
    ]


def _written(words: str) -> Iterator[tuple[str, float, str, float]]:
    """(as written, value, unit of `_numbers`, tolerance): half of the last digit, and a little."""
    for match in SIZE.finditer(words):
        if re.match(r"[\s-]*(?:thick|slice|section|collimation|interval)", words[match.end() :]):
            continue
        scale = 10.0 if match.group(4).startswith("c") else 1.0
        for number in filter(None, match.groups()[:3]):
            yield f"{number} {match.group(4)}", _float(number) * scale, "mm", 0.6 * scale * _last_digit(number)
    for pattern, sign, unit, scale in ((MILLILITRES, "ml", "ml", 1.0), (HOUNSFIELD, "HU", "HU", 1.0), (PERCENT, "%", "1", 0.01)):
        for match in pattern.finditer(words):
            number = match.group(1).lstrip("-")
            yield f"{number} {sign}", _float(number) * scale, unit, 0.6 * scale * _last_digit(number)
    for match in RATIO.finditer(words):
        if not match.group(1).endswith("%"):
            yield match.group(1), _float(match.group(1)), "1", 0.6 * _last_digit(match.group(1))


def _float(number: str) -> float:
    return float(number.replace(",", "."))


def _last_digit(number: str) -> float:
    return 10.0 ** -len(re.split("[.,]", number)[1]) if re.search("[.,]", number) else 1.0


@lru_cache(maxsize=4096)
def _said(text: str, title: str) -> tuple[FindingRecord, ...]:
    return tuple(parse_sentence(text, title))


def _contradiction(rule: Rule, reason: str) -> Flag:
    return Flag(kind="contradiction", rule=rule, reason=reason)


def _on(side: str | None) -> str:
    return "on both sides" if side == "both" else f"on the {side}"


def _quantity(finding: Finding) -> str:
    """What decides a finding, in words: "volume of the pleural effusion", "cardiothoracic ratio"."""
    quantity = re.sub(r"_(?:mm|ml|hu)$", "", finding.measure.quantity).replace("_minus_", " minus ").replace("_", " ")
    return f"{quantity} of the {finding.display}" if quantity in ("volume", "longest axial diameter", "short axis") else quantity


def _with_unit(value: float, finding: Finding) -> str:
    unit = finding.measure.unit
    return f"{value:.2f}" if unit == "1" else f"{value:.0f} {unit}" if abs(value) >= 10 else f"{value:.1f} {unit}"
