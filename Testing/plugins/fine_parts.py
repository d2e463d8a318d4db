"""Made-up fine parts for tests of findings and reports: boxes for organs and lesions where a test wants them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.ct import Grid
from VelvetMedLib.reports import ontology

ORGANS = {
    # name: (x, y, z) ranges on a 60 x 50 x 70 grid of 4 mm
    "lung_lower_lobe_right": ((34, 54), (12, 30), (30, 48)),
    "lung_upper_lobe_right": ((34, 54), (14, 36), (50, 66)),
    "lung_middle_lobe_right": ((34, 54), (31, 38), (30, 50)),
    "lung_lower_lobe_left": ((6, 24), (12, 30), (30, 48)),
    "lung_upper_lobe_left": ((6, 24), (14, 36), (49, 66)),
    "heart": ((20, 33), (24, 38), (32, 46)),
    "aorta": ((26, 32), (14, 20), (8, 50)),
    "trachea": ((29, 32), (24, 27), (50, 66)),
    "esophagus": ((29, 32), (21, 23), (40, 66)),
    "liver": ((30, 54), (14, 38), (6, 28)),
    "spleen": ((6, 14), (12, 22), (8, 28)),
    "stomach": ((14, 24), (26, 36), (10, 28)),
    "kidney_right": ((36, 42), (4, 12), (4, 20)),
    "kidney_left": ((16, 22), (4, 11), (4, 20)),
    "vertebrae": ((27, 33), (4, 12), (0, 70)),
    "spinal_cord": ((29, 31), (2, 4), (0, 70)),
}
SHAPE = (60, 50, 70)


def fine_part(lesions: dict[str, Any] | None = None, without: tuple[str, ...] = (), organs: dict[str, Any] | None = None) -> Any:
    """A FinePart with box-shaped organs; lesions: channel name -> list of (x, y, z) ranges."""
    from VelvetMedLib.tasks.encoding import FinePart, fine_maps
    from VelvetMedLib.tasks.tokens import lesion_tokens, region_tokens

    labels = np.zeros(SHAPE, np.uint8)
    hu = np.full(SHAPE, 30, np.int16)
    for name, box in {**ORGANS, **(organs or {})}.items():
        if name in without:
            continue
        place = tuple(slice(a, b) for a, b in box)
        labels[place] = ontology().structure(name).label
        hu[place] = -800 if name.startswith("lung") else 110 if name == "liver" else 115 if name == "spleen" else 50
    maps = np.zeros((17, *SHAPE), np.uint8)
    for name, boxes in (lesions or {}).items():
        for box in boxes:
            maps[(ontology().lesion(name).channel, *(slice(a, b) for a, b in box))] = 230
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [-120.0, -100.0, -140.0]
    in_view = np.zeros([n + 2 for n in SHAPE], bool)
    in_view[1:-1, 1:-1, 1:-1] = True
    low = affine[:3, 3] - 2
    part = FinePart(
        grid=Grid((SHAPE[2], SHAPE[1], SHAPE[0]), affine),
        body_box_ras=(low, low + 4.0 * np.array(SHAPE)),
        in_view=in_view,
        hu_xyz=hu,
        organs_xyz=labels,
        organ_maps=None,
        lesions_cxyz=maps,
        region_tokens=np.zeros((32, 77), np.float32),
        region_mask=np.zeros(32, bool),
        lesion_tokens=np.zeros((0, 108), np.float32),
        lesions=(),
    )
    from dataclasses import replace

    maps_of = fine_maps(part, np.zeros((48, 30, 25, 35), np.float32))
    regions, mask = region_tokens(maps_of)
    tokens, metas = lesion_tokens(maps_of)
    return replace(part, region_tokens=regions, region_mask=mask, lesion_tokens=tokens, lesions=metas)


@pytest.fixture(scope="session")
def make_fine() -> Callable[..., Any]:
    """`make_fine(lesions={"lung_nodule": [((36, 40), (20, 24), (54, 58))]}, without=("spleen",))` -> FinePart."""
    return fine_part
