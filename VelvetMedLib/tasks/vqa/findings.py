"""Answers about findings: presence, side, place, size, count, severity, volume, on a side or in a lobe, and lists of them."""

from __future__ import annotations

from collections.abc import Sequence

from VelvetMedLib.case import CaseFinding
from VelvetMedLib.reports import Finding, FindingRecord, Side, fill_slots, ontology
from VelvetMedLib.reports.asked import Asked
from VelvetMedLib.reports.phrases import capitalise, value_text
from VelvetMedLib.tasks.report import compose, finding_support
from VelvetMedLib.tasks.vqa.known import CANNOT, Known, Planned, cannot, millilitres

SIDES = {"left": "left", "right": "right", "both": "both sides"}
_VALUES = {
    "cardiothoracic_ratio": "cardiothoracic ratio {}",
    "aortic_diameter_mm": "largest diameter {}",
    "craniocaudal_length_mm": "length {}",
    "liver_minus_spleen_hu": "liver minus spleen {}",
    "lung_fraction": "{} of the lungs",
}
_OF_MODEL = "not assessed by this model"


def about_finding(known: Known, asked: Asked) -> Planned:
    """On the whole scan, or on the side or in the lobes that the question names."""
    assert asked.finding is not None and asked.kind is not None
    finding, found = ontology().finding(asked.finding), known.finding(asked.finding)
    elsewhere = asked.inside and asked.structures and not set(asked.structures) & set(finding.requires)
    if elsewhere:
        organs = " and the ".join(organ.display for organ in asked.organs)
        return cannot("not_assessed", f"{finding.display} is not looked for in the {organs}")
    if found is None:
        return cannot("not_assessed", f"{finding.display} is not among the findings of this case")
    if found.state in ("present", "uncertain") and asked.kind not in ("side", "site"):
        lobes = set(asked.structures) & set(finding.sites)
        if lobes and lobes < set(finding.sites) and len({name.split("_")[1] for name in lobes}) == 1:
            return in_lobes(known, found, asked, tuple(lobes))
        if asked.side is not None and finding.sided:
            return _on_side(known, found, asked.kind, asked.side)
    return worded(known, found, found.record(), asked.kind)


def worded(known: Known, found: CaseFinding, record: FindingRecord, kind: str) -> Planned:
    """An answer of one kind from a record of the finding: its own, or that of the part of it that is asked about."""
    finding = ontology().finding(found.name)
    if found.state == "not_assessed":
        return _not_assessed(finding, found, kind)
    support = finding_support(found) or 0.0
    if kind == "presence" or found.state == "absent":
        word = {"present": "yes", "absent": "no", "uncertain": "uncertain"}[found.state]
        doubt = _between(known, found) if found.state == "uncertain" else ""
        text = f"{word.capitalize()}{doubt}. {compose(record, 'narrative')}{_beside(finding, found)}{_marks(found)}"
        return Planned(text, word if kind == "presence" else None, support, found.name, found.link)
    detail = _detail(finding, record, kind)
    if detail is None:
        certain = found.state == "present"
        seen = f"The scan shows {finding.display}, but" if certain else f"{capitalise(finding.display)} is uncertain, and"
        return Planned(f"{seen} this cannot be told of it.", None, 0.0, found.name, found.link, unanswered="not_assessed")
    text, key = detail
    doubt = "Uncertain finding; if real: " if found.state == "uncertain" else ""
    return Planned(f"{doubt}{text if doubt else capitalise(text)}{_marks(found)}", key, support, found.name, found.link)


def _between(known: Known, found: CaseFinding) -> str:
    """The probability of an uncertain finding and the thresholds that it lies between."""
    if found.probability is None:
        return ""
    bounds = known.bounds(found)
    told = "" if bounds is None else f"; absent below {bounds[0]:.2f}, present from {bounds[1]:.2f}"
    return f" (probability {found.probability:.2f}{told})"


def _not_assessed(finding: Finding, found: CaseFinding, kind: str) -> Planned:
    """The reason, and what was measured all the same: a figure is no verdict."""
    reason = found.reason or "it was not assessed"
    figure = measured(finding, found)
    why = "not_assessed" if reason.startswith(_OF_MODEL) else "out_of_view"
    if figure is not None and kind in ("size", "volume", "severity"):
        return Planned(f"{capitalise(figure)}, measured without a verdict ({reason}).", None, None, found.name, found.link)
    text = f"{CANNOT[:-1]}: {reason}." + (f" Measured: {figure}." if figure is not None else "")
    return Planned(text, None, 0.0, found.name, found.link, unanswered=why)  # type: ignore[arg-type]


def _detail(finding: Finding, record: FindingRecord, kind: str) -> tuple[str, str | None] | None:
    """(answer, what the decoder would say) for a question about an attribute; None where the record does not have it."""
    if kind == "side" and record.side is not None:
        return f"{SIDES[record.side]}.", SIDES[record.side]
    if kind == "site" and (place := place_of(finding, record)) is not None:
        return f"{place}.", place
    if kind == "size" and record.size_mm is not None:
        return f"{fill_slots('[SIZE]', record)}.", "[SIZE]"
    if kind == "count" and record.count is not None:
        return f"{fill_slots('[COUNT]', record)}.", "[COUNT]"
    # A record grades what is present; what is uncertain has the grade of its measured value, if it is real.
    grade = record.severity or (finding.severity_of(record.value) if record.state == "uncertain" else None)
    if kind == "severity" and grade is not None:
        return f"{grade}.", grade
    if kind in ("volume", "size") and record.volume_ml is not None and not finding.sized:
        return f"{millilitres(record.volume_ml)}.", None
    if kind == "volume" and record.volume_ml is not None:
        return f"{millilitres(record.volume_ml)}.", "[VALUE]"
    if kind in ("size", "volume") and record.value is not None and (said := value_text(record)) is not None:
        return f"{_VALUES.get(finding.measure.quantity, '{}').format(said)}.", "[VALUE]"
    return None


def place_of(finding: Finding, record: FindingRecord) -> str | None:
    """Where it is, in words; None where the record does not say."""
    if record.site:
        return ontology().site_display(record.site)
    if record.side in ("left", "right") and finding.section == "kidneys":
        return f"{record.side} kidney"
    return None if record.side is None else SIDES[record.side]


def measured(finding: Finding, found: CaseFinding) -> str | None:
    """The measurement of an organ that a finding rests on, in words; None where there is none."""
    if found.value is None or finding.measure.quantity not in _VALUES:
        return None
    said = value_text(found.record())
    if said is None or finding.measure.quantity == "liver_minus_spleen_hu":
        digits, unit = (2, "") if finding.measure.unit == "1" else (0, f" {finding.measure.unit}")
        said = f"{found.value:.{digits}f}{unit}"
    return _VALUES[finding.measure.quantity].format(said)


def _beside(finding: Finding, found: CaseFinding) -> str:
    """The measurement beside a verdict, where the sentence does not tell it; and why a verdict is only uncertain."""
    figure = measured(finding, found) if finding.lesion is None or finding.name == "aortic_dilatation" else None
    doubt = f" {capitalise(found.reason)}." if found.state == "uncertain" and found.reason else ""
    return ("" if figure is None else f" {capitalise(figure)}.") + doubt


def _marks(found: CaseFinding) -> str:
    who = " Noted by a person, not by the model." if found.by_person else ""
    return who + (" Out of date: a segment behind it has been edited." if found.stale else "")


def _on_side(known: Known, found: CaseFinding, kind: str, side: Side) -> Planned:
    record = found.record()
    if record.side in (side, "both") or (record.side is None and kind != "presence"):
        # Size and place are those of the largest, which may lie on the other of two sides.
        if record.side == "both" and kind in ("size", "count", "volume", "severity"):
            return cannot(
                "not_assessed", f"of {found.display} on both sides only the whole is recorded", finding=found.name, link=found.link
            )
        return worded(known, found, record, kind)
    if record.side is None:
        return cannot("not_assessed", f"the scan shows {found.display}, but its side is not recorded", finding=found.name, link=found.link)
    return not_there(found, f"on the {side}")


def in_lobes(known: Known, found: CaseFinding, asked: Asked, lobes: tuple[str, ...]) -> Planned:
    """Of a finding with a site in the lungs. By its voxels where the case keeps them, else by its record as far as that goes."""
    from VelvetMedLib.tasks.vqa.places import Place, in_place

    assert asked.kind is not None
    where = "in the " + " and the ".join(ontology().site_display(lobe) for lobe in lobes)
    if known.evidence is not None:
        return in_place(known, found, asked.kind, Place.of_structures(known.evidence, lobes, where))
    if found.site in lobes and (found.count == 1 or asked.kind == "presence"):
        return worded(known, found, found.record(), asked.kind)
    if found.count == 1 and found.site is not None:
        return not_there(found, where)
    return cannot("not_assessed", f"which lobes {found.display} lies in is not recorded", finding=found.name, link=found.link)


def not_there(found: CaseFinding, where: str) -> Planned:
    """No, and where it is instead."""
    place = place_of(ontology().finding(found.name), found.record())
    seen = "is seen" if found.state == "present" else "is suspected"
    text = f"No, not {where}: {found.display} {seen} elsewhere{f' ({place})' if place else ''}.{_marks(found)}"
    return Planned(text, None, finding_support(found), found.name, found.link)


def about_all(kind: str, findings: Sequence[CaseFinding], of: str = "") -> Planned:
    """What there is, what is uncertain and how much was not assessed. of: where these are looked for, empty for the whole scan."""
    present, uncertain, absent, unseen = (
        [f for f in findings if f.state == state] for state in ("present", "uncertain", "absent", "not_assessed")
    )
    only = findings[0].name if len(findings) == 1 else None
    if len(unseen) == len(findings):
        return cannot("not_assessed", f"none of the findings {of or 'of the scan'} could be assessed ({_names(unseen)})", finding=only)
    supports = [s for f in findings if (s := finding_support(f)) is not None]
    # "No abnormal findings" would also speak for what was never looked at.
    lines = [f"{_names(present)}." if present else f"None of the findings that were assessed{f' {of}' if of else ''} is present."]
    lines += [f"Uncertain: {_names(uncertain)}."] if uncertain else []
    if of:
        lines += [f"{word}: {_names(some)}." for word, some in (("Absent", absent), ("Not assessed", unseen)) if some]
    elif unseen:
        lines.append(f"{len(unseen)} of {len(findings)} findings were not assessed.")
    text, key = capitalise(" ".join(lines)), None
    link = max(present, key=lambda f: f.probability or 0.0).link if present else None
    if kind == "findings":
        key = None if of else _names(present) or "no abnormal findings"
        return Planned(text, key, sum(supports) / len(supports) if supports else 0.0, only, link)
    if present:
        return Planned(f"No. {text}", None if of else "no", max(f.probability or 0.0 for f in present), only, link)
    # Never a plain "yes": only what was looked for can be absent.
    return Planned(text, None if of or uncertain else "yes", min(supports) if supports else 0.0, only)


def _names(findings: Sequence[CaseFinding]) -> str:
    return ", ".join(dict.fromkeys(f.display for f in findings))
