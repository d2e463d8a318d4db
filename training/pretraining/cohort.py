"""From a folder of a synthetic cohort, or a manifest of anybody's studies, to studies, splits, tokenizer and prepared store."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from demo.data import split_of

from pretraining.vocabulary import learn_vocabulary
from VelvetMedLib.cohorts import read_cohort
from VelvetMedLib.engine.data import Quarantine
from VelvetMedLib.engine.manifest import Manifest, Quarantined, Study, full_text, read_manifest, write_manifest
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.store import StoredStudy, open_store, prepare
from VelvetMedLib.engine.texts import sentences_of
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.evaluation.records import record_word
from VelvetMedLib.files import write_text
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.recipes.base import Recipe
from VelvetMedLib.reports import STYLES, FindingRecord

MANIFEST = "manifest.jsonl"
TOKENIZER = "tokenizer.json"
VOCABULARY_TEXTS = 2000
VAL_FRACTION, TEST_FRACTION = 0.15, 0.1


def cohort_entries(cohort: Path) -> tuple[list[dict[str, Any]], list[Quarantined]]:
    """Manifest lines of a synthetic cohort, volumes by absolute path; twins share a patient, and so a split. The style of
    writing that is held out of training is not among the versions of a report."""
    folders = read_cohort(cohort).case_folders
    records: dict[str, dict[str, Any]] = {}
    bad: list[Quarantined] = []
    for folder in folders:
        try:
            records[folder.name] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            bad.append(Quarantined(folder.name, "no readable record.json"))
    patients = {name: str(record.get("twin_of") or name) for name, record in records.items()}
    splits = split_of([patients[name] for name in records], val_fraction=VAL_FRACTION, test_fraction=TEST_FRACTION)
    entries = []
    for folder in folders:
        if folder.name in records:
            record = records[folder.name]
            entries.append(
                {
                    "study": folder.name,
                    "patient": patients[folder.name],
                    "split": splits[patients[folder.name]],
                    "volume": str((folder / "ct.nii.gz").resolve()),
                    "reports": [_sections(record["reports"][style]) for style in STYLES if style in record["reports"]],
                    "record": record_word([FindingRecord.from_dict(entry) for entry in record["findings"]]),
                }
            )
    return entries, bad


def _sections(report: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"title": section["title"], "sentences": [s["text"] for s in section["sentences"]]} for section in report]


def load_manifest(
    run: Path, cohort: Path | None, manifest: Path | None, processes: Processes, *, scans: bool = False
) -> tuple[Manifest, str]:
    """The studies and a hash of their list. scans: those without a report are wanted too, those of the training split.

    A cohort's list is written into the run folder, so that every start reads the same."""
    bad: list[Quarantined] = []
    if manifest is None:
        if cohort is None:
            raise TrainingError(
                "No data was given.",
                found="neither --cohort nor --manifest",
                expected="a cohort folder, or a manifest of studies (one JSON object per line)",
                next_step="Make a cohort with 'velvetmed cohort make' and give its folder with --cohort.",
            )
        manifest = run / MANIFEST
        if processes.first:
            entries, bad = cohort_entries(cohort)
            write_manifest(manifest, entries)
        processes.wait()
        bad = [Quarantined(*pair) for pair in processes.gather_objects([(b.study, b.reason) for b in bad])[0]]
    read = read_manifest(manifest, unreported=scans)
    whole = Manifest(read.studies, (*bad, *read.quarantined), tuple(s for s in read.scans if s.split == "train") if scans else ())
    return whole, content_hash(whole)


def content_hash(manifest: Manifest) -> str:
    """What a run learns from, wherever the files lie: ids, patients, splits and reports."""
    text = "\n".join(repr((s.study, s.patient, s.split, s.reports, s.record)) for s in (*manifest.studies, *manifest.scans))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def unreadable_texts(studies: list[Study], recipe: Recipe) -> list[Quarantined]:
    """Studies whose report has nothing left in the sections that the recipe reads."""
    return [
        Quarantined(study.study, "the report has no sentence in the chosen sections")
        for study in studies
        if not any(sentences_of(report, recipe.reports) for report in study.reports)
    ]


def prepared(
    manifest: Manifest, store: Path, recipe: Recipe, quarantine: Quarantine, processes: Processes, *, workers: int
) -> list[StoredStudy]:
    """All usable studies, then scans without a report; each process prepares its share of the store."""
    quarantine.add([*manifest.quarantined, *unreadable_texts(list(manifest.studies), recipe)])
    usable = [study for study in (*manifest.studies, *manifest.scans) if study.study not in quarantine]

    def shown(done: int, total: int) -> None:
        if processes.first and (done == total or done % 50 == 0):
            print(f"prepared {done} of {total} studies", flush=True)

    bad = prepare(usable[processes.rank :: processes.world_size], store, recipe.views, processes=workers, progress=shown)
    told = processes.gather_objects([(b.study, b.reason) for b in bad])
    quarantine.add([Quarantined(*pair) for pairs in told for pair in pairs])
    found, bad = open_store([study for study in usable if study.study not in quarantine], store, recipe.views)
    quarantine.add(bad)
    return found


def load_tokenizer(run: Path, given: Path | None, studies: list[Study], processes: Processes) -> tuple[ReportTokenizer, str]:
    """The tokenizer and its JSON text: the given one, else a vocabulary learnt from the training reports; kept in the run folder."""
    path = run / TOKENIZER
    if processes.first and not path.exists():
        if given is not None:
            text = given.read_text(encoding="utf-8")
        else:
            train = [study for study in studies if study.split == "train"][:VOCABULARY_TEXTS]
            if not train:
                raise TrainingError(
                    "There is no report to learn a vocabulary from.",
                    found="scans without reports",
                    expected="training studies with a report, or a tokenizer",
                    next_step="Give a tokenizer.json with --tokenizer.",
                )
            text = learn_vocabulary(full_text(report) for study in train for report in study.reports)
        write_text(path, text)
    processes.wait()
    return ReportTokenizer(path), path.read_text(encoding="utf-8")
