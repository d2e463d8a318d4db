"""One question, one answer: the text is read, the case's records decide, the decoder is heard, and both must agree.

What the records say stands whatever the decoder writes; its word only raises or lowers the confidence. Three rules keep an answer honest:
1. What is not assessed is not answered, also where a network has a score for it: a finding that the model does not tell from chance
   would be answered with how common it is, and "probably not" from one that sees nothing is a false comfort.
2. An uncertain finding is answered "uncertain", with its calibrated probability and the two thresholds that it lies between: numbers
   to weigh, no nudge to either side (`evaluation.answers.POLICIES` measures what a nudge would be worth).
3. What is not understood is said to be so, with questions that this very case can answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from VelvetMedLib.case import About, Answer, CaseFinding, Link, Segment
from VelvetMedLib.ct import Grid
from VelvetMedLib.errors import UsageError
from VelvetMedLib.reports.asked import understand
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.evidence import Evidence
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.prompts import answer_prefix
from VelvetMedLib.tasks.vqa.findings import about_all, about_finding
from VelvetMedLib.tasks.vqa.known import Known, Planned, cannot, not_understood
from VelvetMedLib.tasks.vqa.organs import about_organs
from VelvetMedLib.tasks.vqa.places import about_place
from VelvetMedLib.tasks.writing import Written, has_decoder, write

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

LONGEST_QUESTION = 500


def answer(
    question: str,
    findings: Sequence[CaseFinding],
    segments: Sequence[Segment],
    encoding: Encoding | None = None,
    bundle: Bundle | None = None,
    *,
    about: About | None = None,
    scan: Grid | None = None,
    run: Run | None = None,
) -> Answer:
    """One answer. Without an encoding and bundle the findings answer alone, without the decoder's word.

    about: the segment or box that the question is put to. scan: the scan's grid, where no encoding tells it.
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
    planned = plan_answer(question, known_of(findings, segments, encoding, bundle, scan), about)
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
        about=about,
        unanswered=planned.unanswered,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def known_of(
    findings: Sequence[CaseFinding],
    segments: Sequence[Segment],
    encoding: Encoding | None = None,
    bundle: Bundle | None = None,
    scan: Grid | None = None,
) -> Known:
    """What can be asked of a case."""
    if bundle is None:
        return Known(findings, segments, scan=scan)
    thresholds = bundle.config.lesion_thresholds
    has_maps = encoding is not None and encoding.fine is not None
    return Known(
        findings,
        segments,
        evidence=Evidence(encoding.need_fine(), thresholds) if has_maps and encoding is not None else None,
        thresholds={entry.name: (entry.threshold_absent, entry.threshold_present) for entry in bundle.config.findings},
        lesion_thresholds=thresholds,
        scan=encoding.scan_grid if encoding is not None else scan,
    )


def combined(confidence: float, key: str, said: Written) -> float:
    """Geometric mean of the plan's confidence and the decoder's probability of that answer (one minus it where it said another)."""
    same = _plain(said.slotted) == _plain(key)
    return math.sqrt(confidence * (said.probability if same else 1.0 - said.probability))


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9\[\]]+", " ", text.lower()).strip()


def plan_answer(question: str, known: Known, about: About | None = None) -> Planned:
    """What the records of a case say to a question."""
    asked = understand(question)
    plan: Planned
    if asked.beyond is not None:
        plan = cannot("beyond", asked.beyond, link=_seen(known, asked.finding))
    elif about is not None and (asked.understood or asked.kind in ("volume", "size", "density")):
        plan = about_place(known, asked, about)
    elif not asked.understood:
        plan = not_understood(known)
    elif asked.finding is not None:
        plan = about_finding(known, asked)
        if asked.kind == "volume" and plan.unanswered == "not_assessed" and asked.organs:
            plan = about_organs(known, asked)
    elif asked.organs:
        plan = about_organs(known, asked)
    else:
        plan = about_all(asked.kind or "findings", known.findings)
    return plan if asked.read_as is None else replace(plan, text=f"{plan.text} (Read as: {asked.read_as})")


def _seen(known: Known, finding: str | None) -> Link | None:
    """The place of what the question speaks of, though it cannot be answered."""
    found = None if finding is None else known.finding(finding)
    return None if found is None or found.state not in ("present", "uncertain") else found.link
