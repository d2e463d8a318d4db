"""Probabilities of all classes on the fine grid without an array of all classes: each class only within the box where it can win."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.shapes import IntTriple

Box = tuple[slice, slice, slice]
"""(x, y, z) slices."""
Cells = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]
"""Indices of cells, as `np.nonzero` gives them."""


def filled_box(hit_xyz: NDArray[np.bool_]) -> Box | None:
    """Tight box of the True cells; None where there is none."""
    box = []
    for axis in range(3):
        filled = np.flatnonzero(hit_xyz.any(axis=tuple(a for a in range(3) if a != axis)))
        if len(filled) == 0:
            return None
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return box[0], box[1], box[2]


def widened(box: Box, shape: Sequence[int]) -> Box:
    """A box and one cell more on every side, within an array."""
    x, y, z = (slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, shape, strict=True))
    return x, y, z


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """Quantised probabilities (255 = 1) of classes 0 (background), 1, 2, ... on one grid of `shape`.

    boxes, parts: for each class its box and the bytes in it; beside its box a class is 0. A class's box holds every cell where
    it has at least 1/classes of the probability, so that the largest probability of every cell is there.
    """

    shape: IntTriple
    boxes: tuple[Box, ...]
    parts: tuple[NDArray[np.uint8], ...]

    def __len__(self) -> int:
        return len(self.parts)

    @classmethod
    def of(cls, bytes_cxyz: NDArray[np.uint8]) -> ClassMaps:
        """From all classes at once, [classes, X, Y, Z]."""
        _, x, y, z = bytes_cxyz.shape
        return joined((x, y, z), [cut(bytes_cxyz, 0, 0)])

    @classmethod
    def certain(cls, labels_xyz: NDArray[np.uint8]) -> ClassMaps:
        """Labels as probabilities of 1."""
        cuts: list[Cut] = []
        for label in range(int(labels_xyz.max()) + 1):
            box = filled_box(labels_xyz == label)
            cuts.append(None if box is None else (box, np.where(labels_xyz[box] == label, np.uint8(255), np.uint8(0))))
        x, y, z = labels_xyz.shape
        return joined((x, y, z), [cuts])

    def labels_xyz(self) -> NDArray[np.uint8]:
        """The most probable class of every cell, the first of equals; a running maximum over the classes' boxes."""
        labels = np.zeros(self.shape, np.uint8)
        best = np.zeros(self.shape, np.uint8)
        for label, (box, part) in enumerate(zip(self.boxes, self.parts, strict=True)):
            better = part > best[box]
            labels[box][better] = label
            np.maximum(best[box], part, out=best[box])
        return labels

    def labels_at(self, cells: Cells) -> NDArray[np.uint8]:
        """The most probable class of some cells."""
        best, labels = np.zeros(len(cells[0]), np.uint8), np.zeros(len(cells[0]), np.uint8)
        for label in range(len(self)):
            value = self.at(label, cells)
            labels[value > best] = label
            np.maximum(best, value, out=best)
        return labels

    def at(self, label: int, cells: Cells) -> NDArray[np.uint8]:
        """A class's bytes in some cells."""
        values = np.zeros(len(cells[0]), np.uint8)
        inside, local = self._local(label, cells)
        values[inside] = self.parts[label][local]
        return values

    def put(self, label: int, cells: Cells, values: NDArray[np.uint8] | int) -> None:
        """Overwrite a class's bytes in some cells; those beside its box stay 0."""
        inside, local = self._local(label, cells)
        self.parts[label][local] = values if isinstance(values, int) else values[inside]

    def _local(self, label: int, cells: Cells) -> tuple[NDArray[np.bool_], Cells]:
        box = self.boxes[label]
        inside = np.ones(len(cells[0]), bool)
        for index, side in zip(cells, box, strict=True):
            inside &= (index >= side.start) & (index < side.stop)
        x, y, z = (index[inside] - side.start for index, side in zip(cells, box, strict=True))
        return inside, (x, y, z)


Cut = tuple[Box, NDArray[np.uint8]] | None
"""A class's box in one slab and a copy of the bytes in it; None where it has none."""


def cut(slab_cxyz: NDArray[np.uint8], axis: int, first: int) -> list[Cut]:
    """What is kept of a slab, [classes, ...], whose first plane along `axis` is the grid's plane `first`: one box per class."""
    least = max(1, 255 // len(slab_cxyz))
    kept: list[Cut] = []
    for label, part in enumerate(slab_cxyz):
        box = filled_box(part >= least) if label else (slice(0, part.shape[0]), slice(0, part.shape[1]), slice(0, part.shape[2]))
        if box is None:
            kept.append(None)
            continue
        x, y, z = (slice(s.start + first, s.stop + first) if a == axis else s for a, s in enumerate(box))
        kept.append(((x, y, z), part[box].copy()))
    return kept


def joined(shape: IntTriple, slabs: Sequence[list[Cut]]) -> ClassMaps:
    """The maps of a grid from what was kept of its slabs; empties the slabs' lists.

    Each class gets an empty cell around it: interpolated, it falls off towards 0 instead of going on at its last value.
    """
    boxes, parts = [], []
    for label in range(len(slabs[0])):
        pieces = [piece for slab in slabs if (piece := slab[label]) is not None]
        low = [max(min((box[a].start for box, _ in pieces), default=1) - 1, 0) for a in range(3)]
        high = [min(max((box[a].stop for box, _ in pieces), default=0) + 1, shape[a]) for a in range(3)]
        part = np.zeros(np.subtract(high, low), np.uint8)
        for box, values in pieces:
            part[tuple(slice(s.start - first, s.stop - first) for s, first in zip(box, low, strict=True))] = values
        boxes.append((slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])))
        parts.append(part)
        for slab in slabs:
            # One class at a time: the pieces and the whole are never both there for all classes.
            slab[label] = None
    return ClassMaps(shape, tuple(boxes), tuple(parts))
