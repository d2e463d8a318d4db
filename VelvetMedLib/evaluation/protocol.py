"""The whole evaluation: from kept outputs to every figure with its interval, `metrics.json`, `evaluation.md` and the plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.cohorts.options import stream
from VelvetMedLib.evaluation import answers, findings, grounding, reports, retrieval, segmentation, wording
from VelvetMedLib.evaluation.bootstrap import DRAWS, Estimate, Measure, estimate, ratio, resamples
from VelvetMedLib.evaluation.findings import FindingTable
from VelvetMedLib.evaluation.outputs import METRICS, CaseOutput, RunFacts, read_outputs, vectors
from VelvetMedLib.files import write_text
from VelvetMedLib.reports import FindingRecord, parse_report, render, write_report

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle
    from VelvetMedLib.evaluation.run import Progress
    from VelvetMedLib.evaluation.wording import TextModel
    from VelvetMedLib.tasks.writers import Writer

PAGE = "evaluation.md"
HELD = {"model": "report", "model, held to nothing": "unheld"}
"""The draft, and the one in its writer's words alone."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A finished run with everything that is measured on it. measures: by name, "retrieval/all/..." and so on."""

    facts: RunFacts
    outputs: Sequence[CaseOutput]
    table: FindingTable
    measures: Mapping[str, Measure]

    @property
    def reliability(self) -> dict[str, list[dict[str, Any]]]:
        """The curve of all findings and of each kind; empty where no score is meant as a probability."""
        table = self.table
        kinds = {kind: table.columns(kind) for kind in ("all", *findings.KINDS)}
        return {kind: findings.reliability(table.truth[:, own], table.probability[:, own]) for kind, own in kinds.items()}

    @property
    def groups(self) -> list[str]:
        """What the bootstrap draws."""
        return [one.group for one in self.outputs]

    def estimates(self) -> dict[str, Estimate]:
        """Every measure with its interval."""
        weights = resamples(self.groups)
        return {name: estimate(measure, weights) for name, measure in self.measures.items()}


def evaluate(
    bundle: Bundle,
    cohort: Path | str,
    out: Path | str,
    *,
    writer: Writer | None = None,
    text_model: TextModel | None = None,
    progress: Progress | None = None,
) -> dict[str, Estimate]:
    """Run the bundle over the cohort, or go on with a stopped run, and write the results into `out`. Returns every figure.

    writer: who words the drafts; None = the bundle's own.

    Raises CohortError, BundleError, UsageError.
    """
    from VelvetMedLib.evaluation.run import run_bundle

    out = Path(out)
    run_bundle(bundle, cohort, out, writer=writer, progress=progress)
    return write_results(out, text_model=text_model)


def load(out: Path | str, *, text_model: TextModel | None = None) -> Evaluation:
    """From kept outputs. Raises UsageError where they are not complete."""
    facts, outputs = read_outputs(out)
    records, said = [one.truth for one in outputs], [one.said for one in outputs]
    table = FindingTable.of(records, [one.scores for one in outputs], said, calibrated=facts.calibrated)
    measures: dict[str, Measure] = {}
    if all(one.texts for one in outputs):
        texts = {name: vectors([one.texts[name] for one in outputs]) for name in outputs[0].texts}
        scores = retrieval.by_words(vectors([one.kept for one in outputs]), texts, len(outputs[0].study))
        measures |= retrieval.measures(scores, records, [one.view for one in outputs])
    measures |= findings.measures(table)
    measures |= segmentation.measures([[segmentation.StructureScore(**s) for s in one.structures] for one in outputs])
    answered = _answered(outputs)
    measures |= answers.measures(answered, len(outputs)) | answers.consistency(answered, said, [one.report for one in outputs])
    measures |= _of_reports(outputs, records, text_model)
    measures |= grounding.measures([[grounding.Pointed(**p) for p in one.pointing] for one in outputs])
    measures["seconds per case"] = ratio([one.seconds for one in outputs], [1] * len(outputs))
    return Evaluation(facts=facts, outputs=outputs, table=table, measures=measures)


def write_results(out: Path, *, text_model: TextModel | None = None) -> dict[str, Estimate]:
    """metrics.json, evaluation.md and plots from the outputs in `out`."""
    from VelvetMedLib.evaluation.page import page
    from VelvetMedLib.evaluation.plots import draw_all

    done = load(out, text_model=text_model)
    estimates = done.estimates()
    data = {
        "notice": RESEARCH_USE_ONLY,
        **done.facts.as_dict(),
        "draws": DRAWS,
        "findings": done.table.counts(),
        "reliability": done.reliability,
        "measures": {name: value.as_dict() for name, value in estimates.items()},
    }
    write_text(out / METRICS, json.dumps(data, indent=1) + "\n")
    pictures = draw_all(done, estimates, out)
    write_text(out / PAGE, page(done, estimates, pictures))
    return estimates


def _answered(outputs: Sequence[CaseOutput]) -> list[answers.Answered]:
    return [answers.Answered(case=n, group=one.group, **answer) for n, one in enumerate(outputs) for answer in one.answers]


def _of_reports(
    outputs: Sequence[CaseOutput], records: Sequence[Sequence[FindingRecord]], text_model: TextModel | None
) -> dict[str, Measure]:
    if any(one.report is None for one in outputs):
        return {}
    texts = {
        name: [getattr(one, draft) or "" for one in outputs]
        for name, draft in HELD.items()
        if all(getattr(one, draft) is not None for one in outputs)
    } | {
        "nearest report": nearest_reports(outputs),
        "all normal": [_all_normal(n) for n in range(len(outputs))],
    }
    references = [one.references["seen"] for one in outputs]
    out: dict[str, Measure] = {}
    for writer in texts:
        said = [reports.ALL_NORMAL if writer == "all normal" else parse_report(text) for text in texts[writer]]
        counts = [
            replace(reports.count(told, true), itself=len(reports.contradicted(text)))
            for told, true, text in zip(said, records, texts[writer], strict=True)
        ]
        own = reports.measures(counts) | wording.measures(texts[writer], references, text_model)
        if writer in HELD and all(HELD[writer] in one.contradictions for one in outputs):
            wrong, told = zip(*(one.contradictions[HELD[writer]] for one in outputs), strict=True)
            own["sentences against the findings"] = ratio(list(wrong), list(told))
        out |= {f"report/{writer}/{name}": measure for name, measure in own.items()}
        called = FindingTable.of(records, [{}] * len(records), said)
        for column, name in enumerate(called.names):
            of_one = findings.calls(called.truth[:, column], called.called[:, column])
            out |= {f"report/{writer}/{name}/{metric}": measure for metric, measure in of_one.items()}
    return out


def nearest_reports(outputs: Sequence[CaseOutput]) -> list[str]:
    """For each case the reference of the most similar scan of another group; "" where there is none."""
    study = vectors([one.study for one in outputs])
    cosine = study @ study.T
    groups = np.array([one.group for one in outputs])
    cosine[groups[:, None] == groups[None, :]] = -np.inf
    best = cosine.argmax(1)
    return [outputs[n].references["seen"] if np.isfinite(cosine[row, n]) else "" for row, n in enumerate(best)]


def _all_normal(number: int) -> str:
    """A report of a case without any finding, for comparisons of wording; its truth is scored as denying everything."""
    from VelvetMedLib.evaluation.run import STYLE

    return render(write_report(reports.ALL_NORMAL, style=STYLE, rng=stream(number, "evaluation all normal")), STYLE)
