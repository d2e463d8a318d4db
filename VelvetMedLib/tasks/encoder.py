"""The one pass over a scan: fine sweep, global look, tokens, reader. Each encoder runs at most once per volume and weights."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.ct import Volume
from VelvetMedLib.tasks.abilities import has_heads, need_heads, stages_of, takes_one_crop
from VelvetMedLib.tasks.class_maps import ClassMaps
from VelvetMedLib.tasks.cleaning import clean
from VelvetMedLib.tasks.crop import CROP, WINDOWED, encode_crop
from VelvetMedLib.tasks.encoding import Encoding, FinePart, GlobalPart, Reading, fine_maps
from VelvetMedLib.tasks.precision import choose_precision
from VelvetMedLib.tasks.progress import CancelCallback, ProgressCallback, Run
from VelvetMedLib.tasks.sweep import need_network, sweep
from VelvetMedLib.tasks.thumbnails import view_thumbnail
from VelvetMedLib.tasks.tokens import lesion_tokens, region_tokens
from VelvetMedLib.tasks.verification import verified
from VelvetMedLib.tasks.views import FineView, fine_view, global_view

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

NEEDS = frozenset({"fine", "global", "reader"})
"""Parts of an encoding for an analysis."""
GLOBAL_NEEDS = frozenset({"global"})
"""Parts that a model without heads has."""
CROP_NEEDS = frozenset({CROP})
"""Parts for a model that takes one cube of the scan; "windowed" instead of "crop" where the bundle declares it."""
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
    cleaning: bool = True,
    run: Run | None = None,
) -> Encoding:
    """The Encoding of a volume with at least the parts in `needs` ("fine", "global", "reader"; "crop" or "windowed" for a model
    that takes one crop). Without `needs`: all that the bundle's model has, one view of a crop. cleaning: apply `cleaning.RULES` to
    organs and lesions, as in training.

    What was computed before for the same volume and bundle is taken from memory, part by part; the last two encodings
    are kept. Raises BundleError if the bundle lacks a network that is needed, Cancelled between tiles.
    """
    one_crop = takes_one_crop(bundle)
    offered = CROP_NEEDS if one_crop else NEEDS if has_heads(bundle) else GLOBAL_NEEDS
    wanted = _with_their_own_needs(offered if needs is None else needs)
    if wanted & (NEEDS if one_crop else NEEDS - GLOBAL_NEEDS):
        need_heads(bundle, "the parts of an analysis")
    run = run or Run(progress, cancel, stages_of(bundle, STAGES))
    # One view of a crop is one encoding: the windowed one is another, of the same scan and weights. So is one that was not cleaned.
    key = (volume.sha256(), " ".join([bundle.encoding_key, *wanted & {WINDOWED}, *([] if cleaning else ["as found"])]))
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
        encoding = _encode_missing(encoding, missing, volume, bundle, cleaning, run)
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


def _encode_missing(encoding: Encoding, missing: set[str], volume: Volume, bundle: Bundle, cleaning: bool, run: Run) -> Encoding:
    import torch

    with run.stage("prepare"):
        view = fine_view(volume, bundle.config.views.fine.spacing_mm)
    with torch.inference_mode():
        if "fine" in missing:
            net = need_network(bundle, "fine")
            precision = choose_precision(net, bundle.device, len(bundle.config.views.fine.hu_windows))
            with run.stage("fine"):
                organs, lesions, features = sweep(view, bundle, precision, run)
            with run.stage("tokens"):
                fine = fine_part(view, organs, lesions, features, bundle, cleaning=cleaning)
            encoding = replace(encoding, fine=fine, precision=precision, run={**encoding.run, "warnings": list(run.warnings)})
        if "global" in missing:
            with run.stage("global"):
                encoding = replace(encoding, global_=_global_part(view, bundle))
        if "reader" in missing:
            with run.stage("reader"):
                encoding = replace(encoding, reading=_read(encoding, bundle))
    return encoding


def fine_part(
    view: FineView,
    organs: ClassMaps,
    lesions: NDArray[np.uint8],
    features: NDArray[np.float32],
    bundle: Bundle,
    *,
    cleaning: bool = True,
) -> FinePart:
    """What a sweep left behind, cleaned (in place), pooled into tokens and looked at again. Training makes its tokens through this, too."""
    thresholds = bundle.config.lesion_thresholds
    labels, cleaned = clean(organs, lesions, view.grid, thresholds) if cleaning else (organs.labels_xyz(), None)
    part = FinePart(
        grid=view.grid,
        body_box_ras=view.body_box_ras,
        in_view=view.in_view,
        hu_xyz=np.rint(view.hu_xyz).astype(np.int16),
        organs_xyz=labels,
        organ_maps=organs,
        lesions_cxyz=lesions,
        region_tokens=np.zeros((0, 0), np.float32),
        region_mask=np.zeros(0, bool),
        lesion_tokens=np.zeros((0, 0), np.float32),
        lesions=(),
        cleaned=cleaned,
    )
    maps = fine_maps(part, features)
    regions, mask = region_tokens(maps, thresholds)
    tokens, metas = lesion_tokens(maps, thresholds)
    part = replace(part, region_tokens=regions, region_mask=mask, lesion_tokens=tokens, lesions=metas)
    return verified(part, bundle, cleaning=cleaning)


def _global_part(view: FineView, bundle: Bundle) -> GlobalPart:
    import torch

    settings = bundle.config.views.global_
    seen = global_view(view, shape=settings.shape_voxels, window=settings.hu_window)
    x = torch.from_numpy(seen.voxels_xyz)[None, None].to(bundle.device)
    spacing = torch.tensor([seen.view_spacing_mm], device=bundle.device)
    maps = bundle.model.encode_global(x, spacing)
    bottom, middle, top = (m[0].float().cpu().numpy() for m in (maps.bottom, maps.middle, maps.top))
    alone = not has_heads(bundle)  # nothing else of the scan is kept then
    return GlobalPart(
        bottom=bottom,
        middle=middle,
        top=top,
        view_spacing_mm=seen.view_spacing_mm,
        view_ijk_to_ras=seen.ijk_to_ras,
        study=bundle.model.project_image(maps, ["report"])["report"][0].float().cpu().numpy() if alone else None,
        picture=view_thumbnail(view) if alone else None,
    )


def _read(encoding: Encoding, bundle: Bundle) -> Reading:
    import torch

    reader = need_network(bundle, "reader")
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
