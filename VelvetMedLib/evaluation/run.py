"""Runs a bundle over the cases of a cohort and keeps what it says of each, so that a stopped evaluation goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib import __version__
from VelvetMedLib.case import Case, checked
from VelvetMedLib.case.editing import sentences
from VelvetMedLib.cohorts import CohortCase, load_case, read_cohort
from VelvetMedLib.cohorts.options import stream
from VelvetMedLib.errors import BundleError, UsageError
from VelvetMedLib.evaluation.answers import lean
from VelvetMedLib.evaluation.asking import questions_beside
from VelvetMedLib.evaluation.findings import TRUTH
from VelvetMedLib.evaluation.grounding import WAYS, Pointed, Way, body_of, target_of
from VelvetMedLib.evaluation.outputs import CaseOutput, RunFacts, case_file, claim, write_output
from VelvetMedLib.evaluation.segmentation import score_case
from VelvetMedLib.reports import HELD_OUT_STYLE, ProseSection, make_questions, ontology, parse_report, render, write_report, write_sentence
from VelvetMedLib.shapes import Triple
from VelvetMedLib.tasks import ground, run_analysis, vqa
from VelvetMedLib.tasks.abilities import has_heads
from VelvetMedLib.tasks.analysis import Analysis
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.findings import calibrated, finding_logits
from VelvetMedLib.tasks.report import draft_report
from VelvetMedLib.tasks.segmentation import organ_labels
from VelvetMedLib.tasks.statements import kept_row, words_query
from VelvetMedLib.tasks.text_vectors import text_vectors
from VelvetMedLib.tasks.writers import DraftSettings, Writer, open_writer

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

Progress = Callable[[float, str, float | None], None]
STYLE = "structured"
"""Of the drafts, and of the references in seen wording."""
WORDINGS: Mapping[str, str] = {"seen": STYLE, "unseen": HELD_OUT_STYLE}
"""Style of the references: one that models of ours are trained on, and one whose style and phrases they never meet."""
WORDING_SEED = 1


def run_bundle(
    bundle: Bundle, cohort_folder: Path | str, out: Path, *, writer: Writer | None = None, progress: Progress | None = None
) -> None:
    """Write the output of every case that has none yet. writer: who words the drafts; None = the bundle's own.

    Raises CohortError, BundleError, UsageError.
    """
    cohort = read_cohort(cohort_folder)
    writer = writer or open_writer(None, bundle)
    facts = RunFacts(
        bundle_id=bundle.config.id,
        bundle_version=bundle.config.version,
        bundle_key=bundle.sha256,
        calibrated=[entry.name for entry in bundle.config.findings if entry.assessed and has_heads(bundle)],
        cohort_seed=cohort.seed,
        cohort_cases=len(cohort),
        cohort_options=cohort.manifest["options"],
        wording_seed=WORDING_SEED,
        velvetmed=__version__,
        writer=dict(writer.facts) if has_heads(bundle) else {},
    )
    claim(out, facts)
    todo = [folder for folder in cohort.case_folders if not case_file(out, folder.name).exists()]
    started = time.monotonic()
    for done, folder in enumerate(todo, 1):
        write_output(out, output_of(load_case(folder), bundle, writer))
        if progress is not None:
            left = (time.monotonic() - started) / done * (len(todo) - done)
            progress((len(cohort) - len(todo) + done) / len(cohort), "evaluating cases", left)


def output_of(case: CohortCase, bundle: Bundle, writer: Writer) -> CaseOutput:
    """What the bundle makes of one case. Texts and questions are drawn from the case's own seed, the same for every bundle."""
    started = time.monotonic()
    seed = int(case.record["seed"])
    # A twin shares its sibling's seed; its texts must differ all the same.
    turn = 2 * WORDING_SEED + (case.record["twin_of"] is not None)
    done = run_analysis(case.volume, bundle, draft=DraftSettings(style=STYLE), writer=writer)
    seconds = round(time.monotonic() - started, 2)
    drafts = {"report": done.case} | ({} if done.case.report is None else {"unheld": _unheld(done, bundle, writer)})
    written = {
        name: write_report(case.findings, style=style, rng=stream(seed, f"evaluation {name}", turn), held_out_wording=name == "unseen")
        for name, style in WORDINGS.items()
    }
    return CaseOutput(
        case=case.case_id,
        group=str(case.record["twin_of"] or case.case_id),
        view=str(case.record["view"]["name"]),
        truth=case.findings,
        said=[finding.record() for finding in done.case.findings],
        scores=_scores(done.encoding, bundle),
        report=report_text(done.case),
        references={name: render(sections, WORDINGS[name]) for name, sections in written.items()},
        study=[float(x) for x in done.encoding.study_vector],
        kept=[float(x) for x in kept_row(done.encoding, bundle)],
        texts=_queries(written, bundle),
        answers=_answers(case, done, bundle, stream(seed, "evaluation questions", turn)),
        structures=_structures(case, done),
        pointing=_pointing(case, done, bundle, stream(seed, "evaluation phrases", turn)),
        seconds=seconds,
        unheld=report_text(drafts["unheld"]) if "unheld" in drafts else None,
        contradictions={name: _contradictions(draft) for name, draft in drafts.items()},
    )


def _unheld(done: Analysis, bundle: Bundle, writer: Writer) -> Case:
    """The case with the draft as its writer words it, held to no finding."""
    free = draft_report(done.case.findings, done.encoding, bundle, settings=DraftSettings(style=STYLE, hold_from=None), writer=writer)
    return checked(replace(done.case, report=free.report))


def _contradictions(case: Case) -> list[int]:
    """(sentences that contradict the case's own findings and measurements, all sentences)."""
    told = [sentence for _, _, sentence in sentences(case)]
    return [sum(any(flag.kind == "contradiction" for flag in one.flags) for one in told), len(told)]


def _scores(encoding: Encoding, bundle: Bundle) -> dict[str, float]:
    """Of every finding, also of those that the bundle does not use: how far it ranks them is what is asked here."""
    if not has_heads(bundle):
        from VelvetMedLib.tasks.zero_shot import scores

        return {} if bundle.tokenizer is None else {s.finding: s.score for s in scores(encoding, bundle)}
    logits = finding_logits(encoding, bundle)
    return {
        name: calibrated(bundle.config.finding(name), float(logit)) for name, logit in zip(ontology().finding_names, logits, strict=True)
    }


def report_text(case: Case) -> str | None:
    """The draft as one text with its headings; None where the model writes none."""
    if case.report is None:
        return None
    return "\n\n".join(f"{section.title}:\n{' '.join(s.text for s in section.sentences)}" for section in case.report.sections) + "\n"


def _queries(written: Mapping[str, Sequence[ProseSection]], bundle: Bundle) -> dict[str, list[float]]:
    """Of the sentences that speak of findings: technique and comparison must not tell studies apart."""
    if bundle.tokenizer is None:
        return {}
    queries = {}
    for name, sections in written.items():
        spoken = [s.text for section in sections for s in section.sentences if s.findings] or ["No abnormality is described."]
        queries[name] = [float(x) for x in words_query(text_vectors([spoken], bundle)[0], parse_report(" ".join(spoken)), bundle)]
    return queries


def _answers(case: CohortCase, done: Analysis, bundle: Bundle, rng: np.random.Generator) -> list[dict[str, Any]]:
    """What is asked of a case and said, and yes or no by a finding's score alone, whatever stands in the way of a call."""
    known = vqa.known_of(done.case.findings, done.case.segments, done.encoding, bundle)
    scores = _scores(done.encoding, bundle) if has_heads(bundle) else {}
    forced = {name: lean(p, *known.thresholds[name]) for name, p in scores.items()}
    kept = []
    for q in [*make_questions(case.findings, rng), *questions_beside(case, rng)]:
        said = vqa.answer(q.question, done.case.findings, done.case.segments, done.encoding, bundle)
        told = {"answer": said.answer, "unanswered": said.unanswered}
        kept.append({"kind": q.kind, "finding": q.finding, "truth": q.answer, **told, "forced": forced.get(q.finding or "")})
    return kept


def lesion_mask(case: CohortCase, instance_ids: Sequence[int]) -> NDArray[np.bool_]:
    """Voxels of some instances."""
    bits = sum(1 << (n - 1) for n in instance_ids)
    return (case.lesions_kji & np.uint32(bits)) != 0


def _structures(case: CohortCase, done: Analysis) -> list[dict[str, Any]]:
    """Scores of organs, and of the kinds of lesion that are there or are shown."""
    if done.segmentation_kji is None:
        return []
    table, grid, found = ontology(), case.volume.grid, done.segmentation_kji
    spacing = case.volume.spacing_mm
    # The label map shows lesions over organs, while the truth's organs include them: organs are compared without the overlay.
    organs = organ_labels(done.encoding.need_fine(), grid)
    scores = score_case(organs, case.organs_kji, spacing, {s.label: s.name for s in table.structures}, case=case.case_id)
    for lesion in table.lesions:
        truth = lesion_mask(case, [i["id"] for i in case.instances if i["lesion"] == lesion.name])
        shown = found == lesion.label
        if truth.any() or shown.any():
            scores += score_case(shown.astype(np.uint8), truth.astype(np.uint8), spacing, {1: lesion.name}, case=case.case_id)
    return [asdict(score) for score in scores if score.dice is not None]


def _pointing(case: CohortCase, done: Analysis, bundle: Bundle, rng: np.random.Generator) -> list[dict[str, Any]]:
    """A sentence on each present finding that has voxels, and where the bundle sees it in each way."""
    body = body_of(case.volume.voxels_kji, case.organs_kji)
    called = {finding.name for finding in done.case.findings if finding.state == "present"}
    kept = []
    for record in (r for r in case.findings if TRUTH.get(r.state) == 1.0 and r.instance_ids):
        phrase = write_sentence(record, rng, "narrative").text
        target = target_of(lesion_mask(case, record.instance_ids), case.volume.grid, body)
        if target is None:
            continue
        for way in WAYS:
            peak = _peak(done.encoding, phrase, bundle, way)
            hit = peak is not None and target.holds(peak)
            told = record.name in called
            kept.append(asdict(Pointed(finding=record.name, way=way, called=told, placed=peak is not None, hit=hit, chance=target.chance)))
    return kept


def _peak(encoding: Encoding, phrase: str, bundle: Bundle, way: Way) -> Triple | None:
    """Where a phrase is placed; None where it cannot be, or nothing is marked."""
    try:
        found = ground(encoding, phrase, bundle, by=None if way == "answer" else way)
    except (BundleError, UsageError):
        return None
    return found.peak_ras_mm if found.marked else None
