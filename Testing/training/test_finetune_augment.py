"""Sides in augmentation: what may be mirrored, which labels change places, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from finetuning.augment import augmented, has_side, mirror_x, plan_flips, words_of
from finetuning.coding import AnyOf
from finetuning.settings import AugmentSettings

from VelvetMedLib.errors import UsageError
from VelvetMedLib.reports import ontology

PAIRED = ["liver", "kidney_left", "kidney_right", "Left adrenal gland", "right adrenal gland"]


def crop(seed: int = 0, classes: int = 6) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.random((6, 6, 8)).astype(np.float32), rng.integers(0, classes, (6, 6, 8), np.uint8)


def test_sides_are_read_as_whole_words_in_every_usual_spelling() -> None:
    assert all(
        has_side(name) for name in ("kidney_left", "Right Lung", "leftKidney", "adrenal gland (L)", "rib_right_7", "rib_left7", "lt-hip")
    )
    assert not any(has_side(name) for name in ("liver", "vertebrae_L1", "bright spot", "cleft", "portal_vein_and_splenic_vein"))
    assert words_of("leftKidney") == ("left", "kidney")


def test_labels_with_sides_are_neither_mirrored_nor_turned_by_default_and_others_are() -> None:
    plan = plan_flips(PAIRED, AugmentSettings())
    assert not plan.flip_x and not plan.rotate
    plan = plan_flips(["liver", "spleen"], AugmentSettings())
    assert plan.flip_x and plan.rotate and plan.swap.tolist() == [0, 1, 2]
    assert not plan_flips(["liver"], AugmentSettings(flip_x=False)).flip_x


def test_a_bare_x_flip_of_labels_with_sides_is_refused() -> None:
    with pytest.raises(UsageError, match="kidney_left"):
        plan_flips(PAIRED, AugmentSettings(flip_x=True))


def test_mirroring_with_swapped_pairs_twice_is_the_identity_and_once_changes_left_for_right() -> None:
    plan = plan_flips(PAIRED, AugmentSettings(flip_swap_pairs=True))
    assert plan.flip_x and not plan.rotate and plan.swap.tolist() == [0, 1, 3, 2, 5, 4]
    image, labels = crop()
    mirrored, changed = mirror_x(image, labels, plan)
    assert np.array_equal(mirrored, image[::-1]) and np.array_equal(changed == 3, labels[::-1] == 2)
    twice = mirror_x(mirrored, changed, plan)
    assert np.array_equal(twice[0], image) and np.array_equal(twice[1], labels)


def test_structures_that_share_a_voxel_change_places_too() -> None:
    names = ["lump", "kidney_left", "kidney_right"]
    plan = plan_flips(names, AugmentSettings(flip_swap_pairs=True), AnyOf(3))
    image, _ = crop()
    bits = np.random.default_rng(1).integers(0, 8, (6, 6, 8)).astype(np.uint32)
    _, changed = mirror_x(image, bits, plan)
    before = bits[::-1]
    assert np.array_equal(changed & 1, before & 1)
    assert np.array_equal((changed >> 1) & 1, (before >> 2) & 1) and np.array_equal((changed >> 2) & 1, (before >> 1) & 1)


def test_a_side_without_a_partner_cannot_be_swapped() -> None:
    names = [structure.name for structure in ontology().structures]
    with pytest.raises(UsageError, match="lung_middle_lobe_right"):
        plan_flips(names, AugmentSettings(flip_swap_pairs=True))
    without = [name for name in names if name != "lung_middle_lobe_right"]
    plan = plan_flips(without, AugmentSettings(flip_swap_pairs=True))
    for n, name in enumerate(without, start=1):
        partner = without[plan.swap[n] - 1]
        assert partner == name.replace("left", "#").replace("right", "left").replace("#", "right")


def test_parity_restores_the_published_flips_whatever_the_labels_say() -> None:
    plan = plan_flips(PAIRED, AugmentSettings(parity_augment=True, flip_x=True))
    assert plan.flip_x and plan.rotate and plan.swap.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_forbidden_flip_never_happens_and_an_allowed_one_does() -> None:
    settings = AugmentSettings(flip_chance=1.0, rotate_chance=1.0, shift_chance=0.0)
    image, labels = crop()
    kept, classes = augmented(image, labels, plan_flips(PAIRED, settings), settings, np.random.default_rng(0))
    assert np.array_equal(kept, image[:, ::-1, ::-1]) and np.array_equal(classes, labels[:, ::-1, ::-1])
    free = AugmentSettings(flip_chance=1.0, rotate_chance=0.0, shift_chance=0.0)
    image, labels = crop(classes=2)
    kept, _ = augmented(image, labels, plan_flips(["liver"], free), free, np.random.default_rng(0))
    assert np.array_equal(kept, image[::-1, ::-1, ::-1])


def test_image_and_labels_move_together_and_the_shift_moves_intensities_only() -> None:
    settings = AugmentSettings(flip_chance=0.5, rotate_chance=0.5, shift_chance=1.0, shift=0.1)
    plan = plan_flips(["liver"], settings)
    for seed in range(20):
        _, labels = crop(seed, classes=2)
        image = labels.astype(np.float32)
        moved, classes = augmented(image, labels, plan, settings, np.random.default_rng(seed))
        offset = moved - classes
        assert np.allclose(offset, offset.flat[0], atol=1e-5) and abs(float(offset.flat[0])) <= 0.1
        again, _ = augmented(image, labels, plan, settings, np.random.default_rng(seed))
        assert np.array_equal(moved, again)
