"""Body cells: lungs belong to the body, the table and the room do not; shares and voxels of a box agree with a loop over voxels."""

from __future__ import annotations

import numpy as np
import pytest

from VelvetMedLib.ct.body_cells import BodyCells, body_cells, cell_step

SPACING = (2.0, 2.5, 5.0)


def phantom() -> tuple[np.ndarray, np.ndarray]:
    """HU of an elliptic body with two lungs open at the top, a thin table below it and a block of metal beside it; where the body is."""
    x, y, z = np.mgrid[:140, :110, :30]
    hu = np.full(x.shape, -1000, np.int16)
    body = ((x - 70) / 55) ** 2 + ((y - 50) / 38) ** 2 < 1
    hu[body] = 40
    for centre in (48, 92):
        hu[(((x - centre) / 16) ** 2 + ((y - 50) / 24) ** 2 < 1) & (z > 8)] = -870
    hu[:, 98:100] = 200
    hu[2:8, 2:8] = 3000
    return hu, body


def test_the_body_holds_its_lungs_and_neither_table_nor_room() -> None:
    hu, body = phantom()
    found = body_cells(hu, SPACING)
    told = found.voxels((0, 0, 0), found.shape)
    assert found.step == cell_step(SPACING) == (2, 2, 1) and found.shape == hu.shape
    assert not told[:, 96:].any() and not told[:10, :10].any() and told[48, 50, 20] and told[92, 50, 29]
    wrong = (told != body).mean()
    assert wrong < 0.03, f"{wrong:.1%} of the voxels"


def test_without_tissue_everything_is_body() -> None:
    assert body_cells(np.full((9, 9, 9), -1000, np.int16), SPACING).cells.all()


@pytest.mark.parametrize("start", [(0, 0, 0), (3, 5, 2), (-4, 2, -3), (8, 9, 5), (-20, 0, 0), (5, 40, 1)])
def test_share_and_voxels_of_a_box_are_those_of_a_loop_also_beyond_the_volume(start: tuple[int, int, int]) -> None:
    cells = np.random.default_rng(0).random((4, 5, 3)) < 0.5
    body, size = BodyCells(cells, (3, 2, 4), (11, 10, 9)), (7, 6, 8)
    want = np.zeros(size, bool)
    for at in np.ndindex(size):
        i, j, k = (a + b for a, b in zip(start, at, strict=True))
        want[at] = 0 <= i < 11 and 0 <= j < 10 and 0 <= k < 9 and cells[i // 3, j // 2, k // 4]
    assert np.array_equal(body.voxels(start, size), want)
    assert body.share(start, size) == pytest.approx(want.mean(), abs=1e-12)
