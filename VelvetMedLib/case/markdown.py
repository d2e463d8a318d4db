"""The draft report as Markdown: disclaimer first, every sentence with its state and the place that supports it."""

from __future__ import annotations

import re

from VelvetMedLib import DRAFT_DISCLAIMER, RESEARCH_USE_ONLY
from VelvetMedLib.case.schema import Case, Link, Sentence

STALE = "Out of date"
"""How a figure or sentence is marked that no longer fits the segments."""
_SPINE = ("vertebrae", "spinal_cord")
FLAGGED = {"contradiction": "Contradicted", "unsupported": "Not borne out"}
"""How a sentence's flags are called, in front of their reasons."""


def report_markdown(case: Case) -> str:
    """The whole of `report.md`. Text of the model is escaped: it is shown, never interpreted."""
    lines = [f"> **{DRAFT_DISCLAIMER}**", ">", f"> {RESEARCH_USE_ONLY}", "", "# Draft report", ""]
    sections = case.report.sections if case.report else ()
    if not sections:
        lines += ["No report was drafted.", ""]
    for section in sections:
        kept = [sentence for sentence in section.sentences if not sentence.rejected]
        if kept:
            lines += [f"## {_escaped(section.title)}", "", *(f"- {_escaped(s.text)} {_evidence(case, s)}" for s in kept), ""]
    partly = [s.display for s in case.segments if s.truncated]
    if partly:
        lines += [f"Partly outside the field of view: {_escaped(', '.join(partly))}.", ""]
    if old := [s.display for s in case.segments if s.stale]:
        lines += [f"{STALE}: {_escaped(', '.join(old))} edited after the figures were made.", ""]
    if case.vertebrae:
        heights = ", ".join(f"{v.anterior_mm:.0f}/{v.middle_mm:.0f}/{v.posterior_mm:.0f}" for v in case.vertebrae)
        # A second look measures findings anew, not these.
        edited = f" {STALE}: the spine was edited after they were made." if any(s.edited for s in case.segments if s.name in _SPINE) else ""
        lines += [f"Vertebral heights from disc to disc, front/middle/back in mm, from below: {heights}.{edited}", ""]
    lines += _changes(case)
    if case.warnings:
        lines += ["## Warnings", "", *(f"- {_escaped(w)}" for w in case.warnings), ""]
    lines += [
        "---",
        "",
        f"Model {_escaped(case.model.id)} {_escaped(case.model.version)} (sha256 {case.model.sha256[:12]}), "
        f"scan sha256 {case.input.sha256[:12]}, made {_escaped(case.created)}. Places are in RAS mm.",
        "",
    ]
    if case.run.get("attribution"):
        lines += [f"Source of the scan: {_escaped(str(case.run['attribution']))}", ""]
    lines += [f"> {DRAFT_DISCLAIMER}", ""]
    return "\n".join(lines)


def _changes(case: Case) -> list[str]:
    """What a person did to the draft, sentence by sentence: the difference to the model's words, whose they were, and when."""
    entries = []
    for section in case.report.sections if case.report else ():
        for sentence in section.sentences:
            told = sentence.revision
            if told is None:
                continue
            when = f"{_escaped(told.changed)}" + (
                f"; model {_escaped(told.model_id)}, weights {_escaped((told.weights_sha256 or '')[:12])}" if told.model_id else ""
            )
            if told.machine_text is None:
                deed = f"Added: {_escaped(sentence.text)}"
            elif sentence.by_person:
                deed = f"Changed: ~~{_escaped(told.machine_text)}~~ {_escaped(sentence.text)}"
            elif told.verdict is not None:
                deed = f"{told.verdict.capitalize()}: {_escaped(sentence.text)}"
            else:
                continue
            entries.append(f"- {deed}{' (rejected)' if sentence.rejected and sentence.by_person else ''} *[{when}]*")
    return ["## What a person changed", "", *entries, ""] if entries else []


def _evidence(case: Case, sentence: Sentence) -> str:
    """What stands behind a sentence, in brackets: whose words, state, support, place; or that nothing does; and whether it holds."""
    parts = [f"{FLAGGED[flag.kind]}: {_escaped(flag.reason)}" for flag in sentence.flags]
    parts += [STALE] if sentence.stale else []
    if sentence.by_person:
        parts.append("words of a person")
    if sentence.state:
        parts.append(sentence.state.replace("_", " "))
    if sentence.support is not None:
        parts.append(f"support {sentence.support:.2f}")
    if sentence.link is not None:
        parts.append(_place(case, sentence.link))
    elif not sentence.by_person and (sentence.support is None or sentence.state == "present"):
        parts.append("no image evidence")
    return f"*[{'; '.join(parts)}]*"


def _place(case: Case, link: Link) -> str:
    right, anterior, superior = link.center_ras_mm
    segment = case.segment(link.label) if link.label is not None else None
    name = f"{_escaped(segment.display)} " if segment else ""
    return f"{name}at R {right:.0f}, A {anterior:.0f}, S {superior:.0f} mm"


def _escaped(text: str) -> str:
    """One line, without anything that Markdown or HTML would read as markup."""
    text = "".join(c if c.isprintable() else " " for c in text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", re.sub(r"\s+", " ", text).strip())
