"""Fixtures of the case tests: phantoms on any grid and a small complete case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.case import Case, CaseFinding, CaseInput, CaseModel, Link, Report, Section, Segment, Sentence
from VelvetMedLib.reports import ontology


def points_ras(shape_kji: tuple[int, int, int], ijk_to_ras: np.ndarray) -> np.ndarray:
    """RAS mm of every voxel centre, (3, K, J, I)."""
    k, j, i = np.indices(shape_kji, dtype=np.float64)
    ijk = np.stack([i, j, k]).reshape(3, -1)
    return (ijk_to_ras[:3, :3] @ ijk + ijk_to_ras[:3, 3:]).reshape(3, *shape_kji)


@pytest.fixture
def ball() -> Callable[..., np.ndarray]:
    """ball(shape, affine, centre, radius): a sphere in mm."""

    def make(shape: tuple[int, int, int], affine: np.ndarray, centre: Any, radius: float) -> np.ndarray:
        offset = points_ras(shape, affine) - np.reshape(np.asarray(centre, float), (3, 1, 1, 1))
        return (offset**2).sum(0) <= radius**2

    return make


@pytest.fixture
def block() -> Callable[..., np.ndarray]:
    """block(shape, affine, low, high): a RAS-aligned box in mm."""

    def make(shape: tuple[int, int, int], affine: np.ndarray, low: Any, high: Any) -> np.ndarray:
        p = points_ras(shape, affine)
        return np.all([(p[n] >= low[n]) & (p[n] <= high[n]) for n in range(3)], axis=0)

    return make


@pytest.fixture
def rod() -> Callable[..., np.ndarray]:
    """rod(shape, affine, centre (R, A), radius, s_from, s_to): a cylinder along S in mm."""

    def make(shape: tuple[int, int, int], affine: np.ndarray, centre: Any, radius: float, low: float, high: float) -> np.ndarray:
        p = points_ras(shape, affine)
        inside = (p[0] - centre[0]) ** 2 + (p[1] - centre[1]) ** 2 <= radius**2
        return inside & (p[2] >= low) & (p[2] <= high)

    return make


OBLIQUE_SHAPE = (10, 12, 14)
OBLIQUE = np.array([[-1.9, 0.2, 0.1, 30.0], [0.2, 1.9, 0.3, -20.0], [-0.1, -0.3, 2.9, 5.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.fixture
def labels_kji() -> np.ndarray:
    labels = np.zeros(OBLIQUE_SHAPE, np.uint8)
    labels[2:8, 3:9, 3:11] = 4
    labels[4:6, 5:7, 6:8] = 112
    return labels


@pytest.fixture
def small_case() -> Case:
    """A case with a liver, a lesion, findings in all states, a report that contains markup."""
    link = Link(kind="lesion", label=112, center_ras_mm=(12.4, -3.0, 18.0), box_ras_mm=((10, -6, 15), (15, 0, 21)))
    liver, lesion = ontology().structure("liver"), ontology().lesion("liver_lesion")
    segments = tuple(
        Segment(
            label=x.label,
            name=x.name,
            display=x.display,
            code=x.code,
            color=x.color,
            kind=kind,
            volume_ml=12.5,
            mean_hu=55.0,
            truncated=kind == "organ",
            center_ras_mm=link.center_ras_mm,
            box_ras_mm=link.box_ras_mm,
        )
        for x, kind in ((liver, "organ"), (lesion, "lesion"))
    )
    findings = (
        CaseFinding(name="liver_lesion", display="liver lesion", state="present", probability=0.9, size_mm=12.0, count=1, link=link),
        CaseFinding(name="hepatic_steatosis", display="hepatic steatosis", state="uncertain", probability=0.5, value=-9.0, unit="HU"),
        CaseFinding(name="splenomegaly", display="splenomegaly", state="not_assessed", reason="The spleen is not covered."),
    )
    sentences = (
        Sentence(text="A 12 mm liver lesion <script>alert(1)</script>.", state="present", support=0.9, finding="liver_lesion", link=link),
        Sentence(text="A *bold* claim.", state="present", finding="lung_nodule"),
        Sentence(text="No pleural effusion.", state="absent", support=0.97, finding="pleural_effusion"),
    )
    return Case(
        id="c0ffee",
        created="2026-01-02T03:04:05+00:00",
        input=CaseInput(
            kind="array",
            shape_kji=OBLIQUE_SHAPE,
            ijk_to_ras=OBLIQUE,
            spacing_mm=np.linalg.norm(OBLIQUE[:3, :3], axis=0),
            sha256="a" * 64,
        ),
        model=CaseModel(id="demo", version="1.0", sha256="b" * 64, licence="Apache-2.0"),
        segments=segments,
        findings=findings,
        report=Report(style="structured", sections=(Section(title="Liver", sentences=sentences),)),
        timings={"encode": np.float32(1.5)},
        warnings=("The scan ends in the liver.",),
        run={"device": "cpu", "threads": np.int64(2)},
    )


@pytest.fixture
def oblique() -> np.ndarray:
    return OBLIQUE.copy()
