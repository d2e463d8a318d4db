"""Corrupted views: quarter turns in the right plane, boxes of the right size, donors from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from VelvetMedLib.objectives.corruption import XY_PLANE, choose_donor, corrupted_view, cut_out_boxes, turned


def crop(seed: int = 0, side: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).random((side, side, side), dtype=np.float32)


def test_a_quarter_turn_is_about_the_first_axis_and_moves_each_voxel_where_a_loop_says() -> None:
    x = crop(side=5)
    n = 5
    for i in range(n):
        for j in range(n):
            for k in range(n):
                assert turned(x, 1)[i, n - 1 - k, j] == x[i, j, k]
                assert turned(x, 1, XY_PLANE)[n - 1 - j, i, k] == x[i, j, k]
    assert np.array_equal(turned(turned(x, 3), 1), x) and np.array_equal(turned(x, 0), x)


def test_a_crop_with_unequal_sides_in_the_plane_is_refused() -> None:
    with pytest.raises(ValueError, match="its sides differ"):
        turned(np.zeros((4, 4, 5), np.float32), 1)


def test_boxes_have_sides_from_four_to_twenty_three_of_96_lie_inside_and_meet_the_budget_with_the_last_one() -> None:
    sides: set[int] = set()
    for seed in range(300):
        budget = np.random.default_rng(seed).uniform(0.0, 0.3) * 96**3
        boxes = cut_out_boxes((96, 96, 96), np.random.default_rng(seed))
        volumes = [int(np.prod([s.stop - s.start for s in box])) for box in boxes]
        assert sum(volumes) >= budget > sum(volumes[:-1])
        for box in boxes:
            assert all(0 <= s.start < s.stop <= 96 for s in box)
            sides |= {s.stop - s.start for s in box}
    assert sides == set(range(4, 24))


def test_outside_the_boxes_nothing_changes_noise_fills_zero_to_one_and_donor_boxes_hold_the_donor() -> None:
    x, donor = crop() * 0 + 5.0, crop(1) * 0 - 3.0
    seen_noise = seen_donor = 0
    for seed in range(20):
        view = corrupted_view(x, donor, np.random.default_rng(seed))
        assert np.array_equal(view.clean, turned(x, view.quarter_turns))
        inside = view.voxels[(view.voxels != 5.0) & (view.voxels != -3.0)]
        assert not len(inside) or (inside.min() >= 0 and inside.max() <= 1)
        seen_noise += len(inside)
        seen_donor += int((view.voxels == -3.0).sum())
    assert seen_noise and seen_donor


def test_donor_voxels_come_from_the_same_box_of_the_donor_as_it_lies() -> None:
    x, donor = np.zeros((24, 24, 24), np.float32) - 1, crop(1) + 10
    view = corrupted_view(x, donor, np.random.default_rng(2))
    taken = view.voxels >= 10
    assert taken.any() and np.array_equal(view.voxels[taken], donor[taken])


def test_the_same_key_gives_the_same_view_and_the_donor_does_not_disturb_the_draws() -> None:
    x = crop()
    a, b = (corrupted_view(x, crop(1), np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(a.voxels, b.voxels) and a.quarter_turns == b.quarter_turns
    without = corrupted_view(x, None, np.random.default_rng(3))
    other = corrupted_view(x, crop(2), np.random.default_rng(3))
    untouched = (a.voxels == without.voxels) & (other.voxels == without.voxels)
    assert without.quarter_turns == a.quarter_turns and untouched.mean() > 0.5
    turns = {corrupted_view(x, None, np.random.default_rng(n)).quarter_turns for n in range(30)}
    assert turns == {0, 1, 2, 3}


def test_tiny_crops_still_have_boxes_of_at_least_one_voxel() -> None:
    for seed in range(30):
        assert all(s.stop - s.start == 1 for box in cut_out_boxes((4, 4, 4), np.random.default_rng(seed)) for s in box)
        corrupted_view(crop(side=4), crop(1, side=4), np.random.default_rng(seed))


def test_a_donor_is_never_of_the_same_study_and_a_lonely_study_has_none() -> None:
    studies = np.array([5, 5, 7, 9, 5], dtype=np.int64)
    picked = {choose_donor(5, studies, np.random.default_rng(n)) for n in range(50)}
    assert picked == {2, 3}
    assert choose_donor(5, np.array([5, 5], dtype=np.int64), np.random.default_rng(0)) is None


def test_a_donor_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="the donor has shape"):
        corrupted_view(crop(), crop(side=20), np.random.default_rng(0))
