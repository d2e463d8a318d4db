"""The two corrupted views of a local crop that volume self-supervision learns from (methods.md 2.4c)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

VoxelsXYZ: TypeAlias = NDArray[np.float32]
Box: TypeAlias = tuple[slice, slice, slice]

YZ_PLANE, XY_PLANE = (1, 2), (0, 1)


class CorruptedView(NamedTuple):
    """voxels [X, Y, Z]: what the encoder sees; clean: the same view turned but not cut; quarter_turns: 0 to 3."""

    voxels: VoxelsXYZ
    clean: VoxelsXYZ
    quarter_turns: int


def corrupted_view(
    crop: VoxelsXYZ, donor: VoxelsXYZ | None, draw: np.random.Generator, *, plane: tuple[int, int] = YZ_PLANE
) -> CorruptedView:
    """Turn by k * 90 degrees, cut out to noise, cut out to a donor; each view of a crop calls it with its own generator.

    crop, donor: [X, Y, Z] of one shape, intensities in 0..1, sides of `plane` equal; donor: a crop of another study, not
    turned and not cut, None = no second cut-out. draw: keyed by (seed, epoch, study, view).
    """
    turns = int(draw.integers(4))
    clean = turned(crop, turns, plane)
    voxels = clean.copy()
    for box in cut_out_boxes(voxels.shape, draw):
        voxels[box] = _noise(voxels[box].shape, draw)
    # Drawn also without a donor, so that the donor does not decide what the stream gives next.
    boxes = cut_out_boxes(voxels.shape, draw)
    if donor is not None:
        if donor.shape != crop.shape:
            raise ValueError(f"the donor has shape {donor.shape}, the crop {crop.shape}")
        for box in boxes:
            voxels[box] = donor[box]
    return CorruptedView(voxels, clean, turns)


def turned(crop: VoxelsXYZ, quarter_turns: int, plane: tuple[int, int] = YZ_PLANE) -> VoxelsXYZ:
    """The crop turned about the axis across `plane`, from its first towards its second axis."""
    if crop.shape[plane[0]] != crop.shape[plane[1]]:
        raise ValueError(f"a crop of shape {crop.shape} cannot be turned in the plane of axes {plane}: its sides differ")
    return np.ascontiguousarray(np.rot90(crop, quarter_turns, plane))


def cut_out_boxes(
    shape: Sequence[int], draw: np.random.Generator, *, largest_share: float = 0.3, sides: tuple[float, float] = (0.05, 0.25)
) -> list[Box]:
    """Boxes until their volumes, overlaps counted twice, reach u * voxels with u uniform in 0..largest_share.

    A box's side along an axis is uniform from 5 % of the crop's up to below 25 % (4 to 23 voxels of 96); boxes lie inside.
    """
    lowest = [max(1, int(sides[0] * n)) for n in shape]
    beyond = [max(low + 1, int(sides[1] * n)) for n, low in zip(shape, lowest, strict=True)]
    budget = draw.uniform(0.0, largest_share) * float(np.prod(shape))
    boxes: list[Box] = []
    covered = 0
    while covered < budget:
        box_sides = draw.integers(lowest, beyond)
        starts = draw.integers(0, np.asarray(shape) - box_sides + 1)
        x, y, z = (slice(int(a), int(a + n)) for a, n in zip(starts, box_sides, strict=True))
        boxes.append((x, y, z))
        covered += int(np.prod(box_sides))
    return boxes


def choose_donor(study: int, studies: NDArray[np.int64], draw: np.random.Generator) -> int | None:
    """Place of a donor among `studies` (study keys of the cohort's items), evenly among other studies; None if there is none."""
    others = np.flatnonzero(studies != study)
    return int(others[draw.integers(len(others))]) if len(others) else None


def _noise(shape: tuple[int, ...], draw: np.random.Generator) -> VoxelsXYZ:
    """Normal noise stretched to fill 0..1."""
    noise = draw.standard_normal(shape, dtype=np.float32)
    low, high = float(noise.min()), float(noise.max())
    # A single voxel has no spread to stretch.
    return (noise - low) / (high - low) if high > low else np.full(shape, 0.5, np.float32)
