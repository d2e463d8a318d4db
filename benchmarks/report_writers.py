"""Report writers side by side on held-out cases of a cohort: what each says on its own, what the checked draft says, and its time.

`python benchmarks/report_writers.py --cohort COHORT --writer decoder --writer composer --writer FILE.json --writer FOLDER [--bundle B]`

Every writer gets the same findings of the bundle. "asked": its own words, before any check, against the findings it was asked to word:
the share of sentences that the report takes as they are, and F1. "draft": the finished draft, in which sentences that were not taken are
the built-in ones, against the truth of the case: here writers can differ only in what their words leave out. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.data import split_of

from VelvetMedLib.bundle import load_bundle
from VelvetMedLib.case import Report
from VelvetMedLib.cohorts import read_cohort
from VelvetMedLib.cohorts.store import CohortCase, load_case
from VelvetMedLib.evaluation.reports import score_reports
from VelvetMedLib.evaluation.wording import rouge_l
from VelvetMedLib.reports import fill_slots, ontology, render, write_report
from VelvetMedLib.reports.phrases import phrase_book
from VelvetMedLib.tasks import encode, find, load_encoding, save_encoding
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.report import DEFAULT, draft_report
from VelvetMedLib.tasks.writers import Wording, open_writer


class Kept:
    """A writer whose wordings are looked at."""

    def __init__(self, writer: Any) -> None:
        self.writer, self.seconds, self.texts = writer, 0.0, []
        self.facts, self.records = writer.facts, []

    def write(self, records: Any, encoding: Encoding, style: str, run: Run) -> list[Wording | None]:
        began = time.process_time()
        found: list[Wording | None] = self.writer.write(records, encoding, style, run)
        self.seconds += time.process_time() - began
        lines = []
        for record, wording in zip(records, found, strict=True):
            title = phrase_book()["sections"][ontology().finding(record.name).section]
            lines += [] if wording is None else [f"{title}: {fill_slots(wording.slotted, record)}"]
        self.texts.append("\n".join(lines))
        self.records.append(records)
        return found


def held_out(cohort: Path, count: int) -> list[CohortCase]:
    """The first cases of the split that no training of ours looks at."""
    cases = [load_case(folder) for folder in read_cohort(cohort).case_folders]
    groups = [str(case.record.get("twin_of") or case.case_id) for case in cases]
    split = split_of(groups)
    return [case for case, group in zip(cases, groups, strict=True) if split[group] == "test"][:count]


def encoded(case: CohortCase, bundle: Any, store: Path | None) -> Encoding:
    path = None if store is None else store / f"{bundle.encoding_key[:16]}-{case.case_id}.safetensors"
    if path is not None and path.is_file():
        return load_encoding(path)
    encoding = encode(case.volume, bundle)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_encoding(path, encoding)
    return encoding


def text_of(report: Report) -> str:
    return "\n".join(f"{section.title}: {sentence.text}" for section in report.sections for sentence in section.sentences)


def measure(named: str, cases: Sequence[CohortCase], bundle: Any, store: Path | None) -> dict[str, Any]:
    writer = Kept(open_writer(named, bundle))
    drafts, references = [], []
    taken = total = 0
    for case in cases:
        encoding = encoded(case, bundle, store)
        done = draft_report(find(encoding, bundle), encoding, bundle, settings=DEFAULT, writer=writer)
        drafts.append(text_of(done.report))
        references.append(render(write_report(case.findings, style=DEFAULT.style, rng=_rng(case)), DEFAULT.style))
        taken += sum(origin == "written" for origin in done.origin.values())
        total += len(done.origin)
    asked = score_reports(writer.texts, writer.records)
    draft = score_reports(drafts, [case.findings for case in cases])
    return {
        "writer": dict(writer.facts),
        "taken": round(taken / total, 4),
        "asked": _figures(asked),
        "draft": _figures(draft) | {"rouge_l": round(sum(map(rouge_l, drafts, references)) / len(cases), 4)},
        "cpu_seconds_per_report": round(writer.seconds / len(cases), 3),
    }


def _rng(case: CohortCase) -> Any:
    import numpy as np

    return np.random.default_rng(int(case.record["seed"]))


def _figures(score: Any) -> dict[str, Any]:
    figures = {"f1": score.presence.f1, "f1_with_side": score.with_side.f1, "f1_with_size": score.with_size.f1,
               "accuracy": score.accuracy, "contradictions": score.contradiction_rate}  # fmt: skip
    return {name: None if value is None else round(value, 4) for name, value in figures.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--writer", action="append", required=True, metavar="WRITER")
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--store", type=Path, metavar="DIR", help="keep encodings here")
    options = parser.parse_args()
    bundle = load_bundle(options.bundle)
    cases = held_out(options.cohort, options.cases)
    writers = [measure(named, cases, bundle, options.store) for named in options.writer]
    print(json.dumps({"benchmark": "report_writers", "bundle": bundle.config.id, "cases": len(cases), "writers": writers}))


if __name__ == "__main__":
    main()
