"""Phantoms of known size: volumes within 2 %, diameters within one voxel, whatever the grid's axes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from VelvetMedLib.case import measure


def _grid(spacing: tuple[float, float, float], origin: tuple[float, float, float] = (-50.0, -50.0, -50.0)) -> np.ndarray:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def _rotation(degrees: float) -> np.ndarray:
    a, b = np.radians([degrees, degrees / 2])
    z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return z @ x


def _centred(linear: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = -linear @ ((np.array(shape[::-1]) - 1) / 2)
    return affine


@pytest.mark.parametrize(
    ("linear", "shape"),
    [
        (np.diag([1.0, 1.0, 1.0]), (64, 64, 64)),
        (np.diag([0.7, 0.7, 2.0]), (40, 90, 90)),
        (np.diag([-1.0, -1.0, 1.5]), (48, 64, 64)),
        (_rotation(20) @ np.diag([1.0, 1.0, 1.5]), (50, 70, 70)),
        (_rotation(-35) @ np.diag([-0.8, 0.9, 1.2]), (60, 84, 84)),
    ],
    ids=["isotropic", "anisotropic", "LPS", "oblique", "oblique left-handed"],
)
def test_a_spheres_volume_centre_and_box_hold_on_any_affine(ball, linear: np.ndarray, shape: tuple[int, int, int]) -> None:
    affine = _centred(linear, shape)
    centre, radius = np.array([2.0, -3.0, 1.0]), 20.0
    mask = ball(shape, affine, centre, radius)
    assert measure.volume_ml(mask, affine) == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.02)
    assert measure.centroid_ras(mask, affine) == pytest.approx(centre, abs=0.1)
    voxel = np.abs(linear).sum(axis=1)
    low, high = measure.box_ras(mask, affine)
    assert np.all(np.abs(np.array(low) - (centre - radius)) <= voxel)
    assert np.all(np.abs(np.array(high) - (centre + radius)) <= voxel)
    assert measure.craniocaudal_length_mm(mask, affine) == pytest.approx(2 * radius, abs=float(voxel[2]))


def test_box_and_centre_equal_the_slow_way_over_all_voxels() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((7, 8, 9)) < 0.05
    affine = _centred(_rotation(33) @ np.diag([1.1, -0.9, 2.0]), mask.shape)
    k, j, i = np.nonzero(mask)
    ras = affine[:3, :3] @ np.stack([i, j, k]) + affine[:3, 3:]
    half = np.abs(affine[:3, :3]).sum(1) / 2
    assert measure.centroid_ras(mask, affine) == pytest.approx(ras.mean(1))
    low, high = measure.box_ras(mask, affine)
    assert low == pytest.approx(ras.min(1) - half) and high == pytest.approx(ras.max(1) + half)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.8, 3.0), (4.0, 4.0, 4.0), (2.0, 1.0, 5.0)])
@pytest.mark.parametrize("radius", [8.0, 15.0, 22.0])
def test_a_spheres_diameters_are_right_within_one_voxel(ball, spacing: tuple[float, float, float], radius: float) -> None:
    affine = _grid(spacing)
    shape = tuple(int(100 / s) + 1 for s in spacing[::-1])
    mask = ball(shape, affine, (0.3, -0.4, 0.2), radius)
    axes = measure.axial_axes(mask, affine)
    assert axes.long_mm == pytest.approx(2 * radius, abs=max(spacing))
    assert axes.short_mm == pytest.approx(2 * radius, abs=max(spacing))


def test_a_boxes_diameters_are_its_diagonal_and_its_width(block) -> None:
    affine = _grid((1.0, 1.0, 2.0))
    mask = block((50, 100, 100), affine, (-20, -5, -20), (19, 4, 20))
    axes = measure.axial_axes(mask, affine)
    assert axes.long_mm == pytest.approx(np.hypot(40, 10), abs=1.0)
    assert measure.volume_ml(mask, affine) == pytest.approx(40 * 10 * 42 / 1000, rel=0.02)


def test_an_ellipse_has_a_short_axis_across_its_long_one() -> None:
    affine = _grid((0.5, 0.5, 1.0))
    a, r = np.indices((200, 200)) * 0.5 - 50
    turn = np.radians(30)
    u, v = r * np.cos(turn) + a * np.sin(turn), -r * np.sin(turn) + a * np.cos(turn)
    mask = np.zeros((5, 200, 200), bool)
    mask[2] = (u / 18) ** 2 + (v / 9) ** 2 <= 1
    axes = measure.axial_axes(mask, affine)
    assert axes == pytest.approx((36, 18), abs=0.8)


def test_diameters_are_the_same_for_all_48_orders_of_axes(ball) -> None:
    shape, spacing = (24, 40, 32), (1.5, 1.0, 2.0)
    affine = _grid(spacing, (-24, -20, -24))
    mask = ball(shape, affine, (2, 1, -1), 9.0) | ball(shape, affine, (10, 1, -1), 6.0)
    expected = measure.axial_axes(mask, affine), measure.volume_ml(mask, affine), measure.centroid_ras(mask, affine)
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            turned = mask.transpose([2 - o for o in order][::-1])
            linear = affine[:3, :3][:, list(order)].copy()
            turned_affine = np.eye(4)
            turned_affine[:3, 3] = affine[:3, 3]
            sizes = turned.shape[::-1]
            for axis, flip in enumerate(flips):
                if flip < 0:
                    turned = np.flip(turned, axis=2 - axis)
                    turned_affine[:3, 3] += linear[:, axis] * (sizes[axis] - 1)
                    linear[:, axis] *= -1
            turned_affine[:3, :3] = linear
            assert measure.axial_axes(turned, turned_affine) == pytest.approx(expected[0])
            assert measure.volume_ml(turned, turned_affine) == pytest.approx(expected[1])
            assert measure.centroid_ras(turned, turned_affine) == pytest.approx(expected[2])


def test_axial_diameters_refuse_an_oblique_grid_instead_of_measuring_wrongly(ball) -> None:
    affine = _centred(_rotation(20), (20, 20, 20))
    mask = ball((20, 20, 20), affine, (0, 0, 0), 5)
    for function in (measure.axial_axes, measure.longest_axial_diameter_mm, measure.aortic_diameter_mm):
        with pytest.raises(ValueError, match="parallel"):
            function(mask, affine)


def test_an_empty_mask_measures_nothing_and_does_not_fail() -> None:
    empty, affine = np.zeros((5, 6, 7), bool), np.eye(4)
    assert measure.volume_ml(empty, affine) == 0 and measure.longest_axial_diameter_mm(empty, affine) == 0
    assert measure.centroid_ras(empty, affine) is None and measure.box_ras(empty, affine) is None
    assert measure.mean_hu(empty.astype(float), empty) is None and not measure.touches_border(empty)
    assert measure.components(empty)[1] == 0 and measure.aortic_diameter_mm(empty, affine) is None
    assert measure.cardiothoracic_ratio(empty, empty, affine) is None and measure.lung_fraction(empty, empty) is None


def test_a_structure_that_meets_the_border_of_array_or_scan_is_noticed() -> None:
    inner = np.zeros((8, 8, 8), bool)
    inner[3:5, 3:5, 3:5] = True
    assert not measure.touches_border(inner)
    for axis, end in itertools.product(range(3), (0, 7)):
        edge = inner.copy()
        edge[tuple(slice(None) if a != axis else end for a in range(3))] |= True
        assert measure.touches_border(edge)
    covered = np.zeros((8, 8, 8), bool)
    covered[2:6, 2:6, 2:6] = True
    assert not measure.touches_border(inner, covered_kji=covered)
    covered[:, :, 5:] = False
    assert measure.touches_border(inner, covered_kji=covered)


def test_components_come_largest_first_and_small_ones_can_be_left_out() -> None:
    mask = np.zeros((10, 10, 10), bool)
    mask[1, 1, 1] = mask[4:7, 4:7, 4:7] = mask[9, 8:, 8:] = True
    labels, count = measure.components(mask)
    assert count == 3 and [int((labels == n).sum()) for n in (1, 2, 3)] == [27, 4, 1]
    assert measure.components(mask, min_voxels=2)[1] == 2
    assert [int(m.sum()) for m in measure.each_component(mask)] == [27, 4, 1]


def test_dominant_label_names_the_lobe_that_holds_most_of_a_lesion() -> None:
    labels = np.full((4, 4, 4), 9, np.uint8)
    labels[:, :, 2:] = 10
    lesion = np.zeros((4, 4, 4), bool)
    lesion[1, 1, 1:4] = True
    assert measure.dominant_label(lesion, labels, (9, 10)) == 10
    assert measure.dominant_label(lesion, labels, (11, 12)) is None


def test_the_cardiothoracic_ratio_compares_the_widest_heart_with_the_widest_lungs(block) -> None:
    affine, shape = _grid((2.0, 2.0, 4.0), (-100, -60, 0)), (20, 60, 101)
    lungs = block(shape, affine, (-90, -40, 8), (-50, 40, 60)) | block(shape, affine, (50, -40, 8), (90, 40, 60))
    heart = block(shape, affine, (-30, 0, 20), (62, 40, 40))
    assert measure.cardiothoracic_ratio(heart, lungs, affine) == pytest.approx(92 / 180, abs=0.02)
    one_side = block(shape, affine, (50, -40, 8), (90, 40, 60))
    assert measure.cardiothoracic_ratio(heart, one_side, affine) is None


def test_lung_fraction_and_liver_minus_spleen_are_what_was_put_in() -> None:
    lungs = np.zeros((4, 4, 4), bool)
    lungs[:2] = True
    part = np.zeros((4, 4, 4), bool)
    part[0] = True
    assert measure.lung_fraction(part, lungs) == 0.5
    volume = np.where(lungs, 30.0, 52.0)
    volume[0, 0, 0] = 3000.0
    assert measure.liver_minus_spleen_hu(volume, lungs, ~lungs) == -22.0
    assert measure.mean_hu(volume, ~lungs) == 52.0


def test_the_height_of_a_flattened_vertebra_is_compared_with_its_neighbours(block) -> None:
    affine, shape = _grid((2.0, 2.0, 2.0), (-40, -60, 0)), (60, 60, 41)
    above, below = block(shape, affine, (-16, 0, 70), (16, 30, 93)), block(shape, affine, (-16, 0, 10), (16, 30, 33))
    spine = block(shape, affine, (-4, -40, 36), (4, 0, 50))
    flat = block(shape, affine, (-16, 0, 40), (16, 30, 55)) | spine
    assert measure.vertebral_height_mm(flat, affine) == pytest.approx(16, abs=2)
    assert measure.height_loss_fraction(flat, [above, below], affine) == pytest.approx(1 - 16 / 24, abs=0.05)
    flipped = affine.copy()
    flipped[1, 1], flipped[1, 3] = -2.0, -60 + 2.0 * 59
    assert measure.height_loss_fraction(flat[:, ::-1], [above[:, ::-1], below[:, ::-1]], flipped) == pytest.approx(1 - 16 / 24, abs=0.05)
    assert measure.height_loss_fraction(flat, [], affine) is None


def _aorta(rod, shape, affine, *, ascending: float = 15.0, descending: float = 12.0, abdominal: float = 10.0) -> np.ndarray:
    """Ascending and descending tube, an arch that joins them lengthwise, and the abdominal part below."""
    points = rod(shape, affine, (0, 30), ascending, 120, 200) | rod(shape, affine, (0, -30), descending, 40, 200)
    points |= rod(shape, affine, (0, -30), abdominal, 0, 40)
    k, j, i = np.indices(shape)
    a, s, r = affine[1, 1] * j + affine[1, 3], affine[2, 2] * k + affine[2, 3], affine[0, 0] * i + affine[0, 3]
    tube = (np.hypot(np.hypot(a, s - 200) - 30, r) <= 12) & (s >= 200)
    return points | tube


@pytest.mark.parametrize("spacing", [2.0, 4.0])
@pytest.mark.parametrize(
    ("sizes", "site", "diameter"),
    [
        ({"ascending": 23.0}, "ascending_aorta", 46.0),
        ({"descending": 22.0}, "descending_thoracic_aorta", 44.0),
        ({"abdominal": 24.0}, "abdominal_aorta", 48.0),
    ],
)
def test_the_widest_stretch_of_the_aorta_is_found_and_named(
    rod, spacing: float, sizes: dict[str, float], site: str, diameter: float
) -> None:
    shape = tuple(int(n / spacing) for n in (260, 140, 100))
    affine = _grid((spacing,) * 3, (-50, -70, -10))
    mask = _aorta(rod, shape, affine, **sizes)
    lungs = rod(shape, affine, (0, 0), 45, 36, 240) & ~mask
    for given in (lungs, None):
        found = measure.aortic_diameter_mm(mask, affine, lungs_kji=given)
        assert found.site == site
        assert found.diameter_mm == pytest.approx(diameter, abs=spacing)


@pytest.mark.parametrize("spacing", [2.0, 4.0])
def test_the_arch_cut_lengthwise_is_not_taken_for_a_wide_aorta(rod, spacing: float) -> None:
    shape = tuple(int(n / spacing) for n in (260, 140, 100))
    affine = _grid((spacing,) * 3, (-50, -70, -10))
    found = measure.aortic_diameter_mm(_aorta(rod, shape, affine, ascending=12.0, descending=12.0), affine)
    assert found.diameter_mm == pytest.approx(24.0, abs=1.5 * spacing)
