"""No shortcuts: nothing about a picture but the finding itself may tell whether the finding is there.

Fast tests look at what is drawn (5,000 cases, no rendering); slow ones at what is measured and at the pictures.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from VelvetMedLib.cohorts import CohortOptions, SyntheticCase, make_case
from VelvetMedLib.cohorts.anatomy import draw_view_name
from VelvetMedLib.cohorts.atlas import load_atlas
from VelvetMedLib.cohorts.options import stream
from VelvetMedLib.cohorts.render import draw_scanner
from VelvetMedLib.cohorts.synthetic import draw_affected
from VelvetMedLib.cohorts.tissues import draw_tissues
from VelvetMedLib.reports import ontology

NAMES = ontology().finding_names
DRAWN = 5000


def auroc(score: NDArray[Any], truth: NDArray[Any]) -> float:
    """Area under the ROC curve by mean ranks (ties count half)."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive = truth.astype(bool)
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(truth) - n)))


def chi2(table: NDArray[Any]) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom."""
    table = table[table.sum(1) > 0][:, table.sum(0) > 0]
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    return float(((table - expected) ** 2 / expected).sum()), (table.shape[0] - 1) * (table.shape[1] - 1)


def too_dependent(table: NDArray[Any]) -> bool:
    """Beyond what chance gives in about one of 100,000 tables."""
    value, degrees = chi2(table)
    # Wilson-Hilferty: the cube root of chi-square over its degrees is close to normal.
    z = ((value / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / np.sqrt(2 / (9 * degrees))
    return bool(z > 4.3)


@lru_cache(maxsize=1)
def drawn() -> tuple[NDArray[np.bool_], dict[str, list[str]]]:
    """Findings drawn for 5,000 seeds, and nuisances drawn for 2,000 of them."""
    options, atlas = CohortOptions(), load_atlas()
    affected = np.array([list(draw_affected(seed, options)[1].values()) for seed in range(DRAWN)])
    nuisances: dict[str, list[str]] = {name: [] for name in ("mode", "phase", "view", "noise", "thickness", "blur")}
    for seed in range(2000):
        rendering = stream(seed, "rendering")
        scanner = draw_scanner(options, rendering)
        nuisances["mode"].append(scanner.mode)
        nuisances["phase"].append(draw_tissues(atlas.tissues, rendering).phase)
        nuisances["view"].append(draw_view_name(options, stream(seed, "view")))
        nuisances["noise"].append(str(int(np.log2(scanner.noise_hu))))
        nuisances["thickness"].append(str(scanner.thickness))
        nuisances["blur"].append(str(int(scanner.blur_mm)))
    return affected, nuisances


def test_no_drawn_finding_depends_on_a_nuisance() -> None:
    affected, nuisances = drawn()
    for name, values in nuisances.items():
        groups = sorted(set(values))
        index = np.array([groups.index(v) for v in values])
        for n, finding in enumerate(NAMES):
            has = affected[: len(index), n]
            table = np.array([[int((index[has] == g).sum()), int((index[~has] == g).sum())] for g in range(len(groups))])
            assert not too_dependent(table), f"{finding} depends on {name}"


def test_no_drawn_finding_can_be_told_from_the_others() -> None:
    affected, _ = drawn()
    half = DRAWN // 2
    for n, finding in enumerate(NAMES):
        others = np.delete(affected, n, axis=1).astype(float)
        design = np.column_stack([others, others.sum(1) == 0, np.ones(DRAWN)])
        weights, *_ = np.linalg.lstsq(design[:half], affected[:half, n].astype(float), rcond=None)
        score = auroc(design[half:] @ weights, affected[half:, n])
        assert score <= 0.65, f"{finding} can be told from the other findings (AUROC {score:.2f})"


def test_at_least_fifteen_of_a_hundred_cases_are_drawn_normal_and_each_finding_in_about_a_quarter() -> None:
    affected, _ = drawn()
    assert (affected.sum(1) == 0).mean() >= 0.17
    assert (np.abs(affected.mean(0) - 0.25) < 0.04).all()


def test_streams_of_different_purposes_and_seeds_share_no_draw() -> None:
    draws = {(seed, purpose): stream(seed, purpose).integers(0, 2**62) for seed in (1, 2) for purpose in ("anatomy", "noise", "finding x")}
    assert len(set(draws.values())) == len(draws)


def test_turning_a_finding_round_leaves_every_other_draw_as_it_was() -> None:
    for seed in range(50):
        _, before = draw_affected(seed, CohortOptions())
        _, after = draw_affected(seed, CohortOptions(), "emphysema")
        assert {name for name in NAMES if before[name] != after[name]} == {"emphysema"}


def test_sizes_run_across_the_thresholds_without_a_gap(cases: list[SyntheticCase]) -> None:
    """Among few cases there must already be values on both sides of and near the thresholds, over all findings together."""
    ratios = []
    for case in cases:
        for record in case.records:
            least = ontology().finding(record.name).measure.present_from
            if record.value and least:
                ratios.append(record.value / least)
    near = [r for r in ratios if 0.6 < r < 1.6]
    assert len(near) >= 8
    assert min(near) < 1 < max(near)


@lru_cache(maxsize=1)
def measured() -> list[SyntheticCase]:
    """300 rendered cases at the default spacing: thresholds mean what they say only where a voxel is small against them."""
    return [make_case(seed) for seed in range(20_000, 20_300)]


@pytest.mark.slow
def test_no_measured_finding_depends_on_phase_mode_view_or_noise() -> None:
    records = [({r.name: r.state for r in c.records}, c.facts) for c in measured()]
    for finding in NAMES:
        for nuisance in ("phase", "mode", "name", "noise"):
            counts: Counter[tuple[str, bool]] = Counter()
            for states, facts in records:
                if states[finding] in ("present", "absent"):
                    group = facts["view"]["name"] if nuisance == "name" else facts["rendering"].get(nuisance)
                    if nuisance == "noise":
                        group = str(int(np.log2(facts["rendering"]["noise_hu"])))
                    counts[(str(group), states[finding] == "present")] += 1
            groups = sorted({g for g, _ in counts})
            table = np.array([[counts[(g, True)], counts[(g, False)]] for g in groups])
            table = table[table.sum(1) >= 15]
            if table.shape[0] > 1 and table.sum(0).min() > 10:
                assert not too_dependent(table), f"{finding} depends on {nuisance}: {dict(counts)}"


@pytest.mark.slow
def test_at_least_fifteen_of_a_hundred_cases_measure_normal() -> None:
    normal = [all(r.state in ("absent", "not_assessed") for r in c.records) for c in measured()]
    assert np.mean(normal) >= 0.15


@pytest.mark.slow
def test_prevalences_of_measured_findings_are_moderate() -> None:
    for finding in NAMES:
        states = [r.state for c in measured() for r in c.records if r.name == finding and r.state != "not_assessed"]
        assert 0.1 < np.mean([s == "present" for s in states]) < 0.35, finding


def _residue(case: SyntheticCase) -> list[float]:
    """What is left of fine texture in each part of the body, lesions and their surroundings masked out."""
    hu = case.volume.voxels_kji.astype(np.float32)
    mask = case.lesions_kji > 0
    for axis in range(3):
        for step in (1, -1):
            mask = mask | np.roll(mask, step, axis)
    for axis in range(3):
        for step in (1, -1):
            mask = mask | np.roll(mask, step, axis)
    high = 6 * hu
    for axis in range(3):
        high -= np.roll(hu, 1, axis) + np.roll(hu, -1, axis)
    features = []
    parts = (range(9, 14), (4,), (18,), (17,), (31,), (1,), (2, 3))
    for labels in parts:
        values = high[np.isin(case.organs_kji, labels) & ~mask]
        if len(values) < 50:
            features += [0.0, 0.0, 0.0]
            continue
        spread = float(np.median(np.abs(values)))
        tail = float(np.quantile(np.abs(values), 0.98))
        features += [float(np.log1p(spread)), float(np.mean(np.abs(values))) / (spread + 1), tail / (spread + 1)]
    return features


@pytest.mark.slow
def test_texture_outside_lesions_does_not_tell_which_findings_are_there() -> None:
    """A linear classifier on high-pass residue, lesions masked out, stays at chance. Shape findings change the anatomy: left out."""
    shape = {"cardiomegaly", "aortic_dilatation", "splenomegaly", "vertebral_compression", "hepatic_steatosis"}
    cases = measured()
    features = np.array([_residue(c) for c in cases])
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    design = np.column_stack([features, np.ones(len(cases))])
    fold = np.arange(len(cases)) % 4
    for finding in NAMES:
        if finding in shape:
            continue
        # Drawn, not measured: whether a lesion came out visible may well depend on what it was painted into.
        truth = np.array([finding in c.facts["drawn"]["affected"] for c in cases], float)
        score = np.zeros(len(cases))
        for k in range(4):
            train = fold != k
            ridge = design[train].T @ design[train] + 30.0 * np.eye(design.shape[1])
            score[fold == k] = design[fold == k] @ np.linalg.solve(ridge, design[train].T @ truth[train])
        area = auroc(score, truth)
        noise = 1.0 / np.sqrt(12 * min(truth.sum(), len(truth) - truth.sum()))
        assert area <= 0.60 + 2 * noise, f"{finding} can be told from texture outside its lesions (AUROC {area:.2f})"
