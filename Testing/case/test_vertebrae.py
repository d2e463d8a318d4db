"""Vertebral heights from disc to disc: a spine of known heights on any grid, and every reason for not measuring."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.case import Case, CaseFinding, Vertebra, report_markdown
from VelvetMedLib.case.editing import mark_edited
from VelvetMedLib.case.vertebrae import Heights, most_lost, vertebral_heights
from VelvetMedLib.ct import read, read_labels
from VelvetMedLib.reports import ontology
from VelvetMedLib.tasks.findings import with_heights

STEPS_MM = (1.5, 1.5, 2.5)
BODIES_MM = (26.0, 26.0, 24.0, 13.0, 23.0, 22.0, 22.0)
DISC_MM = 6.0
SQUEEZED = 3


def spine(wedge_mm: float = 0.0, steps: tuple[float, float, float] = STEPS_MM) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """HU, vertebrae, cord and affine of bodies between discs, indexed (S, A, R). wedge_mm: what the squeezed one lacks in front."""
    length = sum(BODIES_MM) + DISC_MM * (len(BODIES_MM) + 1) + 40.0
    s, a, r = np.meshgrid(*(np.arange(0.0, mm, step) for mm, step in zip((length, 90.0, 70.0), steps[::-1], strict=True)), indexing="ij")
    cord = (a - 20.0) ** 2 + (r - 35.0) ** 2 <= 5.0**2
    within = (a >= 29.0) & (a <= 52.0) & (np.abs(r - 35.0) <= 18.0)
    hu, bone = np.full(s.shape, 40.0), np.zeros(s.shape, bool)
    hu[within] = 80.0
    low = np.full(s.shape, 20.0 + DISC_MM)
    for n, height in enumerate(BODIES_MM):
        top = low + height - (wedge_mm * (a - 29.0) / 23.0 if n == SQUEEZED else 0.0)
        body = within & (s >= low) & (s <= top)
        hu[body] = np.where(np.minimum(s - low, top - s)[body] < 2.5, 320.0, 140.0)
        bone |= body
        low = top + DISC_MM
    return hu, bone, cord, np.diag([steps[0], steps[1], steps[2], 1.0])


@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_heights_and_the_loss_of_one_are_measured_on_any_grid(flips: tuple[int, ...], axes: tuple[int, int, int]) -> None:
    hu, bone, cord, affine = spine()
    for axis in flips:  # array axis (k, j, i) is column 2 - axis
        affine[:3, 3] += affine[:3, 2 - axis] * (hu.shape[axis] - 1)
        affine[:3, 2 - axis] *= -1
    arrays = [np.flip(x, flips).transpose(axes) for x in (hu, bone, cord)]
    affine[:3, :3] = affine[:3, [2 - axes[2 - column] for column in range(3)]]
    found = vertebral_heights(*arrays, affine)
    assert found.reason is None
    assert [v.middle_mm for v in found.vertebrae] == pytest.approx([height + DISC_MM for height in BODIES_MM[1:-1]], abs=2.0)
    worst = most_lost(found.vertebrae)
    assert worst is not None and worst.loss_fraction == pytest.approx(1 - 19 / 29, abs=0.08)
    middle_mm = 20.0 + sum(BODIES_MM[:SQUEEZED]) + DISC_MM * (SQUEEZED + 1) + BODIES_MM[SQUEEZED] / 2
    assert worst.center_ras_mm[2] == pytest.approx(middle_mm, abs=2.5)
    assert worst.center_ras_mm[0] == pytest.approx(35.0, abs=2.5) and worst.center_ras_mm[1] > 30.0


def test_a_wedge_is_lower_in_front() -> None:
    found = vertebral_heights(*spine(wedge_mm=7.0))
    worst = most_lost(found.vertebrae)
    assert worst is not None and worst.anterior_mm < worst.middle_mm < worst.posterior_mm


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("thick", "slices of 3 mm or less; these are 4 mm"),
        ("oblique", "oblique"),
        ("no cord", "spinal cord"),
        ("no spine", "too few discs"),
    ],
)
def test_what_cannot_be_measured_is_not_and_says_why(change: str, reason: str) -> None:
    hu, bone, cord, affine = spine(steps=(1.5, 1.5, 4.0) if change == "thick" else STEPS_MM)
    if change == "oblique":
        c, s = np.cos(0.3), np.sin(0.3)
        affine = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1.0]]) @ affine
    if change == "no cord":
        cord = np.zeros_like(cord)
    if change == "no spine":
        hu, bone = np.full_like(hu, 40.0), np.zeros_like(bone)
    found = vertebral_heights(hu, bone, cord, affine)
    assert found.vertebrae == () and found.reason is not None and reason in found.reason


def vertebra(loss: float | None) -> Vertebra:
    return Vertebra(center_ras_mm=(0.0, 0.0, -41.0), anterior_mm=20.0, middle_mm=21.0, posterior_mm=22.0, loss_fraction=loss)


def test_heights_are_told_beside_the_verdict_and_change_nothing_of_it() -> None:
    told = CaseFinding(
        name="vertebral_compression", display="vertebral compression fracture", state="absent", probability=0.1, reason="why"
    )
    other = CaseFinding(name="emphysema", display="emphysema", state="absent")
    after, same = with_heights((told, other), Heights((vertebra(None), vertebra(0.3)), None))
    assert same == other and replace(after, reason="why") == told
    assert after.reason is not None and "2 vertebrae" in after.reason and "S -41 mm" in after.reason and "30%" in after.reason
    assert with_heights((told,), Heights((), "because"))[0].reason == "why; because"


def test_heights_stand_in_the_markdown_and_are_marked_when_the_spine_was_edited(small_case: Case) -> None:
    cord = replace(small_case.segments[0], label=25, name="spinal_cord", display="spinal cord")
    case = replace(small_case, vertebrae=(vertebra(None),), segments=(cord,))
    assert "from below: 20/21/22.\n" in report_markdown(case)
    assert "from below: 20/21/22. Out of date" in report_markdown(mark_edited(case, ["spinal_cord"]))


@pytest.mark.sample
def test_on_the_sample_scan_no_vertebra_lacks_height_and_they_grow_downwards(sample: Any) -> None:
    volume, (mask, _grid) = read(sample.ct), read_labels(sample.mask)
    bone, cord = (np.isin(mask, ontology().structure(name).source_ids) for name in ("vertebrae", "spinal_cord"))
    found = vertebral_heights(volume.voxels_kji, bone, cord, volume.grid)
    heights = [v.middle_mm for v in found.vertebrae]
    assert len(heights) >= 11 and all(17.0 < h < 34.0 for h in heights)
    assert all(upper < lower + 2.0 for lower, upper in pairwise(heights))
    worst = most_lost(found.vertebrae)
    assert worst is not None and worst.loss_fraction is not None and worst.loss_fraction < 0.05
