"""Rendering: the scanner treats everything alike, phases look like phases, and the sheet shows a patient the radiological way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from VelvetMedLib.cohorts import Cohort, CohortOptions, SyntheticCase, make_case
from VelvetMedLib.cohorts.atlas import load_atlas
from VelvetMedLib.cohorts.options import stream
from VelvetMedLib.cohorts.render import draw_scanner, scan, set_liver, smooth
from VelvetMedLib.cohorts.sheet import SHEET, draw_sheet, planes
from VelvetMedLib.cohorts.tissues import draw_tissues
from VelvetMedLib.reports import ontology

RNG = np.random.default_rng(2)


@pytest.mark.parametrize("sigma", [0.4, 0.8, 1.3])
def test_blur_equals_scipy(sigma: float) -> None:
    array = RNG.normal(size=(12, 13, 14)).astype(np.float32)
    reach = max(1, int(np.ceil(2.5 * sigma)))
    expected = gaussian_filter(array, sigma, mode="nearest", truncate=reach / sigma)
    np.testing.assert_allclose(smooth(array, sigma), expected, atol=2e-3)


def test_thick_slices_average_their_neighbours_and_noise_has_the_drawn_strength() -> None:
    drawn = draw_scanner(CohortOptions(), stream(1, "rendering"))
    scanner = replace(drawn, blur_mm=0.0, noise_hu=0.0, thickness=2, offset_hu=0.0, gain=1.0)
    hu = RNG.normal(0, 100, (8, 6, 6)).astype(np.float32)
    out = scan(hu, scanner, 4.0, stream(1, "noise"))
    np.testing.assert_allclose(out[0], (hu[0] + hu[1]) / 2, atol=1e-3)
    np.testing.assert_array_equal(out[2], out[3])
    for grain in (0.0, 8.0):
        noisier = replace(scanner, noise_hu=20.0, noise_grain_mm=grain, thickness=1)
        noisy = scan(np.zeros((40, 40, 40), np.float32), noisier, 4.0, stream(2, "noise"))
        assert noisy.std() == pytest.approx(20.0, rel=0.05)


def test_phases_look_like_phases() -> None:
    names = load_atlas().tissues
    drawn = [draw_tissues(names, stream(seed, "rendering")) for seed in range(300)]

    def mean(phase: str, tissue: str) -> float:
        return float(np.mean([d.mean_hu[names.index(tissue)] for d in drawn if d.phase == phase]))

    assert mean("native", "aorta_blood") < 60 < 200 < mean("arterial", "aorta_blood")
    assert mean("portal", "liver") > mean("native", "liver") + 25
    assert mean("portal", "portal_vein") > mean("arterial", "portal_vein")
    assert mean("arterial", "renal_cortex") > mean("arterial", "renal_medulla") + 40


def test_the_liver_lies_at_the_drawn_distance_from_the_spleen_unless_the_phase_forbids_it() -> None:
    names = load_atlas().tissues
    met = set()
    for seed in range(40):
        before = draw_tissues(names, stream(seed, "rendering"))
        after = set_liver(before, names, -30.0)
        difference = after.mean_hu[names.index("liver")] - after.mean_hu[names.index("spleen")]
        if before.phase == "arterial":
            assert after is before
        else:
            assert difference == pytest.approx(-30.0, abs=1e-3)
        met.add(before.phase)
    assert len(met) == 4


def test_lungs_are_dark_and_bones_bright_in_every_case(cases: list[SyntheticCase]) -> None:
    for case in cases:
        lungs = np.isin(case.organs_kji, range(9, 14)) & (case.lesions_kji == 0)
        bone = case.organs_kji == ontology().structure("vertebrae").label
        if lungs.sum() > 500:
            assert np.median(case.volume.voxels_kji[lungs]) < -650
        if bone.sum() > 100:
            assert np.median(case.volume.voxels_kji[bone]) > 60


def test_volumes_are_plausible_ct(cases: list[SyntheticCase]) -> None:
    for case in cases:
        voxels = case.volume.voxels_kji
        assert voxels.dtype == np.int16 and voxels.min() >= -1024 and voxels.max() <= 3071
        body = (voxels > -300).mean()
        assert 0.08 < body < 0.95


def test_outside_a_circular_field_of_view_there_is_nothing(cases: list[SyntheticCase]) -> None:
    with_circle = [c for c in cases if c.facts["view"]["circle"]]
    assert with_circle
    for case in with_circle:
        corner = case.volume.voxels_kji[:, 0, 0]
        assert (corner == -1024).all() or case.volume.shape_kji[2] < 80
        assert not case.organs_kji[:, 0, 0].any()


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_body(small_options: CohortOptions) -> None:
    first, again, other = make_case(77, small_options), make_case(77, small_options), make_case(78, small_options)
    assert first.volume.sha256() == again.volume.sha256() != other.volume.sha256()
    np.testing.assert_array_equal(first.lesions_kji, again.lesions_kji)
    assert first.records == again.records


def test_planes_show_the_patients_right_on_the_left_and_the_head_up() -> None:
    array = np.zeros((5, 6, 7))
    array[4, 5, 6] = 1  # most superior, anterior, right
    axial, coronal, sagittal = planes(array, (4, 5, 6))
    assert axial[0, 0] == 1  # front up, patient's right on the image's left
    assert coronal[0, 0] == 1  # head up
    assert sagittal[0, 0] == 1  # head up, front on the left


def test_the_contact_sheet_is_drawn(cohort: Cohort, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = draw_sheet(cohort, most=2, path=tmp_path / SHEET)
    assert path is not None and path.read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in tmp_path.iterdir()] == [SHEET]
