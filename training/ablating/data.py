"""Which studies of the cohort the cells learn from and are measured on: nested, the same for every row and seed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pretraining.cohort import cohort_entries

from ablating.grid import AblationSettings
from VelvetMedLib.cohorts.store import RECORD
from VelvetMedLib.engine.manifest import write_manifest
from VelvetMedLib.engine.randomness import generator
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.evaluation.records import Facts, facts_of
from VelvetMedLib.files import write_text
from VelvetMedLib.reports import FindingRecord, ontology

TRUTH = {"present": 1.0, "absent": 0.0}
"""Other states are unknown to a probe."""


def write_data(cohort: Path, out: Path, settings: AblationSettings) -> dict[int, Path]:
    """Number of pairs -> manifest below `out`. The smaller training part is a part of the larger; held-out studies are the same.

    Raises TrainingError where the cohort has too few studies in a split.
    """
    entries, _ = cohort_entries(cohort)
    wanted = {"train": settings.pairs, "val": settings.val, "test": settings.test}
    drawn: dict[str, list[str]] = {}
    for split, count in wanted.items():
        names = sorted(entry["study"] for entry in entries if entry["split"] == split)
        if len(names) < count:
            raise TrainingError(
                "The cohort is too small for the ablation.",
                found=f"{len(names)} studies in its {split} split",
                expected=f"at least {count}",
                next_step="Make a larger cohort, or ask for fewer pairs, validation or test studies.",
            )
        order = generator(settings.data_seed, "ablation", split).permutation(len(names))
        drawn[split] = [names[int(n)] for n in order[:count]]
    out.mkdir(parents=True, exist_ok=True)
    manifests = {}
    for pairs in (settings.pairs, settings.fewer_pairs):
        if pairs:
            kept = {*drawn["train"][:pairs], *drawn["val"], *drawn["test"]}
            manifests[pairs] = out / f"pairs-{pairs}.jsonl"
            write_manifest(manifests[pairs], [entry for entry in entries if entry["study"] in kept])
    # What the figures rest on, for a reader of the table.
    write_text(out / "studies.json", json.dumps(drawn, indent=1) + "\n")
    return manifests


def fingerprint(cohort: Path, data: Path) -> str:
    """Of the records behind the drawn studies: the same seed of another generator makes other cases under the same names."""
    drawn = json.loads((data / "studies.json").read_text(encoding="utf-8"))
    digest = hashlib.blake2b(digest_size=16)
    for study in sorted(study for names in drawn.values() for study in names):
        digest.update((cohort / study / RECORD).read_bytes())
    return digest.hexdigest()


def findings_of(cohort: Path, study: str) -> list[FindingRecord]:
    """The truth of one study."""
    record = json.loads((cohort / study / RECORD).read_text(encoding="utf-8"))
    return [FindingRecord.from_dict(entry) for entry in record["findings"]]


def facts_by_study(cohort: Path, studies: list[str]) -> list[Facts]:
    """What a reader who makes no mistake would know of each study."""
    return [facts_of(findings_of(cohort, study)) for study in studies]


def truth_table(cohort: Path, studies: list[str]) -> tuple[list[str], NDArray[np.float64]]:
    """(findings, [N, F]): 1 present, 0 absent, NaN uncertain or not assessed."""
    names = [finding.name for finding in ontology().findings]
    table = np.full((len(studies), len(names)), np.nan)
    for row, study in enumerate(studies):
        for record in findings_of(cohort, study):
            if record.name in names:
                table[row, names.index(record.name)] = TRUTH.get(record.state, np.nan)
    return names, table
