"""From a batch to features: every key that the objectives of a step name is encoded once."""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from VelvetMedLib.models.swin import SwinConfig
from VelvetMedLib.models.t3d import T3dModel
from VelvetMedLib.models.velvet import GlobalFeatures, VelvetModel
from VelvetMedLib.objectives.base import (
    DISRUPTED_CHANNELS,
    IMAGE_DISRUPTED,
    IMAGE_GLOBAL,
    Feature,
    LocalFeatures,
    Objective,
    StudyBatch,
    TextFeatures,
)


def needed_keys(objectives: Iterable[Objective]) -> tuple[str, ...]:
    """All feature keys of the objectives; those of objectives that compare studies come first.

    The order matters where dropout is replayed: pass 1 of cached gradients encodes a beginning of this list.
    """
    listed = list(objectives)
    first = sorted({key for objective in listed if objective.across for key in objective.needs})
    return tuple(dict.fromkeys([*first, *sorted({key for objective in listed for key in objective.needs})]))


@singledispatch
def encode(model: Any, batch: StudyBatch, keys: Iterable[str]) -> dict[str, Feature]:
    """The features of `keys`, their inputs taken from `batch.images` or `batch.texts`; each is encoded once.

    keys: feature keys of `methods.md` 1.5. Another kind of encoders offers its features by these keys, or by new ones, with
    `encode.register(ItsClass)` beside its feature types.
    """
    raise TypeError(f"nothing is registered with encode() for {type(model).__name__}")


@encode.register(VelvetModel)
@encode.register(T3dModel)
def _(model: VelvetModel | T3dModel, batch: StudyBatch, keys: Iterable[str]) -> dict[str, Feature]:
    """Images of all keys go through the vision encoder in one pass where their sides agree; texts through the text layers, one by one."""
    wanted = list(keys)
    features: dict[str, Feature] = {}
    if IMAGE_DISRUPTED in wanted:
        wanted.remove(IMAGE_DISRUPTED)
        kept = whole_blocks(batch.extras[DISRUPTED_CHANNELS], model.swin.config, batch.images[IMAGE_DISRUPTED])
        features[IMAGE_DISRUPTED] = LocalFeatures(model.swin(batch.images[IMAGE_DISRUPTED], kept=kept)[-1])
    image_keys = [key for key in wanted if key.startswith("image.")]
    for shape in dict.fromkeys(batch.images[key].shape for key in image_keys):
        together = [key for key in image_keys if batch.images[key].shape == shape]
        maps = model.swin(torch.cat([batch.images[key] for key in together]))[2:]
        for key, bottom, middle, top in zip(together, *(m.chunk(len(together)) for m in maps), strict=True):
            if key == IMAGE_GLOBAL:
                if batch.view_spacing_mm is None:
                    raise ValueError("a batch with a global view needs its view_spacing_mm")
                features[key] = GlobalFeatures(bottom, middle, top, batch.view_spacing_mm)
            else:
                features[key] = LocalFeatures(top)
    for key in (key for key in wanted if key.startswith("text.")):
        layout = batch.texts[key]
        features[key] = TextFeatures(model.tribert.text(layout.ids, layout.type_ids, layout.pad_mask))
    return features


def whole_blocks(kept: Tensor, config: SwinConfig, image: Tensor) -> Tensor:
    """kept: [B, embed_dim, bx, by, bz], one number per block of tokens -> the same for every token of the image's patch grid."""
    grid = [side // config.patch for side in image.shape[2:]]
    return functional.interpolate(kept.float(), grid, mode="nearest")


def image_cells(feature: Any) -> Tensor:
    """[B, C, x, y, z]: the map whose cells a writer reads. Of VELVET's maps the middle one, else the feature's own `cells`."""
    return feature.middle if isinstance(feature, GlobalFeatures) else feature.cells


def coarsest_map(feature: Any) -> Tensor:
    """[B, C, x, y, z]: what the encoder ends with. Of VELVET's maps the top one, else the feature's own `cells`."""
    return feature.top if isinstance(feature, GlobalFeatures) else feature.cells
