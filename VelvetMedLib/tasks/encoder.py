"""The one pass over a scan: fine sweep, global look, tokens, reader. Each encoder runs at most once per volume and weights."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.bundle.config import refuse
from VelvetMedLib.ct import Volume
from VelvetMedLib.shapes import IntTriple
from VelvetMedLib.tasks.crop import CROP, WINDOWED, encode_crop, need_heads, stages_of, takes_one_crop
from VelvetMedLib.tasks.encoding import LEAST_LESION_BYTE, Encoding, FinePart, GlobalPart, Reading, fine_maps
from VelvetMedLib.tasks.organs import tidy_organs
from VelvetMedLib.tasks.precision import choose_precision
from VelvetMedLib.tasks.progress import CancelCallback, ProgressCallback, Run
from VelvetMedLib.tasks.tokens import lesion_tokens, region_tokens
from VelvetMedLib.tasks.views import OUTSIDE_HU, FineView, fine_view, global_view, windowed

if TYPE_CHECKING:
    import torch

    from VelvetMedLib.bundle.store import Bundle

NEEDS = frozenset({"fine", "global", "reader"})
"""Parts of an encoding for an analysis."""
CROP_NEEDS = frozenset({CROP})
"""Parts for a model that takes one cube of the scan; "windowed" instead of "crop" where the bundle declares it."""
STRIDE = 16
FULL_PRECISION_VOXELS = 2_000_000
"""Larger grids accumulate their tiles in half precision: a quarter of a gigabyte instead of half of one per two million cells."""
STAGES = {"prepare": 0.25, "fine": 0.6, "tokens": 0.1, "global": 0.05}
"""Expected share of the time of each stage."""
_KEPT_ENCODINGS = 2
_cache: OrderedDict[tuple[str, str], Encoding] = OrderedDict()
_lock = threading.Lock()


def encode(
    volume: Volume,
    bundle: Bundle,
    *,
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
    needs: Iterable[str] | None = None,
    run: Run | None = None,
) -> Encoding:
    """The Encoding of a volume with at least the parts in `needs` ("fine", "global", "reader"; "crop" or "windowed" for a model
    that takes one crop). Without `needs`: all that the bundle's model has, one view of a crop.

    What was computed before for the same volume and bundle is taken from memory, part by part; the last two encodings
    are kept. Raises BundleError if the bundle lacks a network that is needed, Cancelled between tiles.
    """
    one_crop = takes_one_crop(bundle)
    wanted = _with_their_own_needs((CROP_NEEDS if one_crop else NEEDS) if needs is None else needs)
    if wanted & NEEDS:
        need_heads(bundle, "the parts of an analysis")
    run = run or Run(progress, cancel, stages_of(bundle, STAGES))
    # One view of a crop is one encoding: the windowed one is another, of the same scan and weights.
    key = (volume.sha256(), bundle.encoding_key + ("" if WINDOWED not in wanted else f" {WINDOWED}"))
    with _lock:
        known = _cache.get(key)
    encoding = known or Encoding(
        volume_sha256=key[0], encoding_key=bundle.encoding_key, weights_sha256=bundle.weights_sha256, scan_grid=volume.grid, run={}
    )
    missing = {part for part, value in _parts(encoding).items() if part in wanted and value is None}
    if missing & {CROP, WINDOWED}:
        view = next(iter(missing))
        crop, precision = encode_crop(volume, bundle, run, view)
        encoding, missing = replace(encoding, crop=crop, precision=precision), set()
        _remember(key, encoding)
    if missing:
        encoding = _encode_missing(encoding, missing, volume, bundle, run)
        _remember(key, encoding)
    return encoding


def _remember(key: tuple[str, str], encoding: Encoding) -> None:
    with _lock:
        _cache[key] = encoding
        _cache.move_to_end(key)
        while len(_cache) > _KEPT_ENCODINGS:
            _cache.popitem(last=False)


def forget_encodings() -> None:
    """Empty the memory of encodings (the worker's `close`, tests)."""
    with _lock:
        _cache.clear()


def _parts(encoding: Encoding) -> dict[str, Any]:
    crop = dict.fromkeys((CROP, WINDOWED), encoding.crop)
    return {"fine": encoding.fine, "global": encoding.global_, "reader": encoding.reading} | crop


def _with_their_own_needs(needs: Iterable[str]) -> set[str]:
    wanted = set(needs)
    if (unknown := wanted - NEEDS - {CROP, WINDOWED}) or (len(wanted) > 1 and wanted & {CROP, WINDOWED}):
        raise ValueError(f"parts that are unknown or that no encoding holds together: {sorted(unknown or wanted)}")
    return wanted | ({"fine", "global"} if "reader" in wanted else set())


def _encode_missing(encoding: Encoding, missing: set[str], volume: Volume, bundle: Bundle, run: Run) -> Encoding:
    import torch

    with run.stage("prepare"):
        view = fine_view(volume, bundle.config.views.fine.spacing_mm)
    with torch.inference_mode():
        if "fine" in missing:
            net = _need_network(bundle, "fine")
            precision = choose_precision(net, bundle.device, len(bundle.config.views.fine.hu_windows))
            with run.stage("fine"):
                organs, lesions, features = sweep(view, bundle, precision, run)
            with run.stage("tokens"):
                encoding = replace(encoding, fine=fine_part(view, organs, lesions, features, bundle), precision=precision)
        if "global" in missing:
            with run.stage("global"):
                encoding = replace(encoding, global_=_global_part(view, bundle))
        if "reader" in missing:
            with run.stage("reader"):
                encoding = replace(encoding, reading=_read(encoding, bundle))
    return encoding


def _need_network(bundle: Bundle, name: str) -> Any:
    network = getattr(bundle.model, name, None)
    if network is None:
        raise refuse(
            f"The bundle {bundle.config.id!r} has no {name} network.",
            found=f"an architecture without '{name}'",
            expected="a bundle made for analysis",
            next_step="Choose another bundle; 'velvetmed models list' names them.",
        )
    return network


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


def sweep(
    view: FineView, bundle: Bundle, precision: str = "fp32", run: Run | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """Run the fine network over all tiles: quantised organ [33, X, Y, Z] and lesion [17, X, Y, Z] probabilities, features [48, X/2, ...].

    Overlapping tiles are averaged as probabilities with Gaussian weights into accumulators that are allocated once.
    """
    net = _need_network(bundle, "fine")
    settings = bundle.config.views.fine
    run = run or Run()
    shape = view.hu_xyz.shape
    padded: IntTriple = tuple(-(-n // STRIDE) * STRIDE for n in shape)  # type: ignore[assignment]
    tile: IntTriple = tuple(min(t, p) for t, p in zip(settings.tile_voxels, padded, strict=True))  # type: ignore[assignment]
    hu = np.full(padded, OUTSIDE_HU, np.float32)
    hu[tuple(slice(0, n) for n in shape)] = view.hu_xyz
    corners = list(product(*(tile_starts(p, t, settings.overlap) for p, t in zip(padded, tile, strict=True))))
    if len(corners) == 1:
        run.step(0.02)
        organs, lesions, features = _run_tile(net, hu, settings.hu_windows, bundle.device, precision)
        return _finished(_to_bytes(organs), _to_bytes(lesions), features.numpy(), shape)
    return _sweep_tiles(net, hu, shape, tile, corners, bundle, precision, run)


def _sweep_tiles(
    net: Any,
    hu: NDArray[np.float32],
    shape: tuple[int, ...],
    tile: IntTriple,
    corners: list[tuple[int, ...]],
    bundle: Bundle,
    precision: str,
    run: Run,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    import torch

    windows, padded = bundle.config.views.fine.hu_windows, hu.shape
    dtype = torch.float32 if hu.size <= FULL_PRECISION_VOXELS else torch.float16
    halves = [n // 2 for n in padded]
    weight = torch.from_numpy(_gaussian(tile))
    half_weight = torch.nn.functional.avg_pool3d(weight[None, None], 2)[0, 0]
    total, half_total = torch.zeros(padded), torch.zeros(halves)
    sums: list[Any] = []
    for number, corner in enumerate(corners):
        run.step(number / len(corners))
        box = tuple(slice(c, c + t) for c, t in zip(corner, tile, strict=True))
        half = tuple(slice(c // 2, (c + t) // 2) for c, t in zip(corner, tile, strict=True))
        parts = _run_tile(net, hu[box], windows, bundle.device, precision)
        if not sums:
            grids = (padded, padded, halves)
            sums = [torch.zeros((len(part), *grid), dtype=dtype) for part, grid in zip(parts, grids, strict=True)]
        for target, part, w, place in zip(sums, parts, (weight, weight, half_weight), (box, box, half), strict=True):
            target[(slice(None), *place)] += (part * w).to(dtype)
        total[box] += weight
        half_total[half] += half_weight
    run.step(1.0)
    organs, lesions = (np.stack([_to_bytes(channel.float() / total) for channel in part]) for part in sums[:2])
    return _finished(organs, lesions, (sums[2].float() / half_total).numpy(), shape)


def _run_tile(
    net: Any, hu: NDArray[np.float32], windows: Any, device: str, precision: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(organ probabilities, lesion probabilities, features) of one tile, float32 on the CPU."""
    import torch

    x = torch.from_numpy(windowed(hu, windows))[None].to(device)
    with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=precision == "bf16"):
        out = net(x)
    # The network works channels-last: the soft-max over the last axis of that layout runs on contiguous memory.
    organs = out.organ_logits[0].permute(1, 2, 3, 0).float().softmax(-1).permute(3, 0, 1, 2)
    return organs.cpu(), out.lesion_logits[0].float().sigmoid().cpu(), out.features[0].float().cpu()


def _to_bytes(probabilities: torch.Tensor) -> NDArray[np.uint8]:
    import torch

    result: NDArray[np.uint8] = (probabilities * 255.0 + 0.5).to(torch.uint8).numpy()
    return result


def _cut(array: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    return np.ascontiguousarray(array[(slice(None), *(slice(0, n) for n in shape))])


def _finished(
    organs: NDArray[np.uint8], lesions: NDArray[np.uint8], features: NDArray[np.float32], shape: Sequence[int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """Without the padding, and without lesion probabilities too low to matter."""
    lesions[lesions < LEAST_LESION_BYTE] = 0
    return _cut(organs, shape), _cut(lesions, shape), _cut(features, [(n + 1) // 2 for n in shape])


def fine_part(
    view: FineView, organs: NDArray[np.uint8], lesions: NDArray[np.uint8], features: NDArray[np.float32], bundle: Bundle
) -> FinePart:
    """What a sweep left behind, tidied and pooled into tokens. Training makes its tokens through this, too."""
    part = FinePart(
        grid=view.grid,
        body_box_ras=view.body_box_ras,
        in_view=view.in_view,
        hu_xyz=np.rint(view.hu_xyz).astype(np.int16),
        organs_xyz=tidy_organs(organs, view.grid.voxel_volume_ml),
        organ_bytes=organs,
        lesions_cxyz=lesions,
        region_tokens=np.zeros((0, 0), np.float32),
        region_mask=np.zeros(0, bool),
        lesion_tokens=np.zeros((0, 0), np.float32),
        lesions=(),
    )
    maps, thresholds = fine_maps(part, features), bundle.config.lesion_thresholds
    regions, mask = region_tokens(maps, thresholds)
    tokens, metas = lesion_tokens(maps, thresholds)
    return replace(part, region_tokens=regions, region_mask=mask, lesion_tokens=tokens, lesions=metas)


def _global_part(view: FineView, bundle: Bundle) -> GlobalPart:
    import torch

    settings = bundle.config.views.global_
    seen = global_view(view, shape=settings.shape_voxels, window=settings.hu_window)
    x = torch.from_numpy(seen.voxels_xyz)[None, None].to(bundle.device)
    spacing = torch.tensor([seen.view_spacing_mm], device=bundle.device)
    maps = bundle.model.encode_global(x, spacing)
    bottom, middle, top = (m[0].float().cpu().numpy() for m in (maps.bottom, maps.middle, maps.top))
    return GlobalPart(bottom=bottom, middle=middle, top=top, view_spacing_mm=seen.view_spacing_mm, view_ijk_to_ras=seen.ijk_to_ras)


def _read(encoding: Encoding, bundle: Bundle) -> Reading:
    import torch

    reader = _need_network(bundle, "reader")
    seen, fine = encoding.need_global(), encoding.need_fine()
    tensors = (
        torch.from_numpy(seen.top)[None],
        torch.tensor([seen.view_spacing_mm]),
        torch.from_numpy(fine.region_tokens)[None],
        torch.from_numpy(fine.region_mask)[None],
        torch.from_numpy(fine.lesion_tokens)[None],
        torch.ones(1, len(fine.lesion_tokens), dtype=torch.bool),
    )
    out = reader(*(t.to(bundle.device) for t in tensors))
    memory, mask, study, regions = (t[0].cpu().numpy() for t in (out.memory.float(), out.memory_mask, out.study, out.region_vectors))
    return Reading(memory=memory, memory_mask=mask, study=study, region_vectors=regions)
