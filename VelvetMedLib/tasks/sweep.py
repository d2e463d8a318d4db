"""The sweep of the fine network: tiles with Gaussian weights over the whole scan, in memory that does not grow with its length.

The sums of overlapping tiles hold every class, but only one tile's depth of the grid: what no later tile reaches is divided,
quantised and leaves them. Where memory does not suffice the tiles become smaller, then the processor takes over, each with a warning.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.bundle.config import refuse
from VelvetMedLib.errors import MemoryShortError
from VelvetMedLib.shapes import IntTriple
from VelvetMedLib.tasks.class_maps import ClassMaps, Cut, cut, joined
from VelvetMedLib.tasks.encoding import LEAST_LESION_BYTE
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.views import OUTSIDE_HU, FineView, windowed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from VelvetMedLib.bundle.store import Bundle

STRIDE = 16
LEAST_TILE = 32
"""Tiles are not made smaller than this on any side: less context than that shows nothing."""
FULL_PRECISION_BYTES = 256 * 2**20
"""Sums that would take more are kept in half precision."""
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")
Swept = tuple[ClassMaps, NDArray[np.uint8], NDArray[np.float32]]
"""Organ classes; lesion probabilities [channels, X, Y, Z], quantised; features [F, ceil(X/2), ceil(Y/2), ceil(Z/2)]."""


def need_network(bundle: Bundle, name: str) -> Any:
    """A network of the bundle's model by name. Raises BundleError where there is none."""
    network = getattr(bundle.model, name, None)
    if network is None:
        raise refuse(
            f"The bundle {bundle.config.id!r} has no {name} network.",
            found=f"an architecture without '{name}'",
            expected="a bundle made for analysis",
            next_step="Choose another bundle; 'velvetmed models list' names them.",
        )
    return network


def sweep(view: FineView, bundle: Bundle, precision: str = "fp32", run: Run | None = None) -> Swept:
    """Run the fine network over all tiles; overlapping tiles are averaged as probabilities with Gaussian weights.

    Out of memory it goes on with tiles of half the side, down to `LEAST_TILE`, then on the processor in full precision, and says
    so in `run.warnings`. Raises MemoryShortError where that does not suffice either, Cancelled between tiles.
    """
    net, run = need_network(bundle, "fine"), run or Run()
    settings = bundle.config.views.fine
    padded: IntTriple = tuple(-(-n // STRIDE) * STRIDE for n in view.hu_xyz.shape)  # type: ignore[assignment]
    whole: IntTriple = tuple(min(t, p) for t, p in zip(settings.tile_voxels, padded, strict=True))  # type: ignore[assignment]
    tiles = [whole]
    while (less := _smaller(tiles[-1])) != tiles[-1]:
        tiles.append(less)
    rungs = [(device, tile) for device in dict.fromkeys((bundle.device, "cpu")) for tile in tiles]
    for number, (device, tile) in enumerate(rungs):
        if number:
            run.warnings.append(_notice(device, tile, changed=device != rungs[number - 1][0]))
        try:
            if device == bundle.device:
                return _sweep_with(net, view, settings, tile, device, precision, run)
            net.to(device)
            return _sweep_with(net, view, settings, tile, device, "fp32", run)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
        finally:
            if device != bundle.device:
                net.to(bundle.device)
        # Outside the handler, whose traceback keeps the tensors of the failed attempt.
        _let_go(device)
    raise MemoryShortError(
        "The memory does not suffice for this scan.",
        found=f"no room for tiles of {_size(tiles[-1])} cells",
        expected="room for one tile with all its classes",
        next_step="Close other programs, or crop the scan to the part of interest.",
    )


def _smaller(tile: IntTriple) -> IntTriple:
    x, y, z = (min(n, max(LEAST_TILE, -(-n // (2 * STRIDE)) * STRIDE)) for n in tile)
    return x, y, z


def _size(tile: IntTriple) -> str:
    return " x ".join(map(str, tile))


def _notice(device: str, tile: IntTriple, *, changed: bool) -> str:
    how = "went on on the processor, which is slower," if changed else "went on"
    return f"Out of memory: the sweep {how} with tiles of {_size(tile)} cells. Labels can differ from those with larger tiles."


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's own, or torch's by its words (they differ by device and version)."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)


def _let_go(device: str) -> None:
    import torch

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def tile_starts(size: int, tile: int, overlap: float) -> list[int]:
    """Even starts of tiles of `tile` cells that cover `size` cells with at least the given overlap, spread evenly."""
    if size <= tile:
        return [0]
    count = int(np.ceil((size - tile) / (tile * (1.0 - overlap)))) + 1
    # Even, so that the half-resolution features of neighbouring tiles lie on one lattice.
    return [round(n * (size - tile) / (count - 1) / 2) * 2 for n in range(count)]


def _gaussian(shape: Sequence[int]) -> NDArray[np.float32]:
    """Weight of a tile's cells: a Gaussian of an eighth of each side, never below 1/100 of its peak."""
    weight = np.ones((), np.float32)
    for n in shape:
        place = (np.arange(n) - (n - 1) / 2) / (n / 8.0)
        weight = np.multiply.outer(weight, np.exp(-0.5 * place**2).astype(np.float32))
    return np.maximum(weight / weight.max(), 0.01).astype(np.float32)


class _Sums:
    """Weighted sums of one output of the network, one tile deep along the sweep's axis: [x, y, z, channels].

    The axes lie in the network's own order, so that sheets are whole pieces of memory, channels last or first. (Sheets across the
    sweep's axis took 1.2 times as long, 2.4 times from a network that gives its channels first; 117 classes, one thread.)
    """

    def __init__(self, weight: Tensor, shape: Sequence[int], channels: int, axis: int, activation: Callable[[Tensor], Tensor]) -> None:
        """weight: of a tile's cells, [x, y, z]. shape: of the sums."""
        import torch

        self._weight, self._axis, self._activation = weight, axis, activation
        dtype = torch.float32 if 4 * channels * int(np.prod(shape)) <= FULL_PRECISION_BYTES else torch.float16
        self._values = torch.zeros((*shape, channels), dtype=dtype, device=weight.device)
        self._total = torch.zeros(tuple(shape), device=weight.device)

    def add(self, output: Tensor, corner: Sequence[int]) -> None:
        """Add a tile's output, [x, y, z, channels], whose first cell is `corner` of the sums."""
        y, z = (slice(c, c + n) for c, n in zip(corner[1:], output.shape[1:3], strict=True))
        # Sheet by sheet: no copy of a whole tile is made.
        for x, weight in enumerate(self._weight, start=corner[0]):
            part = self._activation(output[x - corner[0]].float()) * weight[..., None]
            self._values[x, y, z] += part.to(self._values.dtype)
            self._total[x, y, z] += weight

    def leave(self, planes: int, into_cxyz: NDArray[Any], first: int) -> None:
        """Write the means of the first planes as planes `first`... of the axis, bytes as 255 = 1; the rest moves to the front.

        What reaches beyond the array is padding and is dropped.
        """
        sides = list(into_cxyz.shape[1:])
        sides[self._axis] = min(planes, sides[self._axis] - first)
        width, y, z = sides
        target = into_cxyz[(slice(None),) * (self._axis + 1) + (slice(first, first + sides[self._axis]),)]
        one = 255.0 if into_cxyz.dtype == np.uint8 else 1.0
        for x in range(width):
            mean = self._values[x, :y, :z].float() * (one / self._total[x, :y, :z, None])
            if into_cxyz.dtype == np.uint8:
                mean = mean.add_(0.5).byte()
            target[:, x] = mean.flatten(0, 1).t().contiguous().reshape(-1, y, z).cpu().numpy()
        for sums in (self._values, self._total):
            # Along the first axis whole sheets move; along another, rows within each sheet.
            along, across = max(self._axis - 1, 0), 1 if self._axis == 0 else 0
            for sheet in sums.unbind(across):
                kept = sheet.shape[along] - planes
                sheet.narrow(along, 0, kept).copy_(sheet.narrow(along, planes, kept).clone())
                sheet.narrow(along, kept, planes).zero_()


def _sweep_with(net: Any, view: FineView, settings: Any, tile: IntTriple, device: str, precision: str, run: Run) -> Swept:
    import torch

    shape: IntTriple = view.hu_xyz.shape  # type: ignore[assignment]
    padded = [-(-n // STRIDE) * STRIDE for n in shape]
    hu = np.full(padded, OUTSIDE_HU, np.float32)
    hu[tuple(slice(0, n) for n in shape)] = view.hu_xyz
    # Along the axis on which a tile covers the least share of the scan, the sums are smallest.
    axis = min(range(3), key=lambda a: tile[a] / padded[a])
    others = [a for a in range(3) if a != axis]
    starts = [tile_starts(p, t, settings.overlap) for p, t in zip(padded, tile, strict=True)]
    corners = list(product(*(starts[a] for a in others)))
    weight = torch.from_numpy(_gaussian(tile)).to(device)
    half_weight = torch.nn.functional.avg_pool3d(weight[None, None], 2)[0, 0]
    room = [tile[a] if a == axis else padded[a] for a in range(3)]
    sums: list[_Sums] = []
    slabs: list[list[Cut]] = []
    for layer, first in enumerate(starts[axis]):
        for number, corner in enumerate(corners):
            run.step(max((layer + number / len(corners)) / len(starts[axis]), 0.02))
            low = np.insert(corner, axis, first)
            outputs = _outputs(net, hu[tuple(slice(c, c + t) for c, t in zip(low, tile, strict=True))], settings, device, precision)
            if not sums:
                organs, lesions, features = (part.shape[-1] for part in outputs)
                sums = [_Sums(weight, room, organs, axis, lambda logits: logits.softmax(-1))]
                sums += [_Sums(weight, room, lesions, axis, torch.sigmoid)]
                sums += [_Sums(half_weight, [n // 2 for n in room], features, axis, lambda values: values)]
                lesions_cxyz = np.empty((lesions, *shape), np.uint8)
                features_cxyz = np.empty((features, *((n + 1) // 2 for n in shape)), np.float32)
            place = [int(c) for c in np.insert(corner, axis, 0)]
            for total, output, where in zip(sums, outputs, (place, place, [c // 2 for c in place]), strict=True):
                total.add(output, where)
            del outputs, output
        planes = ([*starts[axis], padded[axis]][layer + 1]) - first
        slab = np.empty((organs, *(min(planes, n - first) if a == axis else n for a, n in enumerate(shape))), np.uint8)
        sums[0].leave(planes, slab, 0)
        slabs.append(cut(slab, axis, first))
        sums[1].leave(planes, lesions_cxyz, first)
        sums[2].leave(planes // 2, features_cxyz, first // 2)
    for channel in lesions_cxyz:
        channel[channel < LEAST_LESION_BYTE] = 0
    run.step(1.0)
    return joined(shape, slabs), lesions_cxyz, features_cxyz


def _outputs(
    net: Any, hu: NDArray[np.float32], settings: Any, device: str, precision: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Organ logits, lesion logits and features of one tile, [x, y, z, channels]."""
    import torch

    x = torch.from_numpy(windowed(hu, settings.hu_windows))[None].to(device)
    with torch.autocast(device.split(":")[0], torch.bfloat16) if precision == "bf16" else nullcontext():
        out = net(x)
    organs, lesions, features = (part[0].movedim(0, -1) for part in (out.organ_logits, out.lesion_logits, out.features))
    return organs, lesions, features
