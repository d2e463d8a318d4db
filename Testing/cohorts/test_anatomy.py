"""Deformation: fast paths equal slow ones, nothing folds, no body is mirrored, and variety is real."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from VelvetMedLib.cohorts import CohortOptions, SyntheticCase
from VelvetMedLib.cohorts.anatomy import Growth, draw_body, draw_view, sample_linear, upsample_steps
from VelvetMedLib.cohorts.atlas import load_atlas
from VelvetMedLib.cohorts.growth import Compression
from VelvetMedLib.cohorts.options import stream
from VelvetMedLib.reports import ontology

RNG = np.random.default_rng(5)


def test_linear_sampling_equals_scipy() -> None:
    volume = RNG.normal(size=(9, 8, 7)).astype(np.float32)
    index = RNG.uniform(0, 5.9, (3, 4, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(sample_linear(volume, index), map_coordinates(volume, index, order=1), atol=2e-5)


def test_one_axis_at_a_time_upsampling_equals_sampling_at_every_point() -> None:
    field = RNG.normal(size=(7, 6, 8)).astype(np.float32)
    starts, steps, shape = np.array([0.3, 0.0, 1.2], np.float32), (0.4, 0.25, 0.6), (10, 12, 8)
    index = np.stack(np.meshgrid(*[s + np.arange(n) * d for s, n, d in zip(starts, shape, steps, strict=True)], indexing="ij"))
    np.testing.assert_allclose(upsample_steps(field, starts, steps, shape), map_coordinates(field, index, order=1), atol=2e-5)


@pytest.mark.parametrize("gain", [-0.93, -0.4, 0.0, 0.45, 1.0])
def test_a_growth_never_folds_space(gain: float) -> None:
    line = np.linspace(-150, 150, 601, dtype=np.float32)
    points = np.zeros((3, 601, 1, 1), np.float32)
    points[0, :, 0, 0] = line
    Growth(center_sar=(0.0, 0.0, 0.0), gain=gain, radius_mm=30.0).apply(points)
    assert (np.diff(points[0, :, 0, 0]) > 0).all()


def test_a_growth_of_gain_zero_moves_nothing() -> None:
    points = RNG.normal(0, 50, (3, 5, 5, 5)).astype(np.float32)
    before = points.copy()
    Growth(center_sar=(0.0, 0.0, 0.0), gain=0.0, radius_mm=30.0).apply(points)
    np.testing.assert_array_equal(points, before)


@pytest.mark.parametrize("loss", [0.0, 0.25, 0.6])
def test_a_compressed_vertebra_loses_the_drawn_share_of_its_height(loss: float) -> None:
    z = np.linspace(-40, 40, 1601, dtype=np.float32)
    points = np.zeros((3, len(z), 1, 1), np.float32)
    points[0, :, 0, 0] = z
    Compression(center_sar=(0.0, 0.0, 0.0), height_mm=24.0, loss=loss).apply(points)
    source = points[0, :, 0, 0]
    inside = np.abs(source) < 12
    assert inside.sum() * 0.05 == pytest.approx(24.0 * (1 - loss), abs=0.2)
    assert (np.diff(source) > 0).all()


def test_no_body_is_mirrored(cases: list[SyntheticCase]) -> None:
    checked = 0
    for case in cases:

        def center(name: str, case: SyntheticCase = case) -> float | None:
            where = np.nonzero(case.organs_kji == ontology().structure(name).label)[2]
            return float(where.mean()) if len(where) > 30 else None

        for right, left in (("liver", "spleen"), ("kidney_right", "kidney_left"), ("lung_lower_lobe_right", "lung_lower_lobe_left")):
            r, l = center(right), center(left)
            if r is not None and l is not None:
                assert r > l, f"{right} lies left of {left} (seed {case.seed})"
                checked += 1
    assert checked > 10


def test_every_grid_is_ras_and_axis_aligned_at_the_asked_spacing(cases: list[SyntheticCase]) -> None:
    for case in cases:
        np.testing.assert_allclose(case.volume.ijk_to_ras[:3, :3], 4.0 * np.eye(3))
        assert case.volume.shape_kji == case.organs_kji.shape == case.lesions_kji.shape


def test_bodies_differ_in_size_fat_and_organ_proportions() -> None:
    atlas = load_atlas()
    facts = [draw_body(atlas, stream(seed, "anatomy")).facts for seed in range(8)]
    assert np.std([f["size"] for f in facts]) > 0.04
    assert max(f["fat"] for f in facts) / min(f["fat"] for f in facts) > 1.8
    assert np.std([f["organ_gain"]["liver"] for f in facts]) > 0.05


def test_forward_undoes_the_source_map() -> None:
    atlas = load_atlas()
    body = draw_body(atlas, stream(3, "anatomy"))
    for name in ("liver", "heart", "spleen"):
        point = atlas.centers_sar[name]
        at = body.forward(point)
        index = ((at - body.origin_sar) / 10.0).astype(np.float32).reshape(3, 1, 1, 1)
        back = np.array([sample_linear(body.source[axis], index)[0, 0, 0] for axis in range(3)])
        assert np.abs(back - point).max() < 6.0


def test_views_are_of_four_kinds_and_stay_within_the_largest_grid() -> None:
    atlas, options = load_atlas(), CohortOptions()
    views = [draw_view(atlas, draw_body(atlas, stream(s, "anatomy")), options, stream(s, "view")) for s in range(14)]
    assert len({v.name for v in views}) >= 3
    for view in views:
        assert all(n <= most for n, most in zip(view.shape_kji[::-1], options.largest_shape_ijk, strict=True))
