"""The case while it is painted: HU, organ map and lesion bit mask on one grid, and the few strokes that all lesions are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.cohorts.anatomy import upsample
from VelvetMedLib.reports.ontology import LUNG_LOBES, ontology

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]
Box = tuple[slice, slice, slice]
MOST_INSTANCES = 32
LOBES_LEFT = tuple(ontology().structure(n).label for n in LUNG_LOBES if n.endswith("_left"))
LOBES_RIGHT = tuple(ontology().structure(n).label for n in LUNG_LOBES if n.endswith("_right"))
LOBES = (*LOBES_LEFT, *LOBES_RIGHT)


def label(name: str) -> int:
    """Label of a structure."""
    return ontology().structure(name).label


@dataclass(eq=False)
class Canvas:
    """Arrays indexed (k, j, i) = (S, A, R), axes rising. `first_sar`: centre of voxel (0, 0, 0) in mm.

    Bit n-1 of `lesions` is instance n.
    """

    hu: Floats
    organs: NDArray[np.uint8]
    tissue: NDArray[np.uint8]
    first_sar: Floats
    step: float
    tissue_names: tuple[str, ...]
    lesions: NDArray[np.uint32] = field(init=False)
    channels: list[str] = field(default_factory=list)
    """Lesion channel of instance 1, 2, …"""
    whole_lungs: Mask = field(init=False)
    """Lungs as they were before fluid or air took some of them: the pleural cavities."""

    def __post_init__(self) -> None:
        self.lesions = np.zeros(self.hu.shape, np.uint32)
        self.whole_lungs = self.mask(LOBES)

    @property
    def voxel_ml(self) -> float:
        return self.step**3 / 1000.0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.hu.shape

    def mask(self, labels: Sequence[int]) -> Mask:
        """Voxels of these structures."""
        table = np.zeros(256, bool)
        table[list(labels)] = True
        return table[self.organs]

    def tissue_mask(self, *names: str) -> Mask:
        """Voxels of these tissues."""
        table = np.zeros(256, bool)
        table[[self.tissue_names.index(n) for n in names]] = True
        return table[self.tissue]

    def axes(self, box: Box | None = None) -> tuple[Floats, Floats, Floats]:
        """S, A and R in mm of a box's voxels, shaped to broadcast."""
        out = []
        for axis in range(3):
            n = self.shape[axis]
            line = self.first_sar[axis] + np.arange(n, dtype=np.float32) * np.float32(self.step)
            line = line if box is None else line[box[axis]]
            out.append(line.reshape([-1 if axis == other else 1 for other in range(3)]))
        return out[0], out[1], out[2]

    def box(self, center_sar: Sequence[float] | Floats, reach_mm: float | Sequence[float]) -> Box | None:
        """Slices around a point; None where they miss the grid."""
        reach = np.broadcast_to(np.asarray(reach_mm, float), (3,))
        index = (np.asarray(center_sar, float) - self.first_sar) / self.step
        low = np.maximum(np.floor(index - reach / self.step), 0).astype(int)
        high = np.minimum(np.ceil(index + reach / self.step) + 1, self.shape).astype(int)
        if (high <= low).any():
            return None
        return slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])

    def point(self, flat_index: int, rng: np.random.Generator | None = None) -> Floats:
        """Position of a voxel in mm; with `rng` anywhere inside it, so that sizes are not tied to the grid."""
        at = np.array(np.unravel_index(flat_index, self.shape), np.float32)
        if rng is not None:
            at += rng.uniform(-0.5, 0.5, 3).astype(np.float32)
        return self.first_sar + at * np.float32(self.step)

    def pick(self, rng: np.random.Generator, mask: Mask) -> Floats | None:
        """A random position inside a mask; None where it is empty. Always one draw, so that streams stay in step."""
        where = np.flatnonzero(mask)
        share = rng.uniform()
        jitter = rng.uniform(-0.5, 0.5, 3).astype(np.float32)
        if len(where) == 0:
            return None
        return self.point(int(where[int(share * len(where))])) + jitter * np.float32(self.step)

    def noise(self, rng: np.random.Generator, shape: tuple[int, ...], cell_mm: float) -> Floats:
        """Smooth noise of unit size whose grains are about `cell_mm` wide."""
        step = self.step / cell_mm
        coarse = rng.standard_normal(tuple(int(n * step) + 3 for n in shape), dtype=np.float32)
        starts = rng.uniform(0, 0.9, 3).astype(np.float32)
        return upsample(coarse, starts, step, shape) * np.float32(1.6)

    def blob(self, rng: np.random.Generator, center: Floats, radii: Sequence[float], lumps: float = 0.0) -> tuple[Box, Floats] | None:
        """Share of each voxel that a randomly turned, lumpy ellipsoid covers, in a box around it; small ones are sampled 27-fold."""
        turn = _rotation(rng)
        grain = rng.integers(0, 2**31)
        box = self.box(center, max(radii) * (1.0 + 2.0 * lumps) + self.step)
        if box is None:
            return None
        axes = self.axes(box)
        shape = tuple(s.stop - s.start for s in box)
        scale: Floats | float = 1.0
        if lumps > 0:
            noise = self.noise(np.random.default_rng(grain), shape, max(0.9 * min(radii), 1.5 * self.step))
            scale = 1.0 + np.clip(noise * np.float32(lumps), -0.5, 2.0 * lumps)
        fine = min(radii) < 2.2 * self.step
        offsets = (-1 / 3, 0.0, 1 / 3) if fine else (0.0,)
        width = self.step / (3.0 if fine else 1.0)
        total = np.zeros(shape, np.float32)
        mean_radius = float(np.prod(radii) ** (1 / 3))
        for ds in offsets:
            for da in offsets:
                for dr in offsets:
                    moved = [axes[n] - np.float32(center[n] - d * self.step) for n, d in enumerate((ds, da, dr))]
                    rho2 = np.float32(0.0)
                    for row, radius in zip(turn, radii, strict=True):
                        rho2 = rho2 + ((row[0] * moved[0] + row[1] * moved[1] + row[2] * moved[2]) * np.float32(1.0 / radius)) ** 2
                    inside = (scale - np.sqrt(rho2)) * np.float32(mean_radius / width) + np.float32(0.5)
                    total += np.clip(inside, 0.0, 1.0)
        total /= np.float32(len(offsets) ** 3)
        return box, total

    def blend(self, box: Box, share: Floats, hu: Floats | float) -> None:
        """Replaces a share of each voxel's HU."""
        view = self.hu[box]
        view += share * (hu - view)

    def mark(self, channel: str, box: Box, mask: Mask) -> int | None:
        """Registers an instance; None where nothing of it is in view or all 32 bits are used."""
        if not mask.any() or len(self.channels) >= MOST_INSTANCES:
            return None
        self.channels.append(channel)
        number = len(self.channels)
        self.lesions[box][mask] |= np.uint32(1 << (number - 1))
        return number

    def lowest(self, where: NDArray[np.intp], score: Floats, volume_ml: float) -> NDArray[np.intp]:
        """Of the voxels `where` (flat), those with the lowest score that make up a volume."""
        count = round(volume_ml / self.voxel_ml)
        if count <= 0 or len(where) == 0:
            return where[:0]
        if count >= len(where):
            return where
        return where[np.argpartition(score, count - 1)[:count]]

    def mark_flat(self, channel: str, where: NDArray[np.intp]) -> int | None:
        """Registers an instance given as flat voxel indices."""
        if len(where) == 0 or len(self.channels) >= MOST_INSTANCES:
            return None
        self.channels.append(channel)
        number = len(self.channels)
        self.lesions.ravel()[where] |= np.uint32(1 << (number - 1))
        return number

    def coordinates(self, where: NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
        """S, A and R in mm of flat voxel indices."""
        k, j, i = np.unravel_index(where, self.shape)
        step = np.float32(self.step)
        return (
            self.first_sar[0] + k.astype(np.float32) * step,
            self.first_sar[1] + j.astype(np.float32) * step,
            self.first_sar[2] + i.astype(np.float32) * step,
        )


def _rotation(rng: np.random.Generator) -> Floats:
    """A random rotation from a random unit quaternion."""
    w, x, y, z = (q := rng.standard_normal(4)) / np.sqrt((q**2).sum())
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        np.float32,
    )


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A size drawn evenly over its orders of magnitude."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
