"""A phrase is shown on the side and in the lobe that it names, an organ by its segment; an empty question is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.errors import UsageError
from VelvetMedLib.reports import ontology
from VelvetMedLib.tasks import ground
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.vqa import answer


def encoding_of(fine: Any) -> Encoding:
    return Encoding(volume_sha256="0" * 64, encoding_key="k", weights_sha256="0" * 64, scan_grid=fine.grid, fine=fine)


@pytest.fixture
def unaligned(random_bundle: Any) -> Any:
    """A bundle whose sentences and cells were never trained to agree, like the shipped one."""
    return replace(random_bundle, config=replace(random_bundle.config, aligned_levels=("report",)))


@pytest.fixture
def two_sides(make_fine: Any) -> Any:
    """Effusion on both sides, more certain on the right; a nodule in the right lower and one in the left upper lobe."""
    fine = make_fine(
        {
            "pleural_effusion": [((34, 54), (8, 12), (30, 40)), ((6, 24), (8, 12), (30, 40))],
            "lung_nodule": [((40, 44), (20, 24), (36, 40)), ((10, 13), (20, 23), (56, 59))],
        }
    )
    maps = fine.lesions_cxyz.copy()
    maps[:, 30:][maps[:, 30:] > 0] = 250
    return replace(fine, lesions_cxyz=maps)


@pytest.mark.parametrize(
    ("phrase", "right", "probability"),
    [
        ("pleural effusion", True, 250),
        ("left pleural effusion", False, 230),
        ("pleural effusion on the right", True, 250),
        ("bilateral pleural effusion", True, 250),
        ("nodule in the left upper lobe", False, 230),
        ("nodule in the right lower lobe", True, 250),
    ],
)
def test_a_finding_is_shown_on_the_side_that_the_phrase_names(two_sides: Any, unaligned: Any, phrase: str, right: bool, probability: int):
    found = ground(encoding_of(two_sides), phrase, unaligned)
    assert found.source == "lesions" and found.score == pytest.approx(probability / 255, abs=1e-4)
    assert (found.peak_ras_mm[0] > 0) is right
    assert found.threshold == unaligned.config.lesion_thresholds[ontology().lesion(ontology().finding(found.finding).lesion).channel]


def test_a_lobe_without_the_finding_shows_nothing(two_sides: Any, unaligned: Any):
    found = ground(encoding_of(two_sides), "nodule in the right upper lobe", unaligned)
    assert found.score < found.threshold and not found.heat_kji[:, :, :30].any()
    lower = ontology().structure("lung_lower_lobe_right").label
    assert not found.heat_kji[two_sides.organs_kji == lower].any()


def test_an_organ_is_shown_by_its_segment_where_similarity_was_never_learnt(two_sides: Any, unaligned: Any):
    found = ground(encoding_of(two_sides), "the liver", unaligned)
    liver = two_sides.organs_kji == ontology().structure("liver").label
    assert found.source == "segment" and found.threshold is None and np.array_equal(found.heat_kji > 0, liver)
    i, j, k = np.rint((np.array(found.peak_ras_mm) - found.grid.ijk_to_ras[:3, 3]) / 4).astype(int)
    assert liver[k, j, i]


def test_an_organ_that_the_scan_does_not_show_is_said_to_be_missing(make_fine: Any, unaligned: Any):
    with pytest.raises(UsageError, match="spleen was not found"):
        ground(encoding_of(make_fine(without=("spleen",))), "the spleen", unaligned)


@pytest.mark.parametrize("question", ["", "   ", " ?! "])
def test_an_empty_question_is_refused(question: str):
    with pytest.raises(UsageError, match="no question"):
        answer(question, (), ())
