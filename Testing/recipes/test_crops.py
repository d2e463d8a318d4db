"""Crops: every place with enough body is as likely as any other, none without it is taken; what a turn shows is where it says."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from VelvetMedLib.ct.body_cells import BodyCells
from VelvetMedLib.recipes.crops import (
    CropChanges,
    CropSettings,
    allowed_starts,
    central_start,
    changed_crop,
    cut,
    draw_start,
    iou,
    tile_starts,
    turned_crop,
)

SIZE = (4, 4, 4)


def corner_body() -> BodyCells:
    """A volume of 10 x 8 x 4 whose body is one corner."""
    cells = np.zeros((10, 8, 4), bool)
    cells[:5, :4] = True
    return BodyCells(cells, (1, 1, 1), (10, 8, 4))


def enough(body: BodyCells, least: float) -> set[tuple[int, ...]]:
    low, high = allowed_starts(body.shape, SIZE)
    every = product(*(range(int(a), int(b) + 1) for a, b in zip(low, high, strict=True)))
    return {start for start in every if body.voxels(start, SIZE).mean() >= least}


def test_starts_are_uniform_over_the_places_with_enough_body() -> None:
    body, draw = corner_body(), np.random.default_rng(0)
    legal = enough(body, 0.3)
    drawn = [tuple(draw_start(body, SIZE, draw, CropSettings()).tolist()) for _ in range(3000)]
    assert set(drawn) == legal and 5 < len(legal) < 35
    counts = np.array([drawn.count(place) for place in legal])
    assert abs(counts / 3000 - 1 / len(legal)).max() < 4 * np.sqrt(1 / len(legal) / 3000)


def test_where_no_place_has_enough_the_one_with_the_most_body_is_taken() -> None:
    cells = np.zeros((10, 8, 4), bool)
    cells[4, 4, 2] = True
    body = BodyCells(cells, (1, 1, 1), (10, 8, 4))
    start = draw_start(body, SIZE, np.random.default_rng(0), CropSettings())
    assert body.voxels(start.tolist(), SIZE).any()


def test_a_second_crop_overlaps_the_first_as_much_as_asked_and_freely_otherwise() -> None:
    body, draw = BodyCells(np.ones((12, 12, 12), bool), (1, 1, 1), (12, 12, 12)), np.random.default_rng(1)
    settings = CropSettings(least_iou=0.2)
    first = np.array([4, 4, 4])
    near = {tuple(draw_start(body, SIZE, draw, settings, near=first).tolist()) for _ in range(1500)}
    legal = {at for at in product(range(9), repeat=3) if iou(np.array(at), first, SIZE) >= 0.2}
    assert near == legal and len(legal) > 20
    free = [draw_start(body, SIZE, draw, CropSettings(), near=first) for _ in range(200)]
    assert any(iou(start, first, SIZE) == 0 for start in free)


def test_overlap_by_union_is_that_of_a_loop_over_voxels() -> None:
    for other in ([0, 0, 0], [1, 2, 0], [3, 3, 3], [4, 0, 0]):
        boxes = [{tuple(np.add(at, start)) for at in np.ndindex(SIZE)} for start in ([0, 0, 0], other)]
        want = len(boxes[0] & boxes[1]) / len(boxes[0] | boxes[1])
        assert iou(np.zeros(3, np.int64), np.array(other), SIZE) == pytest.approx(want)


def test_tiles_cover_the_body_and_a_volume_smaller_than_a_crop_has_one_place() -> None:
    body = corner_body()
    covered = np.zeros(body.shape, int)
    for start in tile_starts(body, SIZE, 0.0):
        covered[tuple(slice(int(a), int(a) + 4) for a in start)] += 1
    assert (covered > 0).all()
    assert {tuple(s.tolist()) for s in tile_starts(body, SIZE, 0.3)} <= enough(body, 0.3)
    small = BodyCells(np.ones((3, 2, 3), bool), (1, 1, 1), (3, 2, 3))
    assert len(tile_starts(small, SIZE, 0.3)) == 1 and tuple(central_start(small, SIZE)) == (-1, -1, -1)


def test_a_cut_beyond_the_volume_is_air() -> None:
    hu = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    padded = np.pad(hu, 6, constant_values=-1024)
    for start in ([0, 0, 0], [-2, 1, 3], [2, -5, 4], [9, 0, 0]):
        want = padded[tuple(slice(6 + a, 6 + a + 4) for a in np.clip(start, -6, 8))]
        if want.shape == SIZE:
            assert np.array_equal(cut(hu, np.array(start), SIZE), want)
    assert (cut(hu, np.array([9, 0, 0]), SIZE) == -1024).all()


def linear_field(shape: tuple[int, int, int]) -> np.ndarray:
    x, y, z = np.mgrid[: shape[0], : shape[1], : shape[2]]
    return (10 * x + 100 * y - 50 * z).astype(np.int16)


@pytest.mark.parametrize("degrees", [0.001, 4.0, -10.0])
@pytest.mark.parametrize("axis", [(0.0, 0.0, 1.0), (1.0, 2.0, -0.5)])
def test_a_turned_crop_of_a_linear_field_is_the_field_at_the_turned_places(degrees: float, axis: tuple[float, ...]) -> None:
    # Rodrigues' formula about the crop's centre; linear interpolation of a linear field is exact.
    hu, size, start = linear_field((40, 44, 48)), (8, 6, 10), np.array([15, 18, 20])
    k, angle = np.array(axis) / np.linalg.norm(axis), np.radians(degrees)
    centre = start + (np.array(size) - 1) / 2
    found = turned_crop(hu, start, size, np.array(axis), degrees)
    for at in [(0, 0, 0), (7, 5, 9), (3, 1, 8)]:
        r = start + at - centre
        turned = r * np.cos(angle) + np.cross(k, r) * np.sin(angle) + k * np.dot(k, r) * (1 - np.cos(angle))
        assert found[at] == pytest.approx(float(np.dot([10, 100, -50], centre + turned)), abs=0.05)


def test_changed_crops_stay_in_range_differ_by_draw_and_without_changes_are_the_cut() -> None:
    hu, start, size = linear_field((40, 44, 48)), np.array([15, 18, 20]), (8, 8, 8)
    window = (-1000.0, 5000.0)
    made = [changed_crop(hu, start, size, window, np.random.default_rng(n), CropChanges()) for n in range(12)]
    assert all(m.dtype == np.float32 and m.min() >= 0 and m.max() <= 1 for m in made)
    assert not np.array_equal(made[0], made[1])
    again = changed_crop(hu, start, size, window, np.random.default_rng(0), CropChanges())
    assert np.array_equal(made[0], again)
    none = CropChanges(contrast=0, brightness=0, noise=0, blur_chance=0, turn_chance=0)
    plain = changed_crop(hu, start, size, window, np.random.default_rng(3), none)
    assert np.allclose(plain, np.clip((cut(hu, start, size) + 1000.0) / 6000, 0, 1), atol=1e-6)


def test_crops_are_never_mirrored() -> None:
    # The field grows to the right; a mirrored crop would grow to the left.
    hu, start = linear_field((40, 44, 48)), np.array([15, 18, 20])
    for n in range(40):
        made = changed_crop(hu, start, (8, 8, 8), (-3000.0, 6000.0), np.random.default_rng(n), CropChanges(noise=0))
        assert made[:, :, :].mean(axis=(0, 2))[-1] > made.mean(axis=(0, 2))[0] and made.mean(axis=(0, 1))[0] > made.mean(axis=(0, 1))[-1]
