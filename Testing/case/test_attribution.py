"""A public scan whose licence asks to be named is recognised in every form it comes in, and no other scan is."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from VelvetMedLib.case import Case, attribution, report_markdown
from VelvetMedLib.case.attribution import KnownScan, attribution_of, values_sha256
from VelvetMedLib.ct import from_array


@pytest.fixture
def voxels_kji() -> np.ndarray:
    return np.random.default_rng(3).integers(-1024, 3071, (9, 10, 12)).astype(np.int16)


@pytest.fixture
def known(voxels_kji: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> str:
    found = values_sha256(voxels_kji)
    assert found is not None
    monkeypatch.setattr(attribution, "KNOWN_SCANS", (KnownScan((9, 10, 12), found, "Made by the tests, CC BY."),))
    return "Made by the tests, CC BY."


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_a_known_scan_is_known_whatever_way_its_axes_run(known: str, voxels_kji: np.ndarray, order: tuple[int, int, int]) -> None:
    turned = np.ascontiguousarray(voxels_kji.transpose(order)[:, ::-1])
    assert attribution_of(from_array(turned, np.diag([4.0, 3.0, 5.0, 1.0]))) == known
    assert attribution_of(from_array(turned.astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0]))) == known


def test_one_changed_voxel_makes_it_another_scan(known: str, voxels_kji: np.ndarray) -> None:
    voxels_kji[2, 3, 4] += 1
    assert attribution_of(from_array(voxels_kji, np.diag([4.0, 4.0, 4.0, 1.0]))) is None


def test_a_scan_of_another_size_is_not_even_counted(known: str, voxels_kji: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribution, "values_sha256", lambda _: pytest.fail("counted"))
    assert attribution_of(from_array(voxels_kji[1:], np.diag([4.0, 4.0, 4.0, 1.0]))) is None


def test_values_that_are_no_whole_numbers_have_no_fingerprint(voxels_kji: np.ndarray) -> None:
    assert values_sha256(voxels_kji + np.float32(0.25)) is None


def test_the_fingerprint_equals_one_count_of_all_values(voxels_kji: np.ndarray) -> None:
    import hashlib

    counts = [int((voxels_kji == value).sum()) for value in range(-(2**15), 2**15)]
    assert values_sha256(voxels_kji) == hashlib.sha256(np.array(counts, "<i8").tobytes()).hexdigest()


def test_the_report_names_the_source_of_a_known_scan(small_case: Case) -> None:
    from dataclasses import replace

    assert "Source of the scan" not in report_markdown(small_case)
    named = report_markdown(replace(small_case, run={**small_case.run, "attribution": "Made by the tests, CC BY."}))
    assert "Source of the scan: Made by the tests, CC BY." in named
