"""A search by words also weighs what they state of findings; a search by scan stays the plain cosine."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.reports import FindingRecord, ontology, parse_report
from VelvetMedLib.tasks import Index, encode
from VelvetMedLib.tasks.findings import calibrated, finding_logits
from VelvetMedLib.tasks.indexing import _Source
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.statements import kept_row, log_ratios, stated, weighs_statements
from VelvetMedLib.tasks.store import Facts, create_store
from VelvetMedLib.tasks.text_vectors import text_vectors

TEXT = "There is a pleural effusion on the left. No pneumothorax. A lung nodule cannot be excluded."


@pytest.fixture
def weighing_bundle(random_bundle_folder: Path) -> Any:
    """A random bundle that knows how often its findings occur, and calls them with very different certainty."""
    import torch

    from VelvetMedLib.bundle import load_bundle

    bundle = load_bundle(random_bundle_folder)
    assert not weighs_statements(bundle)
    shares = np.linspace(0.05, 0.6, len(bundle.config.findings))
    findings = tuple(replace(entry, prevalence=round(float(p), 3)) for entry, p in zip(bundle.config.findings, shares, strict=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        torch.nn.init.normal_(bundle.model.findings.weight, std=2.0)
    return replace(bundle, config=replace(bundle.config, findings=findings))


def by_hand(encoding: Any, bundle: Any, records: list[FindingRecord], told: dict[str, str]) -> float:
    """The sum of log-ratios of what is stated, in the plainest words of Python."""
    total = 0.0
    for record, logit in zip(records, finding_logits(encoding, bundle), strict=True):
        entry = bundle.config.finding(record.name)
        p = {"present": 1.0, "absent": 0.0}.get(told.get(record.name, ""), calibrated(entry, float(logit)))
        p = min(max(p, 0.01), 0.99)
        if record.state == "present":
            total += math.log(p / entry.prevalence)
        if record.state == "absent":
            total += math.log((1 - p) / (1 - entry.prevalence))
    return total


def test_words_find_by_cosine_plus_what_they_state_and_scans_by_cosine_alone(
    weighing_bundle: Any, make_body: Callable[..., Any], tmp_path: Path
) -> None:
    bundle, records = weighing_bundle, parse_report(TEXT)
    assert weighs_statements(bundle) and {r.state for r in records} == {"present", "absent", "uncertain", "not_assessed"}
    scans = [make_body((24, 20, 24), seed=seed) for seed in range(3)]
    encodings = [encode(scan, bundle) for scan in scans]
    # The last scan has a report beside it, which overrules the model.
    (tmp_path / "scan.txt").write_text("Findings: Large left pleural effusion. No pneumothorax.", encoding="utf-8")
    told = {"pleural_effusion": "present", "pneumothorax": "absent"}
    made = Facts(encoding_key=bundle.encoding_key, dimension=len(kept_row(encodings[0], bundle)), region_dimension=77)
    with closing(create_store(tmp_path / "index", made)) as store:
        for n, scan in enumerate(scans):
            source = _Source(tmp_path / ("scan.nii.gz" if n == 2 else "other.nii.gz"), scan.sha256(), None, scan)
            store.add([source.item(bundle, Run(), keep_text=False, keep_place=False)])
    vector, scale = text_vectors([[s + "." for s in TEXT.rstrip(".").split(". ")]], bundle)[0], float(bundle.model.contrast_scale())
    cosine = {n: float(encoding.study_vector @ vector) for n, encoding in enumerate(encodings, 1)}
    wanted = {n: cosine[n] + by_hand(e, bundle, records, told if n == 3 else {}) / scale for n, e in enumerate(encodings, 1)}
    with Index(tmp_path / "index", bundle) as index:
        by_words = {hit.number: hit.similarity for hit in index.by_text(TEXT, count=3)}
        by_scan = {hit.number: hit.similarity for hit in index.by_vector(encodings[1].study_vector, count=3)}
    assert by_words == {n: pytest.approx(score, abs=2e-3) for n, score in wanted.items()}
    assert any(abs(wanted[n] - cosine[n]) > 0.02 for n in wanted)
    assert by_scan == {n: pytest.approx(float(e.study_vector @ encodings[1].study_vector), abs=1e-3) for n, e in enumerate(encodings, 1)}


def test_a_scan_like_any_other_neither_supports_nor_speaks_against_a_statement() -> None:
    prevalence = np.array([0.1, 0.4, 0.7])
    assert log_ratios(prevalence, prevalence) == pytest.approx(np.zeros(6), abs=1e-6)
    sure = log_ratios(np.array([1.0, 0.0, 0.5]), prevalence)
    assert np.isfinite(sure).all() and sure[0] == pytest.approx(math.log(9.9)) and sure[1] == pytest.approx(math.log(0.01 / 0.4))


def test_only_what_a_text_leaves_no_doubt_about_counts_as_stated() -> None:
    names = ontology().finding_names
    said = stated(parse_report(TEXT))
    assert [names[n % len(names)] for n in np.flatnonzero(said)] == ["pleural_effusion", "pneumothorax"]
    assert np.flatnonzero(said).tolist() == [names.index("pleural_effusion"), len(names) + names.index("pneumothorax")]
