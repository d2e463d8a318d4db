"""How the structures of a task lie in one array: at most one in a voxel (numbers, a soft-max), or any of them (bits, a sigmoid each)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Coded = NDArray[np.unsignedinteger[Any]]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Coding(ABC):
    """structures: how many there are; they are counted from 1, 0 is the background. exclusive: no two share a voxel."""

    structures: int
    exclusive: ClassVar[bool]

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Logits of a voxel."""

    @abstractmethod
    def coded(self, members: Iterable[Mask]) -> Coded:
        """One array from the masks of structures 1, 2, ..."""

    @abstractmethod
    def layers(self, coded: Coded) -> Iterator[tuple[Coded, dict[int, int]]]:
        """Label maps in which no structures overlap, each with {its value: number of the structure}; together they hold them all."""

    @abstractmethod
    def swapped(self, coded: Coded, swap: NDArray[np.uint8]) -> Coded:
        """Structure n becomes swap[n]."""

    @abstractmethod
    def targets(self, coded: Tensor) -> Tensor:
        """[B, 1, X, Y, Z] int64 as the loss wants it."""

    @abstractmethod
    def found(self, logits: Tensor) -> Coded:
        """Logits [outputs, X, Y, Z] -> what they say of each voxel."""

    def counts(self, coded: Coded) -> list[int]:
        """Voxels of the background and of structures 1, 2, ..."""
        found = [int(np.count_nonzero(coded == 0))] + [0] * self.structures
        for layer, number in self.layers(coded):
            sizes = np.bincount(layer.ravel(), minlength=max(number) + 1)
            for value, n in number.items():
                found[n] = int(sizes[value])
        return found


class OneOf(Coding):
    """uint8: the number of the structure. Where masks overlap the later one counts."""

    exclusive = True

    @property
    def outputs(self) -> int:
        return self.structures + 1

    def coded(self, members: Iterable[Mask]) -> Coded:
        out: Coded | None = None
        for n, mask in enumerate(members, start=1):
            out = np.zeros(mask.shape, np.uint8) if out is None else out
            out[mask] = n
        assert out is not None
        return out

    def layers(self, coded: Coded) -> Iterator[tuple[Coded, dict[int, int]]]:
        yield coded, {n: n for n in range(1, self.structures + 1)}

    def swapped(self, coded: Coded, swap: NDArray[np.uint8]) -> Coded:
        return swap[coded]

    def targets(self, coded: Tensor) -> Tensor:
        return coded

    def found(self, logits: Tensor) -> Coded:
        out: Coded = logits.argmax(0).to(torch.uint8).numpy()
        return out


class AnyOf(Coding):
    """uint32: bit n - 1 stands for structure n."""

    exclusive = False

    @property
    def outputs(self) -> int:
        return self.structures

    def coded(self, members: Iterable[Mask]) -> Coded:
        return _packed(members)

    def layers(self, coded: Coded) -> Iterator[tuple[Coded, dict[int, int]]]:
        for n in range(1, self.structures + 1):
            yield ((coded >> np.uint32(n - 1)) & np.uint32(1)).astype(np.uint8), {1: n}

    def swapped(self, coded: Coded, swap: NDArray[np.uint8]) -> Coded:
        layers = [layer for layer, _ in self.layers(coded)]
        # Swapping back and forth is the same, so what becomes n is what n becomes.
        return _packed(layers[swap[n] - 1] > 0 for n in range(1, self.structures + 1))

    def targets(self, coded: Tensor) -> Tensor:
        numbers = torch.arange(self.structures, device=coded.device)[:, None, None, None]
        return ((coded >> numbers) & 1).float()

    def found(self, logits: Tensor) -> Coded:
        return _packed(channel.numpy() > 0 for channel in logits)


def _packed(members: Iterable[Mask]) -> Coded:
    out: Coded | None = None
    for n, mask in enumerate(members):
        out = np.zeros(mask.shape, np.uint32) if out is None else out
        out |= mask.astype(np.uint32) << np.uint32(n)
    assert out is not None
    return out
