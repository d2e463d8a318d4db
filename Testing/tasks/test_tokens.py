"""Pooled tokens equal their slow, obvious twins, and lesion components are found and ordered as promised."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from VelvetMedLib.tasks.tokens import (
    LESION_SIZE,
    REGION_SIZE,
    FineMaps,
    LesionMeta,
    border_shell,
    components,
    lesion_summary,
    lesion_tokens,
    part_mask,
    region_tokens,
)

SHAPE = (17, 14, 19)


def random_maps(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> FineMaps:
    rng = np.random.default_rng(seed)
    organs = np.repeat(np.repeat(np.repeat(rng.integers(0, 33, [n // 3 + 1 for n in shape]), 3, 0), 3, 1), 3, 2)
    organs = organs[: shape[0], : shape[1], : shape[2]].astype(np.uint8)
    lesions = np.zeros((17, *shape), np.uint8)
    for channel in range(0, 17, 2):
        for _ in range(2):
            at = [int(rng.integers(0, n - 4)) for n in shape]
            lesions[channel, at[0] : at[0] + 4, at[1] : at[1] + 3, at[2] : at[2] + 2] = rng.integers(140, 255, (4, 3, 2))
    features = rng.normal(size=(48, *((n + 1) // 2 for n in shape))).astype(np.float32)
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    affine[:3, 3] = [-30, 10, 5]
    hu = rng.normal(-400, 500, shape).astype(np.int16)
    return FineMaps(organs, lesions, features, hu, affine, (np.array([-30.0, 10, 5]), np.array([30.0, 60, 90])))


def slow_region(maps: FineMaps, label: int) -> np.ndarray:
    where = np.argwhere(maps.organs_xyz == label)
    if not len(where):
        return np.zeros(REGION_SIZE)
    feature = np.mean([maps.features_cxyz[:, x // 2, y // 2, z // 2] for x, y, z in where], 0)
    hu = maps.hu_xyz[tuple(where.T)].astype(float)
    extent = (where.max(0) - where.min(0) + 1) * maps.spacing_mm / 100
    low, high = maps.body_box_ras
    centre = (where.mean(0) * maps.spacing_mm + maps.ijk_to_ras[:3, 3] - low) / (high - low)
    touches = bool(((where == 0) | (where == np.array(SHAPE) - 1)).any())
    scalars = [np.log1p(len(where) * 0.08), hu.mean() / 1000, hu.std() / 1000, *extent, *centre, touches, 1.0, (hu < -950).mean()]
    overlap = [(maps.lesions_cxyz[c][tuple(where.T)] >= 128).mean() for c in range(17)]
    return np.concatenate([feature, scalars, overlap])


def test_region_tokens_equal_the_slow_twin():
    maps = random_maps()
    tokens, mask = region_tokens(maps)
    assert tokens.shape == (32, REGION_SIZE) and tokens.dtype == np.float32
    for label in range(1, 33):
        assert np.allclose(tokens[label - 1], slow_region(maps, label), atol=2e-4), label
        assert mask[label - 1] == (maps.organs_xyz == label).any()


def test_lesion_tokens_equal_the_slow_twin():
    maps = random_maps(3)
    tokens, metas = lesion_tokens(maps)
    assert tokens.shape == (len(metas), LESION_SIZE) and len(metas) > 5
    for token, meta in zip(tokens, metas, strict=True):
        box = tuple(slice(a, b) for a, b in zip(meta.first_xyz, meta.stop_xyz, strict=True))
        hit = maps.lesions_cxyz[meta.channel][box] >= 128
        part = next(m for place, m in components(hit) if m.sum() == meta.voxels and all(s.start == 0 for s in place))
        where = np.argwhere(part) + np.array(meta.first_xyz)
        feature = np.mean([maps.features_cxyz[:, x // 2, y // 2, z // 2] for x, y, z in where], 0)
        assert np.allclose(token[:48], feature, atol=2e-4)
        assert token[48 + meta.channel] == 1 and token[48:65].sum() == 1
        probability = maps.lesions_cxyz[meta.channel][tuple(where.T)] / 255
        assert token[65 + 7] == pytest.approx(probability.max(), abs=1e-5)
        assert token[65 + 8] == pytest.approx(probability.mean(), abs=1e-5)
        assert token[65 + 9] == pytest.approx(maps.hu_xyz[tuple(where.T)].mean() / 1000, abs=1e-4)
        overlap = [(maps.organs_xyz[tuple(where.T)] == label).mean() for label in range(1, 33)]
        assert np.allclose(token[76:], overlap, atol=1e-5)
        assert maps.lesions_cxyz[(meta.channel, *meta.seed_xyz)] == round(meta.max_prob * 255)
        assert LesionMeta.from_dict(meta.as_dict()) == meta


def test_floats_and_bytes_give_the_same_tokens():
    maps = random_maps(5)
    floats = FineMaps(
        maps.organs_xyz,
        (maps.lesions_cxyz / np.float32(255)).astype(np.float32),
        maps.features_cxyz,
        maps.hu_xyz,
        maps.ijk_to_ras,
        maps.body_box_ras,
    )
    assert np.array_equal(lesion_tokens(maps)[0], lesion_tokens(floats)[0])
    assert np.array_equal(region_tokens(maps)[0], region_tokens(floats)[0])


def test_a_crowd_of_one_kind_does_not_push_out_the_only_specimen_of_another():
    maps = random_maps()
    maps.lesions_cxyz[:] = 0
    maps.lesions_cxyz[3, ::2, ::2, ::2] = 255
    maps.lesions_cxyz[9, 8, 7, 9] = 255
    metas = lesion_tokens(maps)[1]
    assert len(metas) <= 32 and 9 in {m.channel for m in metas[:2]}
    metas = lesion_tokens(maps, most=5)[1]
    assert len(metas) == 5


def test_the_threshold_of_each_channel_counts():
    maps = random_maps()
    maps.lesions_cxyz[:] = 0
    maps.lesions_cxyz[2, 4:6, 4:6, 4:6] = 100
    assert lesion_tokens(maps)[1] == ()
    thresholds = [0.5] * 17
    thresholds[2] = 100 / 255
    assert [m.voxels for m in lesion_tokens(maps, thresholds)[1]] == [8]


def test_components_touch_at_corners_and_come_largest_first():
    hit = np.zeros((6, 6, 6), bool)
    hit[0, 0, 0] = hit[1, 1, 1] = True
    hit[4:6, 4:6, 4:6] = True
    parts = components(hit)
    assert [int(m.sum()) for _, m in parts] == [8, 2]
    assert parts[1][0] == (slice(0, 2), slice(0, 2), slice(0, 2))
    assert components(np.zeros((3, 3, 3), bool)) == []


def test_the_summary_of_lesion_tokens_is_what_their_places_say():
    maps = random_maps()
    tokens, metas = lesion_tokens(maps)
    slow = np.zeros((17, 3))
    for meta in metas:
        own = [m for m in metas if m.channel == meta.channel]
        slow[meta.channel] = max(m.max_prob for m in own), np.log1p(max(m.volume_ml for m in own)), len(own)
    assert slow.any() and lesion_summary(tokens) == pytest.approx(slow, rel=1e-6)
    assert not lesion_summary(np.zeros((0, LESION_SIZE), np.float32)).any()


def test_the_summary_of_verified_tokens_takes_the_surest_part_of_each_kind_whatever_the_map_took_it_for():
    tokens, metas = lesion_tokens(random_maps())
    logits = np.random.default_rng(5).normal(0, 6, (len(metas), 17)).astype(np.float32)
    found = lesion_summary(tokens, logits)
    for kind in range(17):
        surest = max(range(len(metas)), key=lambda n: logits[n, kind])
        expected = sum(1 / (1 + math.exp(-min(max(float(z), -8.0), 8.0))) for z in logits[:, kind])
        assert found[kind, 0] == pytest.approx(min(max(float(logits[surest, kind]), -8.0), 8.0))
        assert found[kind, 2] == pytest.approx(math.log1p(expected))
        if abs(logits[:, kind]).max() < 8:
            assert found[kind, 1] == pytest.approx(math.log1p(metas[surest].volume_ml), rel=1e-5)
    nothing = lesion_summary(np.zeros((0, LESION_SIZE), np.float32), np.zeros((0, 17), np.float32))
    assert nothing.tolist() == [[-8.0, 0.0, 0.0]] * 17


def test_the_mask_of_a_part_is_its_own_voxels_and_no_neighbours():
    maps = random_maps()
    for meta in lesion_tokens(maps)[1]:
        mask = part_mask(maps.lesions_cxyz[meta.channel], meta, 128)
        assert mask.sum() == meta.voxels and (maps.lesions_cxyz[meta.channel][meta.box_xyz][mask] >= 128).all()


def test_the_border_is_the_edge_of_the_scan_and_not_of_the_crop():
    assert border_shell((4, 4, 4), None).sum() == 64 - 8
    assert not border_shell((4, 4, 4), np.ones((6, 6, 6), bool)).any()
    cut = np.ones((6, 6, 6), bool)
    cut[:2] = False
    shell = border_shell((4, 4, 4), cut)
    assert shell[1].all() and shell.sum() == 16


def test_empty_maps_give_no_tokens_and_no_warning():
    maps = random_maps()
    maps.organs_xyz[:] = 0
    maps.lesions_cxyz[:] = 0
    tokens, mask = region_tokens(maps)
    assert not tokens.any() and not mask.any()
    assert lesion_tokens(maps)[0].shape == (0, LESION_SIZE)


def test_pooling_a_whole_scan_takes_a_fraction_of_a_second():
    maps = random_maps(1, (96, 80, 96))
    best = min(_seconds(maps) for _ in range(3))
    # About 60 ms of this thread's own time; the bound leaves room for slower processors.
    assert best < 0.6


def _seconds(maps: FineMaps) -> float:
    started = time.thread_time()
    region_tokens(maps)
    lesion_tokens(maps)
    return time.thread_time() - started
