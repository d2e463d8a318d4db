"""A crop made hard to see, for text-informed restoration: blocks set to air, and half of the time one degradation (methods.md 4.4)."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

VoxelsXYZ: TypeAlias = NDArray[np.float32]

DEGRADATIONS = ("noise", "blur", "shuffle", "coarse")


class DisruptedCrop(NamedTuple):
    """voxels [X, Y, Z]: what the encoder sees; masked: bool [X, Y, Z], the voxels of blocks that were set to air."""

    voxels: VoxelsXYZ
    masked: NDArray[np.bool_]


def disrupted(
    crop: VoxelsXYZ,
    draw: np.random.Generator,
    *,
    block: int = 16,
    share: float = 0.6,
    degrade: float = 0.5,
    noise: float = 0.1,
    blur: tuple[float, float] = (1.0, 2.0),
    shuffle_block: int = 8,
) -> DisruptedCrop:
    """crop: [X, Y, Z] in 0..1, 0 = air. The whole crop is degraded first, with chance `degrade`; then blocks are masked.

    noise: standard deviation; blur: range of the Gaussian's sigma in voxels; shuffle: voxels of each shuffle_block cube change
    places; coarse: cubes of 2 become their mean.
    """
    chance, kind = draw.random(), DEGRADATIONS[int(draw.integers(len(DEGRADATIONS)))]
    voxels = crop.copy()
    if chance < degrade:
        if kind == "noise":
            voxels = np.clip(voxels + np.float32(noise) * draw.standard_normal(crop.shape, dtype=np.float32), 0, 1)
        elif kind == "blur":
            voxels = blurred(voxels, float(draw.uniform(*blur)))
        elif kind == "shuffle":
            voxels = shuffled(voxels, draw, shuffle_block)
        else:
            voxels = coarse(voxels)
    masked = block_mask(crop.shape, draw, block=block, share=share)
    voxels[masked] = 0
    return DisruptedCrop(np.ascontiguousarray(voxels, np.float32), masked)


def block_mask(shape: tuple[int, ...], draw: np.random.Generator, *, block: int, share: float) -> NDArray[np.bool_]:
    """Exactly round(share * blocks) of the blocks of a grid that begins in the corner; those at the far faces may be cut."""
    grid = [-(-n // block) for n in shape]
    count = int(np.prod(grid))
    chosen = np.zeros(count, bool)
    chosen[draw.permutation(count)[: round(share * count)]] = True
    mask = chosen.reshape(grid)
    for axis, n in enumerate(shape):
        mask = mask.repeat(block, axis=axis).take(range(n), axis=axis)
    return mask


def blurred(voxels: VoxelsXYZ, sigma: float) -> VoxelsXYZ:
    """Gaussian blur, the kernel cut at 4 sigma; beyond the faces their own voxels go on."""
    reach = max(1, int(np.ceil(4 * sigma)))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis, n in enumerate(voxels.shape):
        around = np.pad(voxels, [(reach, reach) if a == axis else (0, 0) for a in range(3)], mode="edge")
        out = np.zeros_like(voxels)
        for place, weight in enumerate(weights):
            out += np.float32(weight) * around[tuple(slice(place, place + n) if a == axis else slice(None) for a in range(3))]
        voxels = out
    return voxels


def shuffled(voxels: VoxelsXYZ, draw: np.random.Generator, block: int) -> VoxelsXYZ:
    """The voxels of each whole cube of side `block` in a random order; what is left of a cube at the far faces stays."""
    out = voxels.copy()
    inner = [n // block for n in voxels.shape]
    if 0 in inner:
        return out
    a, b, c = inner
    core = out[: a * block, : b * block, : c * block]
    cubes = core.reshape(a, block, b, block, c, block).transpose(0, 2, 4, 1, 3, 5).reshape(a * b * c, block**3)
    mixed = draw.permuted(cubes, axis=1).reshape(a, b, c, block, block, block).transpose(0, 3, 1, 4, 2, 5)
    out[: a * block, : b * block, : c * block] = mixed.reshape(core.shape)
    return out


def coarse(voxels: VoxelsXYZ) -> VoxelsXYZ:
    """Half the resolution and back: every cube of 2 becomes its mean; beyond an odd face its own voxels go on."""
    even = np.pad(voxels, [(0, n % 2) for n in voxels.shape], mode="edge")
    a, b, c = (n // 2 for n in even.shape)
    out = even.reshape(a, 2, b, 2, c, 2).mean(axis=(1, 3, 5), dtype=np.float32)
    for axis, n in enumerate(voxels.shape):
        out = out.repeat(2, axis=axis).take(range(n), axis=axis)
    return out
