"""The draft report as Markdown: disclaimer first, every sentence with its state and the place that supports it."""

from __future__ import annotations

import re

from VelvetMedLib import DRAFT_DISCLAIMER, RESEARCH_USE_ONLY
from VelvetMedLib.case.schema import Case, Link, Sentence


def report_markdown(case: Case) -> str:
    """The whole of `report.md`. Text of the model is escaped: it is shown, never interpreted."""
    lines = [f"> **{DRAFT_DISCLAIMER}**", ">", f"> {RESEARCH_USE_ONLY}", "", "# Draft report", ""]
    sections = case.report.sections if case.report else ()
    if not sections:
        lines += ["No report was drafted.", ""]
    for section in sections:
        lines += [f"## {_escaped(section.title)}", ""]
        lines += [f"- {_escaped(sentence.text)} {_evidence(case, sentence)}" for sentence in section.sentences]
        lines.append("")
    partly = [s.display for s in case.segments if s.truncated]
    if partly:
        lines += [f"Partly outside the field of view: {_escaped(', '.join(partly))}.", ""]
    if case.warnings:
        lines += ["## Warnings", "", *(f"- {_escaped(w)}" for w in case.warnings), ""]
    lines += [
        "---",
        "",
        f"Model {_escaped(case.model.id)} {_escaped(case.model.version)} (sha256 {case.model.sha256[:12]}), "
        f"scan sha256 {case.input.sha256[:12]}, made {_escaped(case.created)}. Places are in RAS mm.",
        "",
        f"> {DRAFT_DISCLAIMER}",
        "",
    ]
    return "\n".join(lines)


def _evidence(case: Case, sentence: Sentence) -> str:
    """What stands behind a sentence, in brackets: state, support, place; or that nothing does."""
    parts = [sentence.state.replace("_", " ")] if sentence.state else []
    if sentence.support is not None:
        parts.append(f"support {sentence.support:.2f}")
    if sentence.link is not None:
        parts.append(_place(case, sentence.link))
    elif sentence.support is None or sentence.state == "present":
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
