"""From a Case to the words and numbers a review page shows. Knows no HTML: the templates escape everything it returns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from VelvetMedLib import DRAFT_DISCLAIMER, RESEARCH_USE_ONLY, __version__
from VelvetMedLib.case import About, Case, CaseFinding, Link, Segment, Sentence
from VelvetMedLib.case.markdown import FLAGGED
from VelvetMedLib.reports import State, ontology

STATE_WORDS: dict[State, str] = {"present": "present", "uncertain": "uncertain", "not_assessed": "not assessed", "absent": "absent"}
"""In the order in which a reader wants to see them."""
UNANSWERED_WORDS = {
    "not_understood": "not understood",
    "beyond": "no question for a scan",
    "not_assessed": "not assessed",
    "out_of_view": "outside of the field of view",
}
_QUANTITIES_SHOWN_AS_SIZE = ("longest_axial_diameter_mm", "aortic_diameter_mm", "short_axis_mm")
_MINUS = "\u2212"
_TIMES = "\u00d7"
_DASH = "\u2013"


class Links:
    """The places a page can go to. Each is written once; elements of the page name it by number."""

    def __init__(self) -> None:
        self.places: list[dict[str, Any]] = []

    def add(self, link: Link | None, title: str) -> int | None:
        """Number of the place, None without a link."""
        if link is None:
            return None
        box = [[float(x) for x in corner] for corner in link.box_ras_mm] if link.box_ras_mm else None
        self.places.append(
            {"center_ras_mm": [float(x) for x in link.center_ras_mm], "box_ras_mm": box, "label": link.label, "title": title}
        )
        return len(self.places) - 1


def case_view(case: Case) -> dict[str, Any]:
    """Everything one case page shows except pictures and voxels: plain strings, numbers, lists and dicts."""
    links = Links()
    findings = [_finding_row(finding, links) for finding in case.findings]
    return {
        "id": case.id,
        "created": moment(case.created),
        "disclaimers": [RESEARCH_USE_ONLY, DRAFT_DISCLAIMER],
        "version": __version__,
        "states": [{"name": name, "word": word, "count": _count(case, name)} for name, word in STATE_WORDS.items()],
        "sections": [
            {
                "title": _title(section.title),
                "sentences": [_sentence_row(sentence, links) for sentence in section.sentences if not sentence.rejected],
            }
            for section in (case.report.sections if case.report else ())
            if not all(sentence.rejected for sentence in section.sentences)
        ],
        "style": case.report.style if case.report else None,
        "findings": sorted(findings, key=lambda row: row["rank"]),
        "segments": _segment_groups(case.segments, links),
        "segment_count": len(case.segments),
        "answers": [
            {
                "question": answer.question,
                "answer": answer.answer,
                "about": None if answer.about is None else _about(answer.about, case),
                "unanswered": answer.unanswered and UNANSWERED_WORDS[answer.unanswered],
                "confidence": None if answer.unanswered else fraction(answer.confidence),
                "created": moment(answer.created),
                "link": links.add(answer.link, answer.question),
            }
            for answer in case.answers
        ],
        "warnings": list(case.warnings),
        "facts": _facts(case),
        "attribution": attribution(case),
        "links": links.places,
    }


def _about(about: About, case: Case) -> str:
    """What a question was put to, in words."""
    return next((s.display for s in case.segments if s.name == about.segment), str(about))


def case_summary(case: Case) -> dict[str, Any]:
    """One line of the list of cases."""
    return {
        "id": case.id,
        "created": moment(case.created),
        "states": [{"name": name, "word": word, "count": _count(case, name)} for name, word in STATE_WORDS.items()],
        "present": [finding.display for finding in case.findings if finding.state == "present"],
        "uncertain": [finding.display for finding in case.findings if finding.state == "uncertain"],
        "segments": len(case.segments),
        "warnings": len(case.warnings),
        "model": f"{case.model.id} {case.model.version}".strip(),
    }


def attribution(case: Case) -> str | None:
    """The line that the source of the scan asks for, where the run record carries one."""
    line = case.run.get("attribution")
    return str(line) if line else None


def number(value: float | None, digits: int = 0, unit: str = "") -> str:
    """A number as people read it: fixed digits, a real minus sign, a dash where there is none."""
    if value is None or not math.isfinite(value):
        return _DASH
    text = f"{value:,.{digits}f}".replace("-", _MINUS)
    return f"{text} {unit}".strip()


def fraction(value: float | None) -> dict[str, Any] | None:
    """A share between 0 and 1, as text and as whole percent for a bar."""
    if value is None or not math.isfinite(value):
        return None
    inside = min(1.0, max(0.0, float(value)))
    return {"text": f"{inside:.2f}", "percent": round(inside * 100), "value": inside}


def moment(text: str | None) -> str:
    """A time stamp of the case without fractions of a second; unchanged where it is no ISO time."""
    if not text:
        return ""
    try:
        when = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    return when.strftime("%Y-%m-%d %H:%M") + (" UTC" if when.utcoffset() is not None and not when.utcoffset() else "")


def words(name: str | None) -> str:
    """An identifier as words: `left_lower_lobe` to `left lower lobe`; structures by their display names."""
    if not name:
        return ""
    return ontology().site_display(name).replace("_", " ")


def _finding_row(finding: CaseFinding, links: Links) -> dict[str, Any]:
    order = list(STATE_WORDS)
    return {
        "display": _capital(finding.display or words(finding.name)),
        "state": finding.state,
        "word": STATE_WORDS[finding.state],
        "rank": order.index(finding.state),
        "probability": fraction(finding.probability),
        "side": finding.side or "",
        "site": words(finding.site),
        "size": number(finding.size_mm, 0 if float(finding.size_mm).is_integer() else 1, "mm") if finding.size_mm is not None else "",
        "size_mm": finding.size_mm,
        "details": ", ".join(_details(finding)),
        "reason": (finding.reason or "no reason recorded") if finding.state == "not_assessed" else (finding.reason or ""),
        "link": links.add(finding.link, finding.display or words(finding.name)),
    }


def _details(finding: CaseFinding) -> Iterable[str]:
    """Severity, number and measured quantity, each only where the finding has one."""
    if finding.severity:
        yield finding.severity
    if finding.count is not None and finding.count > 1:
        yield f"{finding.count} lesions"
    quantity = _quantity(finding.name)
    if finding.value is not None and math.isfinite(finding.value) and quantity not in _QUANTITIES_SHOWN_AS_SIZE:
        if finding.unit == "ml":
            yield number(finding.value, 0 if abs(finding.value) >= 10 else 1, "ml")
        else:
            unit = "" if finding.unit in (None, "1") else str(finding.unit)
            digits = 2 if not unit else 0
            yield f"{_quantity_words(quantity)} {number(finding.value, digits, unit)}".strip()
    if finding.volume_ml is not None and finding.volume_ml > 0 and finding.unit != "ml":
        yield number(finding.volume_ml, 0 if finding.volume_ml >= 10 else 1, "ml")


def _quantity(name: str) -> str:
    known = {finding.name: finding.measure.quantity for finding in ontology().findings}
    return known.get(name, "")


def _quantity_words(quantity: str) -> str:
    for ending in ("_mm", "_hu", "_ml"):
        quantity = quantity.removesuffix(ending)
    return quantity.replace("_minus_", f" {_MINUS} ").replace("_", " ")


def _sentence_row(sentence: Sentence, links: Links) -> dict[str, Any]:
    link = links.add(sentence.link, sentence.text)
    return {
        "text": sentence.text,
        "state": sentence.state,
        "word": STATE_WORDS.get(sentence.state, "") if sentence.state else "",
        "support": fraction(sentence.support),
        "link": link,
        "no_evidence": link is None and sentence.support is None and not sentence.by_person,
        "by_person": sentence.by_person,
        "stale": sentence.stale,
        "flags": [{"kind": flag.kind, "text": f"{FLAGGED[flag.kind].lower()}: {flag.reason}"} for flag in sentence.flags],
    }


def _segment_groups(segments: Iterable[Segment], links: Links) -> list[dict[str, Any]]:
    titles = {"lesion": "Lesion candidates", "organ": "Organs"}
    groups = []
    for kind, title in titles.items():
        rows = [_segment_row(segment, links) for segment in segments if segment.kind == kind]
        if rows:
            groups.append({"kind": kind, "title": title, "rows": rows})
    return groups


def _segment_row(segment: Segment, links: Links) -> dict[str, Any]:
    place = Link(kind="segment", label=segment.label, center_ras_mm=segment.center_ras_mm, box_ras_mm=segment.box_ras_mm)
    return {
        "label": segment.label,
        "kind": segment.kind,
        "name": _capital(segment.display or words(segment.name)),
        "color": "#{:02x}{:02x}{:02x}".format(*(max(0, min(255, int(part))) for part in segment.color)),
        "volume": number(segment.volume_ml, 0 if segment.volume_ml >= 10 else 1),
        "volume_ml": segment.volume_ml,
        "mean_hu": segment.mean_hu,
        "mean_hu_text": number(segment.mean_hu, 0),
        "truncated": segment.truncated,
        "stale": segment.stale,
        "link": links.add(place, segment.display or words(segment.name)),
    }


def _facts(case: Case) -> list[dict[str, Any]]:
    """The record of the run, in groups of (name, value) rows."""
    scan = case.input
    spacing = f" {_TIMES} ".join(f"{s:.2f}" for s in scan.spacing_mm)
    shape = f" {_TIMES} ".join(str(n) for n in reversed(scan.shape_kji))
    groups = [
        (
            "Model",
            [
                ("Name", case.model.id),
                ("Version", case.model.version),
                ("Licence", case.model.licence),
                ("Trained on", case.model.training_data),
                ("sha256", case.model.sha256),
            ],
        ),
        ("Scan", [("Kind", scan.kind), ("Voxels (i, j, k)", shape), ("Spacing (i, j, k)", f"{spacing} mm"), ("sha256", scan.sha256)]),
        ("Times", [(_capital(words(name)), number(seconds, 2, "s")) for name, seconds in _numbers(case.timings)]),
        ("Run", list(_flat(case.run))),
    ]
    return [{"title": title, "rows": [row for row in rows if row[1] not in (None, "")]} for title, rows in groups if rows]


def _numbers(timings: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    for name, value in timings.items():
        if isinstance(value, int | float):
            yield name.removesuffix("_s"), float(value)


def _flat(tree: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Leaves of a nested record, each with its path in words."""
    if not isinstance(tree, Mapping):
        return
    for key, value in tree.items():
        if key == "attribution":
            continue
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}, ")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(str(part) for part in value)
        elif isinstance(value, float):
            yield name, f"{value:g}"
        elif value is not None:
            yield name, str(value)


def _count(case: Case, state: State) -> int:
    return sum(finding.state == state for finding in case.findings)


def _title(text: str) -> str:
    return _capital(text.replace("_", " "))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
