"""The shipped model on the real sample scan: both of its forms give one analysis, and the organs are where they are."""

from __future__ import annotations

from html import unescape
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.bundle import load_bundle
from VelvetMedLib.cohorts.sample import ATTRIBUTION
from VelvetMedLib.ct import read, read_labels, resample_labels
from VelvetMedLib.exports.pages import case_page
from VelvetMedLib.exports.view import case_view
from VelvetMedLib.reports import ontology
from VelvetMedLib.tasks import run_analysis

pytestmark = pytest.mark.sample


@pytest.fixture(scope="module")
def both(sample: Any) -> tuple[Any, Any]:
    bundle = load_bundle("demo")
    nifti, dicom = read(sample.ct), read(sample.dicom)
    return (nifti, run_analysis(nifti, bundle)), (dicom, run_analysis(dicom, bundle))


def test_dicom_and_nifti_of_one_scan_give_the_same_case(both: tuple[Any, Any]) -> None:
    (_, a), (_, b) = both
    assert [(f.name, f.state, f.probability) for f in a.case.findings] == [(f.name, f.state, f.probability) for f in b.case.findings]
    texts = [[s.text for part in done.case.report.sections for s in part.sentences] for done in (a, b)]
    assert texts[0] == texts[1]
    volumes = [{s.name: s.volume_ml for s in done.case.segments} for done in (a, b)]
    assert volumes[0].keys() == volumes[1].keys()
    assert all(volumes[0][name] == pytest.approx(volumes[1][name], rel=1e-3) for name in volumes[0])


def test_both_forms_carry_the_line_that_the_scans_licence_asks_for_and_the_page_shows_it(both: tuple[Any, Any]) -> None:
    for _, done in both:
        assert done.case.run["attribution"] == ATTRIBUTION
        page = unescape(case_page(case_view(done.case), None, None))
        assert ATTRIBUTION in page and "CC BY 3.0" in ATTRIBUTION
        assert done.case.model.training_data in page and "LIDC-IDRI-0001" in done.case.model.training_data


def test_the_large_organs_of_the_sample_are_found_on_its_own_grid(both: tuple[Any, Any], sample: Any) -> None:
    # The atlas came from this scan: the figure checks the way from file to segments, not what the model knows of people.
    (volume, done), _ = both
    labels, grid = read_labels(sample.mask)
    merged = np.zeros(256, np.uint8)
    for structure in ontology().structures:
        merged[list(structure.source_ids)] = structure.label
    truth = merged[labels]
    if not grid.equals(volume.grid):
        truth = resample_labels(truth, grid, volume.grid)
    for name in ("liver", "spleen", "lung_upper_lobe_left", "lung_lower_lobe_right", "kidney_left", "aorta", "heart"):
        label = ontology().structure(name).label
        a, b = truth == label, done.segmentation_kji == label
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.75, name
