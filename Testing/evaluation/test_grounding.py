"""Pointing: hits within one voxel, in physical space, beside the chance of a random point."""

from __future__ import annotations

import numpy as np
import pytest

from VelvetMedLib.ct import Grid
from VelvetMedLib.evaluation.grounding import Pointed, body_of, measures, point_at

FLIPPED = np.array([[-2.0, 0, 0, 30], [0, 0, 3.0, -5], [0, 4.0, 0, 7], [0, 0, 0, 1]])
"""An affine that mirrors and swaps axes: array order must not matter."""


@pytest.mark.parametrize(("off", "hit"), [((0, 0, 0), True), ((1, -1, 1), True), ((2, 0, 0), False), ((0, 0, -2), False)])
def test_a_peak_within_one_voxel_hits(off: tuple[int, int, int], hit: bool) -> None:
    grid = Grid((8, 9, 10), FLIPPED)
    mask = np.zeros(grid.shape_kji, bool)
    mask[4, 5, 6] = True
    x, y, z = (FLIPPED @ np.array([6 + off[0], 5 + off[1], 4 + off[2], 1.0]))[:3]
    pointed = point_at("lung_nodule", (x, y, z), mask, grid, np.ones_like(mask))
    assert pointed is not None and pointed.placed and pointed.hit is hit
    assert pointed.chance == pytest.approx(27 / 720)


def test_a_peak_beside_the_scan_and_no_peak_are_misses_and_an_empty_finding_is_not_asked() -> None:
    grid = Grid((4, 4, 4), np.eye(4))
    mask = np.zeros(grid.shape_kji, bool)
    body = np.ones_like(mask)
    assert point_at("lung_nodule", (0.0, 0.0, 0.0), mask, grid, body) is None
    mask[0, 0, 0] = True
    beside = point_at("lung_nodule", (-1.0, 0.0, 0.0), mask, grid, body)
    nowhere = point_at("lung_nodule", None, mask, grid, body)
    assert beside is not None and beside.placed and not beside.hit
    assert nowhere is not None and not nowhere.placed and not nowhere.hit


def test_the_body_is_tissue_and_the_organs_that_hold_air() -> None:
    hu, organs = np.array([-1000, -900, 40]), np.array([0, 10, 0])
    assert body_of(hu, organs).tolist() == [False, True, True]


def test_accuracy_counts_what_was_not_placed_as_missed() -> None:
    cases = [
        [
            Pointed(finding="emphysema", placed=True, hit=True, chance=0.5),
            Pointed(finding="lung_mass", placed=False, hit=False, chance=0.1),
        ],
        [],
        [Pointed(finding="emphysema", placed=True, hit=False, chance=0.3)],
    ]
    found = {name: float(measure(np.ones((1, 3)))[0]) for name, measure in measures(cases).items()}
    assert found["grounding/all/pointing"] == pytest.approx(1 / 3) and found["grounding/all/placed"] == pytest.approx(2 / 3)
    assert found["grounding/emphysema/chance"] == pytest.approx(0.4) and found["grounding/lung_mass/pointing"] == 0.0
