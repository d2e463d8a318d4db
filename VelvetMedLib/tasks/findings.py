"""From one Encoding to the list of findings: calibrated probability, state, place, size, and the voxels that show it.

The state comes from the calibrated probability and the bundle's two thresholds. Five rules temper it:
1. A finding that the bundle does not tell from chance, or whose structures lie outside the view, is `not_assessed`.
2. Where a measurement stands beside the model's verdict (`MEASURED`: heart, liver, spleen, aorta, pleural fluid) and contradicts it
   outright (one says present, the other absent), the state is `uncertain` and the finding says why. What the bundle does not tell
   from chance is `not_assessed`, with the measurement beside it.
3. A measurement of an organ cut off by the field of view counts only if it is already beyond the threshold.
4. What no measurement decides (a vertebra's loss of height) rests on the model alone, and the finding says so; heights that
   `case.vertebrae` measures on fine slices are told beside it.
5. Numbers that contradict the state are not reported: no size of 3 mm beside a `present` mass.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.bundle.config import FindingEntry, refuse
from VelvetMedLib.case import CaseFinding
from VelvetMedLib.case.overruling import DISAGREE, MEASURED
from VelvetMedLib.case.vertebrae import Heights, most_lost
from VelvetMedLib.reports import Finding, State, ontology
from VelvetMedLib.tasks.abilities import has_heads
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.evidence import Evidence, Measured
from VelvetMedLib.tasks.tokens import lesion_summary

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

HEAD_ALONE = (1.0, 0.0, 0.0, 0.0)
"""Weights of a finding whose logit is the head's."""
UNMEASURED = {"height_loss_fraction": "no measurement of the height decides this: the model alone says so"}
"""Quantities that no measurement on the fine view gives, and what is said beside the finding instead."""


def finding_logits(encoding: Encoding, bundle: Bundle) -> NDArray[np.float64]:
    """Scores of all findings, in the ontology's order, to be calibrated: the head's, and the weight of what the lesion map shows."""
    import torch

    head = getattr(bundle.model, "findings", None)
    if head is None:
        raise refuse(
            f"The bundle {bundle.config.id!r} has no findings head.",
            found="an architecture without 'findings'",
            expected="a bundle made for analysis",
            next_step="Choose another bundle; 'velvetmed models list' names them.",
        )
    reading = encoding.need_reading()
    with torch.inference_mode():
        memory = torch.from_numpy(reading.memory)[None].to(bundle.device)
        mask = torch.from_numpy(reading.memory_mask)[None].to(bundle.device)
        logits: NDArray[np.float64] = head(memory, mask)[0].double().cpu().numpy()
    fine = encoding.need_fine()
    weights = np.array([bundle.config.finding(name).evidence or HEAD_ALONE for name in ontology().finding_names])
    return with_evidence(logits[None], lesion_summary(fine.lesion_tokens, fine.lesion_logits)[None], weights)[0]


def with_evidence(logits: NDArray[np.float64], summaries: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighed sums of the logits [N, findings] and of the evidence of each finding's kind of lesion. summaries: [N, channels, 3] of
    `tokens.lesion_summary`; weights: [findings, 4], the logit's first."""
    total = logits * weights[:, 0]
    for column, finding in enumerate(ontology().findings):
        if finding.lesion is not None:
            total[:, column] += summaries[:, ontology().lesion(finding.lesion).channel] @ weights[column, 1:]
    return total


def calibrated(entry: FindingEntry, logit: float) -> float:
    """Probability 0..1 of a logit."""
    z = entry.calibration.slope * logit + entry.calibration.bias
    return 1.0 / (1.0 + math.exp(-z)) if z >= 0 else math.exp(z) / (1.0 + math.exp(z))


def state_of(entry: FindingEntry, probability: float) -> State:
    """State by the bundle's thresholds alone."""
    if probability >= entry.threshold_present:
        return "present"
    return "absent" if probability < entry.threshold_absent else "uncertain"


def decide(finding: Finding, state: State, measured: Measured) -> tuple[State, str | None]:
    """The tempered state (rules 2 and 3) and, where it was changed, why."""
    if finding.name not in MEASURED or measured.value is None:
        return state, None
    by_measure = finding.state_of(measured.value)
    if not measured.reliable:
        if by_measure == "present" and state == "absent":
            return "uncertain", DISAGREE
        if by_measure != "present" and state != "present":
            return "not_assessed", "the structure is partly outside the field of view"
        return state, None
    if {state, by_measure} == {"present", "absent"}:
        return "uncertain", DISAGREE
    return state, None


def find(encoding: Encoding, bundle: Bundle) -> tuple[CaseFinding, ...]:
    """All findings of the ontology, in its order. Needs the whole encoding; from prompts where the model has no findings head."""
    if not has_heads(bundle):
        from VelvetMedLib.tasks.zero_shot import find_by_prompts

        return find_by_prompts(encoding, bundle)
    evidence = Evidence(encoding.need_fine(), bundle.config.lesion_thresholds)
    logits = finding_logits(encoding, bundle)
    return tuple(_find_one(f, bundle.config.finding(f.name), float(z), evidence) for f, z in zip(ontology().findings, logits, strict=True))


def _find_one(finding: Finding, entry: FindingEntry, logit: float, evidence: Evidence) -> CaseFinding:
    unseen = evidence.out_of_view(finding)
    if not entry.assessed:
        beside = evidence.measure(finding) if finding.name in MEASURED and not unseen else None
        return _not_assessed(finding, f"not assessed by this model: {entry.reason}", beside)
    if unseen:
        return _not_assessed(finding, unseen)
    probability = calibrated(entry, logit)
    measured = evidence.measure(finding)
    state, reason = decide(finding, state_of(entry, probability), measured)
    if state == "not_assessed":
        return _not_assessed(finding, reason or "")
    facts: dict[str, Any] = {"value": measured.value if measured.reliable else None, "unit": finding.measure.unit}
    if state == "absent":
        link = evidence.segment_link(finding)
    else:
        link = measured.link or evidence.segment_link(finding)
        if state == "uncertain" or finding.name in MEASURED or _fits(finding, state, measured):
            facts |= {"side": measured.side, "site": measured.site, "size_mm": measured.size_mm, "count": measured.count}
            facts["volume_ml"] = measured.volume_ml
            facts["severity"] = finding.severity_of(measured.value) if state == "present" else None
        else:
            # Rule 5: what was segmented is too small for what the model sees; its place holds, its numbers do not.
            facts |= {"side": measured.side, "site": measured.site, "value": None}
    if state == "absent" and not _fits(finding, state, measured):
        facts["value"] = None
    reason = reason or UNMEASURED.get(finding.measure.quantity)
    facts |= {"probability": round(probability, 4), "reason": reason, "link": link}
    return CaseFinding(name=finding.name, display=finding.display, state=state, **_rounded(facts))


def _fits(finding: Finding, state: State, measured: Measured) -> bool:
    """Whether a measured value does not contradict a state. An unmeasured one never does."""
    by_measure = finding.state_of(measured.value)
    return {state, by_measure} != {"present", "absent"}


def _rounded(facts: dict[str, Any]) -> dict[str, Any]:
    digits = {"value": 3, "size_mm": 1, "volume_ml": 2}
    return {name: round(value, digits[name]) if name in digits and value is not None else value for name, value in facts.items()}


def _not_assessed(finding: Finding, reason: str, beside: Measured | None = None) -> CaseFinding:
    facts: dict[str, Any] = {}
    if beside is not None and beside.reliable and beside.value is not None:
        facts = {"value": beside.value, "unit": finding.measure.unit, "link": beside.link}
    return CaseFinding(name=finding.name, display=finding.display, state="not_assessed", reason=reason, **_rounded(facts))


def with_heights(findings: tuple[CaseFinding, ...], heights: Heights) -> tuple[CaseFinding, ...]:
    """The findings with what the vertebrae's heights say beside a compression, whose state they do not touch."""
    most = most_lost(heights.vertebrae)
    loss = None if most is None else most.loss_fraction
    beside = heights.reason or f"{len(heights.vertebrae)} vertebrae were measured from disc to disc"
    if most is not None and loss is not None:
        beside += f"; one at S {most.center_ras_mm[2]:.0f} mm lacks most of its neighbours' height, {loss:.0%}"

    return tuple(
        replace(f, reason="; ".join(filter(None, (f.reason, beside))))
        if ontology().finding(f.name).measure.quantity == "height_loss_fraction"
        else f
        for f in findings
    )


def lesion_channels(findings: tuple[CaseFinding, ...]) -> frozenset[int]:
    """Lesion channels that may be shown: those of findings which are present or uncertain."""
    table = ontology()
    shown = [table.finding(f.name).lesion for f in findings if f.state in ("present", "uncertain")]
    return frozenset(table.lesion(name).channel for name in shown if name is not None)
