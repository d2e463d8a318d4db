"""Answers to typed questions: the finding that the question names decides, the decoder words it, and both must agree.

The decoder answers first. If its answer is not the one that follows from the findings and segments, the latter stands,
and the confidence falls by as much as the decoder was sure of something else. What cannot be told is said to be so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from VelvetMedLib.case import Answer, CaseFinding, Link, Segment
from VelvetMedLib.errors import UsageError
from VelvetMedLib.reports import Finding, FindingRecord, ontology
from VelvetMedLib.reports.phrases import fill_slots
from VelvetMedLib.reports.questions import parse_question
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.prompts import answer_prefix
from VelvetMedLib.tasks.report import compose, finding_support
from VelvetMedLib.tasks.writing import Written, has_decoder, write

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

CANNOT = "This question cannot be answered from this scan."
LONGEST_QUESTION = 500
_SIDES = {"left": "left", "right": "right", "both": "both sides"}


@dataclass(frozen=True)
class Planned:
    """The answer that follows from findings and segments. confidence: None for a plain measurement.

    key: what the decoder would say if it agreed, None where it is not asked.
    """

    text: str
    key: str | None
    confidence: float | None
    finding: str | None = None
    link: Link | None = None


def answer(
    question: str,
    findings: Sequence[CaseFinding],
    segments: Sequence[Segment],
    encoding: Encoding | None = None,
    bundle: Bundle | None = None,
    *,
    run: Run | None = None,
) -> Answer:
    """One answer. Without an encoding and bundle the findings answer alone, without the decoder's word.

    Raises UsageError on an empty question.
    """
    question = " ".join(question.split())[:LONGEST_QUESTION]
    if not any(c.isalnum() for c in question):
        raise UsageError(
            "There is no question.",
            found="an empty text",
            expected='a question such as "Is there a pleural effusion?"',
            next_step="Type a question and try again.",
        )
    planned = plan_answer(question, findings, segments)
    confidence = planned.confidence
    if planned.key is not None and confidence is not None and encoding is not None and bundle is not None and has_decoder(bundle):
        said = write([answer_prefix(bundle.tokenizer, question)], encoding, bundle, run)[0]
        confidence = combined(confidence, planned.key, said)
    return Answer(
        question=question,
        answer=planned.text,
        confidence=None if confidence is None else round(confidence, 4),
        finding=planned.finding,
        link=planned.link,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def combined(confidence: float, key: str, said: Written) -> float:
    """Geometric mean of the plan's confidence and the decoder's probability of that answer (one minus it where it said another)."""
    same = _plain(said.slotted) == _plain(key)
    return math.sqrt(confidence * (said.probability if same else 1.0 - said.probability))


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9\[\]]+", " ", text.lower()).strip()


def plan_answer(question: str, findings: Sequence[CaseFinding], segments: Sequence[Segment]) -> Planned:
    """What findings and segments say to a question."""
    name, structure, kind = parse_question(question)
    if name is not None and kind is not None:
        found = next((f for f in findings if f.name == name), None)
        if kind == "volume" and found is not None and found.volume_ml is None and structure is not None:
            return _about_structure(structure, kind, segments) or Planned(CANNOT, None, 0.0)
        return _about_finding(found, kind) if found is not None else Planned(CANNOT, None, 0.0)
    if kind in ("findings", "normal") and structure is None:
        return _about_everything(kind, findings)
    if structure is not None:
        return _about_structure(structure, kind, segments) or Planned(CANNOT, None, 0.0)
    return Planned(CANNOT, None, 0.0)


def _about_finding(found: CaseFinding, kind: str) -> Planned:
    finding, record = ontology().finding(found.name), found.record()
    if found.state == "not_assessed":
        reason = found.reason or "it was not assessed"
        return Planned(f"{CANNOT[:-1]}: {reason}.", None, 0.0, found.name)
    support = finding_support(found) or 0.0
    if kind == "presence" or found.state == "absent":
        word = {"present": "yes", "absent": "no", "uncertain": "uncertain"}[found.state]
        key = word if kind == "presence" else None
        return Planned(f"{word.capitalize()}. {compose(record, 'narrative')}", key, support, found.name, found.link)
    detail = _detail(finding, record, kind)
    if detail is None:
        return Planned(f"The scan shows {finding.display}, but this cannot be told of it.", None, 0.0, found.name, found.link)
    text, key = detail
    doubt = "Uncertain finding; if real: " if found.state == "uncertain" else ""
    return Planned(f"{doubt}{text}" if doubt else f"{text[0].upper()}{text[1:]}", key, support, found.name, found.link)


def _detail(finding: Finding, record: FindingRecord, kind: str) -> tuple[str, str] | None:
    """(answer, what the decoder would say) for a question about an attribute; None where the record does not have it."""
    if kind == "side" and record.side is not None:
        return f"{_SIDES[record.side]}.", _SIDES[record.side]
    if kind == "site" and (record.site is not None or record.side is not None):
        place = ontology().site_display(record.site) if record.site else f"{_SIDES[str(record.side)]}"
        return f"{place}.", place
    if kind == "size" and record.size_mm is not None:
        return f"{fill_slots('[SIZE]', record)}.", "[SIZE]"
    if kind == "count" and record.count is not None:
        return f"{fill_slots('[COUNT]', record)}.", "[COUNT]"
    if kind == "severity" and record.severity is not None:
        return f"{record.severity}.", record.severity
    if kind == "volume" and record.volume_ml is not None:
        return f"{record.volume_ml:.0f} ml.", "[VALUE]"
    if kind == "size" and record.value is not None and finding.measure.unit == "mm":
        return f"{record.value:.0f} mm.", "[VALUE]"
    return None


def _about_everything(kind: str, findings: Sequence[CaseFinding]) -> Planned:
    present = [f for f in findings if f.state == "present"]
    uncertain = [f for f in findings if f.state == "uncertain"]
    unseen = sum(f.state == "not_assessed" for f in findings)
    supports = [s for f in findings if (s := finding_support(f)) is not None]
    confidence = min(supports) if kind == "normal" and supports else sum(supports) / len(supports) if supports else 0.0
    listed = ", ".join(f.display for f in present) if present else "no abnormal findings"
    # "No abnormal findings" would also speak for what was never looked at.
    text = f"{listed[0].upper()}{listed[1:]}." if present else "None of the assessed findings is present."
    if uncertain:
        text += f" Uncertain: {', '.join(f.display for f in uncertain)}."
    if unseen:
        text += f" {unseen} of {len(findings)} findings were not assessed."
    link = max(present, key=lambda f: f.probability or 0.0).link if present else None
    if kind == "findings":
        return Planned(text, listed, confidence, None, link)
    if present:
        strongest = max(f.probability or 0.0 for f in present)
        return Planned(f"No. {text}", "no", strongest, None, link)
    # Never a plain "yes": only what was looked for can be absent.
    return Planned(f"None of the findings looked for is called present. {text}", None if uncertain else "yes", confidence, None, None)


def _about_structure(name: str, kind: str | None, segments: Sequence[Segment]) -> Planned | None:
    """Volume and presence of a structure from its segment; None where neither is asked."""
    display = ontology().structure(name).display
    segment = next((s for s in segments if s.name == name), None)
    if kind not in ("volume", "size", "presence", "site", "count"):
        return None
    if segment is None:
        return Planned(f"No {display} was segmented on this scan.", None, None)
    link = Link(kind="segment", label=segment.label, center_ras_mm=segment.center_ras_mm, box_ras_mm=segment.box_ras_mm)
    partly = " It is partly outside the field of view." if segment.truncated else ""
    text = f"The segment of the {display} measures {segment.volume_ml:.0f} ml.{partly}"
    return Planned(text, None, None, None, link)
