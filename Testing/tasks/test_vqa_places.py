"""Questions put to a segment or a box: in patient millimetres, whatever way the scan lies and the box is turned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.case import About, CaseFinding, Link, Overruling
from VelvetMedLib.ct import from_array
from VelvetMedLib.ct.views import fine_view
from VelvetMedLib.reports import ontology
from VelvetMedLib.tasks.encoding import FinePart, fine_maps
from VelvetMedLib.tasks.evidence import Evidence
from VelvetMedLib.tasks.segmentation import segments_of
from VelvetMedLib.tasks.tokens import lesion_tokens, region_tokens
from VelvetMedLib.tasks.vqa import Known, Planned, plan_answer
from VelvetMedLib.tasks.vqa.places import SUBCELLS, Place

# Spheres in RAS mm: centre, radius, HU. The nodule lies in the left lung, a smaller second one at its edge to the outside.
SPHERES = {
    "lung_lower_lobe_left": ((-42.0, 0.0, 20.0), 34.0, -800.0),
    "lung_lower_lobe_right": ((42.0, 0.0, 20.0), 34.0, -800.0),
    "liver": ((35.0, 5.0, -52.0), 30.0, 110.0),
}
NODULES = (((-44.0, 2.0, 22.0), 9.0), ((-56.0, -4.0, 4.0), 6.0))
TURN = np.array([[0.94, -0.34, 0.0], [0.34, 0.94, 0.0], [0.0, 0.0, 1.0]])
DIRECTIONS = {
    "axis-aligned": np.eye(3),
    "oblique": TURN @ np.array([[1.0, 0, 0], [0, 0.966, -0.259], [0, 0.259, 0.966]]),
    "left-handed and oblique": TURN @ np.diag([-1.0, 1.0, 1.0]),
}


def hu_at(ras: np.ndarray) -> np.ndarray:
    hu = np.where((ras[..., 0] / 100) ** 2 + (ras[..., 1] / 80) ** 2 < 1, 40.0, -1000.0)
    for centre, radius, value in (*SPHERES.values(), *((c, r, 30.0) for c, r in NODULES)):
        hu[((ras - centre) ** 2).sum(-1) < radius**2] = value
    return hu


def places_of(affine: np.ndarray, shape_kji: tuple[int, ...]) -> np.ndarray:
    """RAS mm of every voxel, [k, j, i, 3]."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in shape_kji), indexing="ij")
    return np.stack([i, j, k], -1) @ affine[:3, :3].T + affine[:3, 3]


def made(directions: np.ndarray) -> tuple[Known, Any]:
    """A case of a made-up body: voxels and maps from the same spheres, each on its own grid."""
    affine = np.eye(4)
    affine[:3, :3] = directions @ np.diag([2.5, 3.0, 4.0])
    shape = (48, 76, 100)
    affine[:3, 3] = np.array([0.0, 0.0, -15.0]) - affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
    volume = from_array(hu_at(places_of(affine, shape)).astype(np.int16), affine)
    view = fine_view(volume)
    ras = places_of(view.grid.ijk_to_ras, view.grid.shape_kji).transpose(2, 1, 0, 3)
    organs, lesions = np.zeros(ras.shape[:3], np.uint8), np.zeros((17, *ras.shape[:3]), np.uint8)
    for name, (centre, radius, _) in SPHERES.items():
        organs[((ras - centre) ** 2).sum(-1) < radius**2] = ontology().structure(name).label
    for centre, radius in NODULES:
        lesions[0][((ras - centre) ** 2).sum(-1) < radius**2] = 230
    fine = FinePart(
        grid=view.grid, body_box_ras=view.body_box_ras, in_view=view.in_view, hu_xyz=np.rint(view.hu_xyz).astype(np.int16),
        organs_xyz=organs, organ_maps=None, lesions_cxyz=lesions, region_tokens=np.zeros((32, 77), np.float32),
        region_mask=np.zeros(32, bool), lesion_tokens=np.zeros((0, 108), np.float32), lesions=(),
    )  # fmt: skip
    maps = fine_maps(fine, np.zeros((48, *((n + 1) // 2 for n in organs.shape)), np.float32))
    regions, mask = region_tokens(maps)
    _, metas = lesion_tokens(maps)
    fine = FinePart(**{**vars(fine), "region_tokens": regions, "region_mask": mask, "lesions": metas})
    labels = np.zeros(shape, np.uint8)
    here = places_of(affine, shape)
    for name, (centre, radius, _) in SPHERES.items():
        labels[((here - centre) ** 2).sum(-1) < radius**2] = ontology().structure(name).label
    facts = {"side": "left", "site": "lung_lower_lobe_left", "size_mm": 18.0, "count": 2, "volume_ml": 4.0}
    link = Link(kind="lesion", label=101, center_ras_mm=NODULES[0][0])
    findings = (
        CaseFinding(name="lung_nodule", display="lung nodule", state="present", probability=0.9, link=link, **facts),
        CaseFinding(name="liver_lesion", display="liver lesion", state="absent", probability=0.1),
        CaseFinding(name="hepatic_steatosis", display="hepatic steatosis", state="uncertain", probability=0.4),
    )
    thresholds = (0.5,) * 17
    evidence = Evidence(fine, thresholds)
    return Known(findings, segments_of(labels, volume, volume.grid), evidence, {}, thresholds, volume.grid), volume


@pytest.fixture(scope="module")
def cases() -> Callable[[str], Known]:
    kept: dict[str, Known] = {}

    def case(name: str) -> Known:
        if name not in kept:
            kept[name] = made(DIRECTIONS[name])[0]
        return kept[name]

    return case


def turned(centre: tuple[float, float, float], size_mm: tuple[float, float, float]) -> About:
    """A box turned about S and mirrored, as a region of interest under a transform can be."""
    matrix = np.eye(4)
    matrix[:3, :3] = TURN.T @ np.diag([-size_mm[0] / 2, size_mm[1] / 2, size_mm[2] / 2])
    matrix[:3, 3] = centre
    return About(box_to_ras=matrix.tolist())


def ask(known: Known, question: str, about: About) -> Planned:
    return plan_answer(question, known, about)


def number(text: str, unit: str) -> float:
    import re

    found = re.search(rf"(-?\d+(?:\.\d+)?) {unit}", text)
    assert found is not None, text
    return float(found.group(1))


@pytest.mark.parametrize("way", DIRECTIONS)
def test_a_turned_box_sees_the_same_body_however_the_scan_lies(cases: Callable[[str], Known], way: str) -> None:
    known = cases(way)
    nodule, liver = turned(NODULES[0][0], (20.0, 20.0, 20.0)), turned(SPHERES["liver"][0], (24.0, 16.0, 20.0))
    found = ask(known, "Is there a nodule?", nodule)
    assert found.text.startswith("Yes.") and np.allclose(found.link.center_ras_mm, NODULES[0][0], atol=4.0)
    # Two thirds of the box are the nodule at 30 HU, the rest is lung at -800: what the same box holds of the scan's own body.
    grid = np.stack(np.meshgrid(*[np.linspace(-0.99, 0.99, 40)] * 3, indexing="ij"), -1)
    truth = hu_at(grid @ nodule.matrix[:3, :3].T + nodule.matrix[:3, 3]).mean()
    assert number(ask(known, "mean HU?", nodule).text, "HU") == pytest.approx(truth, abs=45)
    assert ask(known, "volume?", nodule).text.startswith("Box of 20 × 20 × 20 mm at RAS (-44, 2, 22) mm: 8.0 ml.")
    assert number(ask(known, "mean density of the liver", liver).text, "HU") == pytest.approx(110, abs=3)
    assert number(ask(known, "volume of the liver?", liver).text, "ml") == pytest.approx(24 * 16 * 20 / 1000, rel=0.03)
    assert ask(known, "Is there a nodule?", liver).text.startswith("No, not in this box: lung nodule is seen elsewhere (left lower lobe)")
    everything = ask(known, "What is here?", nodule)
    assert everything.text.startswith("Lung nodule.") and "left lower lobe 100 %" in everything.text and everything.link == found.link


@pytest.mark.parametrize("way", DIRECTIONS)
def test_a_box_beyond_the_scan_is_refused_and_one_across_its_border_says_so(cases: Callable[[str], Known], way: str) -> None:
    known = cases(way)
    far = ask(known, "Is there a nodule?", turned((0.0, 0.0, 400.0), (20.0, 20.0, 20.0)))
    assert far.unanswered == "out_of_view" and "outside of the scan" in far.text
    assert known.scan is not None
    face = known.scan.ijk_to_ras @ [*((np.array(known.scan.shape_kji[:0:-1]) - 1) / 2), known.scan.shape_kji[0] - 0.5, 1.0]
    half = ask(known, "mean HU?", About.between(tuple(face[:3] - 12), tuple(face[:3] + 12)))
    assert number(half.text.rpartition(". ")[2], "%") == pytest.approx(50, abs=4)


def test_cells_count_by_the_share_of_them_that_lies_in_the_box(cases: Callable[[str], Known]) -> None:
    known, box = cases("oblique"), turned((-44.0, 2.0, 22.0), (13.0, 17.0, 9.0))
    place = Place.of_box(known.evidence, box)
    assert place.volume_ml == pytest.approx(13 * 17 * 9 / 1000, rel=0.15)
    grid = known.evidence.fine.grid
    steps = (np.arange(SUBCELLS) + 0.5) / SUBCELLS - 0.5
    points = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    for cell in np.argwhere(place.share_xyz > 0)[::7]:
        ras = (points + cell) @ grid.ijk_to_ras[:3, :3].T + grid.ijk_to_ras[:3, 3]
        assert place.share_xyz[tuple(cell)] == pytest.approx(box.holds(ras).mean())


@pytest.mark.parametrize(
    ("segment", "question", "start"),
    [
        ("lung_lower_lobe_left", "Is there a nodule?", "Yes. "),
        ("lung_lower_lobe_left", "How many nodules are there?", "Two."),
        ("lung_lower_lobe_right", "Is there a nodule?", "No, not in the right lower lobe: lung nodule is seen elsewhere ("),
        ("liver", "Is there a nodule in it?", "This question cannot be answered from this scan: lung nodule is not looked for"),
        ("liver", "Is there a lesion in the liver?", "No. "),
        ("liver", "Is it fatty liver?", "Uncertain (probability 0.40). "),
        ("liver", "What is wrong here?", "None of the findings that were assessed of the liver is present. Uncertain: hepatic"),
        ("liver", "How large is it?", "The segment of the liver measures"),
        ("liver", "mean HU", "The mean density of the liver is 110 HU."),
        ("liver", "Which is larger, the liver or the left lung?", "On the whole scan: "),
        ("liver", "What is the volume of the spleen?", "This question cannot be answered from this scan: there is no spleen in the liver."),
        ("spleen", "How large is it?", "This question cannot be answered from this scan: the case has no segment spleen."),
    ],
)  # fmt: skip
def test_a_segment_is_answered_by_its_own_records(cases: Callable[[str], Known], segment: str, question: str, start: str) -> None:
    assert ask(cases("left-handed and oblique"), question, About(segment=segment)).text.startswith(start)


def test_a_part_of_a_finding_is_measured_alone_and_said_to_be_a_part(cases: Callable[[str], Known]) -> None:
    known, second = cases("oblique"), turned(NODULES[1][0], (14.0, 14.0, 14.0))
    said = ask(known, "How large is the nodule?", second)
    assert number(said.text, "mm") == pytest.approx(12, abs=4) and "lie in this box" in said.text
    assert ask(known, "How many nodules?", second).text.startswith("One.")
    # Half of the larger one: it is there, and what it measures there is not told.
    half = turned((NODULES[0][0][0], NODULES[0][0][1], 27.5), (30.0, 30.0, 8.0))
    assert ask(known, "nodule?", half).text.startswith("Yes.")
    assert ask(known, "How large is the nodule?", half).unanswered == "not_assessed"


def test_what_a_person_marked_lies_where_its_point_is_and_edits_are_told(cases: Callable[[str], Known]) -> None:
    whole = cases("oblique")
    point = Link(kind="point", center_ras_mm=SPHERES["liver"][0])
    mine = CaseFinding(
        name="liver_lesion", display="liver lesion", state="present", link=point, overruling=Overruling(changed="2026-11-22T00:00:00+00:00")
    )
    segments = tuple(replace(s, edited=True) for s in whole.segments)
    known = replace(whole, findings=(mine,), segments=segments)
    here, away = turned(SPHERES["liver"][0], (20.0, 20.0, 20.0)), turned(NODULES[0][0], (20.0, 20.0, 20.0))
    assert ask(known, "Is there a liver lesion?", here).text.startswith("Yes.")
    assert ask(known, "Is there a liver lesion?", away).text.startswith("No, not in this box")
    assert "told of the model's own" in ask(known, "Is there a liver lesion?", About(segment="liver")).text


def test_without_an_encoding_segments_speak_and_boxes_do_not(cases: Callable[[str], Known]) -> None:
    whole = cases("oblique")
    known = Known(whole.findings, whole.segments, scan=whole.scan)
    assert ask(known, "mean HU", About(segment="liver")).unanswered is None
    box = turned(NODULES[0][0], (20.0, 20.0, 20.0))
    assert ask(known, "Is there a nodule?", box).unanswered == "not_assessed"
    assert plan_answer("Is there a nodule in the left upper lobe?", whole).text.startswith("No, not in the left upper lobe")
