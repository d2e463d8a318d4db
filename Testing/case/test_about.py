"""Boxes of any orientation: what lies in them, how large they are, and how much of them lies in a scan."""

from __future__ import annotations

import numpy as np
import pytest

from VelvetMedLib.case import About

TURNED = np.array([[0.866, -0.5, 0.0], [0.5, 0.866, 0.0], [0.0, 0.0, 1.0]])


def turned(center: tuple[float, float, float] = (10.0, 20.0, 30.0)) -> About:
    """A box of 40 x 20 x 10 mm, turned by 30 degrees about S and mirrored."""
    matrix = np.eye(4)
    matrix[:3, :3] = TURNED @ np.diag([20.0, -10.0, 5.0])
    matrix[:3, 3] = center
    return About(box_to_ras=matrix.tolist())


def test_a_turned_and_mirrored_box_holds_what_lies_between_its_faces() -> None:
    box = turned()
    inside = np.array([[19.0, 0.0, 0.0], [0.0, 9.0, -4.0]]) @ TURNED.T + [10, 20, 30]
    outside = np.array([[21.0, 0.0, 0.0], [0.0, 11.0, 0.0], [0.0, 0.0, 6.0]]) @ TURNED.T + [10, 20, 30]
    assert box.holds(inside).all() and not box.holds(outside).any()
    assert np.allclose(box.size_mm, (40, 20, 10), atol=1e-2) and box.volume_ml == pytest.approx(8.0, rel=1e-3)
    low, high = box.bounds_ras_mm
    assert np.allclose(np.array(high) - low, (40 * 0.866 + 20 * 0.5, 40 * 0.5 + 20 * 0.866, 10), atol=1e-2)


def test_corners_may_be_given_in_any_order_and_survive_json() -> None:
    box = About.between((10, -5, 8), (0, 5, 2))
    assert box.bounds_ras_mm == ((0, -5, 2), (10, 5, 8)) and About.from_dict(box.as_dict()) == box
    assert str(box) == "box of 10 × 10 × 6 mm at RAS (5, 0, 5) mm" and str(About(segment="kidney_left")) == "kidney left"


@pytest.mark.parametrize("flip", [1.0, -1.0], ids=["right-handed", "left-handed"])
def test_the_share_in_an_oblique_scan_is_that_of_points_in_its_voxels(flip: float) -> None:
    affine = np.eye(4)
    affine[:3, :3] = TURNED @ np.diag([flip * 2.0, 3.0, 4.0])
    affine[:3, 3] = (-7.0, 5.0, 1.0)
    shape = (12, 10, 20)
    middle = affine @ [*((np.array(shape[::-1]) - 1) / 2), 1.0]
    assert turned(tuple(middle[:3])).share_in(shape, affine) == 1.0
    assert turned(tuple(middle[:3] + [0.0, 0.0, 200.0])).share_in(shape, affine) == 0.0
    # The middle of the last slice's outer face: half of the box is beyond it.
    face = affine @ [*((np.array(shape[:0:-1]) - 1) / 2), shape[0] - 0.5, 1.0]
    assert turned(tuple(face[:3])).share_in(shape, affine) == pytest.approx(0.5)


@pytest.mark.parametrize("wrong", [{}, {"segment": "liver", "box_to_ras": np.eye(4).tolist()}, {"box_to_ras": np.zeros((4, 4)).tolist()}])
def test_neither_nothing_nor_both_nor_a_flat_box_can_be_asked_about(wrong: dict) -> None:
    with pytest.raises(ValueError):
        About(**wrong)
