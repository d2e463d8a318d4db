"""Changes of a training crop that never teach a wrong side: mirroring in x only where the labels allow it, or with their pairs swapped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetuning.coding import Coded, Coding, OneOf
from finetuning.settings import AugmentSettings
from VelvetMedLib.errors import UsageError

_OTHER = {"left": "right", "right": "left", "lt": "rt", "rt": "lt", "l": "r", "r": "l"}
"""Words that name a side in a label, and the word of the other side."""

Image = NDArray[np.float32]


@dataclass(frozen=True)
class FlipPlan:
    """Which mirrorings are allowed. swap[n]: what structure n becomes when the crop is mirrored in x; n itself without sides."""

    flip_x: bool
    rotate: bool
    swap: NDArray[np.uint8]
    coding: Coding


def words_of(name: str) -> tuple[str, ...]:
    """A label's name as lower-case words: "leftKidney", "Left kidney" and "kidney_left" have the same words in another order.

    "L1" is one word, a vertebra; "left1" is two.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    return tuple(re.findall(r"(?:left|right)(?=\d)|[a-z]+\d*|\d+", spaced))


def has_side(name: str) -> bool:
    """Whether a label's name says left or right."""
    return any(word in _OTHER for word in words_of(name))


def mirrored_words(name: str) -> tuple[str, ...]:
    """The words of the label on the other side."""
    return tuple(_OTHER.get(word, word) for word in words_of(name))


def plan_flips(names: Sequence[str], settings: AugmentSettings, coding: Coding | None = None) -> FlipPlan:
    """What the label set (names of structures 1, 2, ...) and the settings allow. Raises UsageError where they contradict each other.

    coding: of the crops; without one the structures exclude one another."""
    coding = coding or OneOf(len(names))
    identity = np.arange(len(names) + 1, dtype=np.uint8)
    if settings.parity_augment:
        return FlipPlan(True, True, identity, coding)
    sided = [name for name in names if has_side(name)]
    if not sided:
        return FlipPlan(settings.flip_x is not False, True, identity, coding)
    if settings.flip_x and not settings.flip_swap_pairs:
        raise UsageError(
            "Mirroring in x would teach left as right: some labels have a side.",
            found=f"augment.flip_x=true with {', '.join(sided[:4])}{' ...' if len(sided) > 4 else ''}",
            expected="no x-flip, or one that swaps the paired labels",
            next_step="Leave augment.flip_x out, or set augment.flip_swap_pairs=true as well.",
        )
    if not settings.flip_swap_pairs or settings.flip_x is False:
        return FlipPlan(False, False, identity, coding)
    return FlipPlan(True, False, _swapped(names), coding)


def _swapped(names: Sequence[str]) -> NDArray[np.uint8]:
    class_of = {tuple(sorted(words_of(name))): n for n, name in enumerate(names, start=1)}
    swap = np.arange(len(names) + 1, dtype=np.uint8)
    for n, name in enumerate(names, start=1):
        if has_side(name):
            partner = class_of.get(tuple(sorted(mirrored_words(name))))
            if partner is None:
                raise UsageError(
                    "Labels cannot be swapped in a mirrored picture: one has no partner on the other side.",
                    found=f"{name} without its partner",
                    expected="left and right labels in pairs",
                    next_step="Leave augment.flip_swap_pairs out, or train on a set of labels that are paired (--structures).",
                )
            swap[n] = partner
    return swap


def mirror_x(image_xyz: Image, labels_xyz: Coded, plan: FlipPlan) -> tuple[Image, Coded]:
    """The crop seen in a mirror: x reversed, labels changed to those of the other side. Twice is the identity."""
    return image_xyz[::-1], plan.coding.swapped(labels_xyz[::-1], plan.swap)


def augmented(
    image_xyz: Image, labels_xyz: Coded, plan: FlipPlan, settings: AugmentSettings, draw: np.random.Generator
) -> tuple[Image, Coded]:
    """A changed copy of a crop; every draw is made whether it is used or not, so that one setting does not move the others."""
    flips, turn, shift = draw.random(3), draw.random(), draw.random()
    quarters, amount = int(draw.integers(1, 4)), float(draw.uniform(-settings.shift, settings.shift))
    if plan.flip_x and flips[0] < settings.flip_chance:
        image_xyz, labels_xyz = mirror_x(image_xyz, labels_xyz, plan)
    for axis in (1, 2):
        if flips[axis] < settings.flip_chance:
            image_xyz, labels_xyz = np.flip(image_xyz, axis), np.flip(labels_xyz, axis)
    if plan.rotate and turn < settings.rotate_chance and image_xyz.shape[0] == image_xyz.shape[1]:
        image_xyz, labels_xyz = np.rot90(image_xyz, quarters), np.rot90(labels_xyz, quarters)
    if shift < settings.shift_chance:
        image_xyz = image_xyz + np.float32(amount)
    return np.ascontiguousarray(image_xyz), np.ascontiguousarray(labels_xyz)
