"""The encoding of a model that takes one cube of the scan: a vector of the whole and one of every cell, in the space of its texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.bundle.config import CropViewConfig, refuse
from VelvetMedLib.ct import Volume
from VelvetMedLib.ct.crops import cell_grid, centre_crop
from VelvetMedLib.tasks.encoding import CropPart
from VelvetMedLib.tasks.precision import choose_crop_precision
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.thumbnails import crop_thumbnail

if TYPE_CHECKING:
    import torch

    from VelvetMedLib.bundle.store import Bundle
    from VelvetMedLib.models.colipri import ColipriModel
    from VelvetMedLib.models.primus import Block, Rotary

CROP, WINDOWED = "crop", "windowed"


def view_settings(bundle: Bundle, view: str) -> CropViewConfig:
    """The declared view of a name. Raises BundleError where the bundle does not offer it."""
    offered = {CROP: bundle.config.views.crop, WINDOWED: bundle.config.views.windowed}
    settings = offered.get(view)
    if settings is None:
        there = [name for name, value in offered.items() if value is not None]
        raise refuse(
            f"The bundle {bundle.config.id!r} has no such view.",
            found=view,
            expected=", ".join(there) or "a bundle whose model takes one crop",
            next_step="Choose a view that the bundle declares, or another bundle.",
        )
    return settings


def encode_crop(volume: Volume, bundle: Bundle, run: Run, view: str = CROP) -> tuple[CropPart, str]:
    """The crop part of an encoding, and the arithmetic of its pass. Dense vectors are kept in half precision."""
    import torch

    settings = view_settings(bundle, view)
    with run.stage("prepare"):
        seen = centre_crop(volume, settings.spacing_mm, settings.shape_voxels, settings.hu_window)
    precision = choose_crop_precision(bundle.model, bundle.device)
    with run.stage("crop"), torch.inference_mode():
        x = torch.from_numpy(_tensor_order(seen.voxels_xyz, settings.orientation))[None, None].to(bundle.device)
        features = encode_features(bundle.model, x, settings, precision, bundle.device, run)
        embedding = bundle.model.pooled(features)[0].float().cpu().numpy()
        dense = bundle.model.dense(features)[0].to(torch.float16).cpu().numpy()
        run.step(1.0)
    patch = bundle.model.config.image.patch
    part = CropPart(
        view=view,
        embedding=embedding,
        dense=np.ascontiguousarray(_ras_order(dense, settings.orientation)),
        grid=cell_grid(seen.grid, patch),
        covered=tuple((first // patch, -(-end // patch)) for first, end in seen.covered),  # type: ignore[arg-type]
        picture=crop_thumbnail(seen),
    )
    return part, precision


def encode_features(
    model: ColipriModel, x: torch.Tensor, settings: CropViewConfig, precision: str, device: str = "cpu", run: Run | None = None
) -> torch.Tensor:
    """Cells before projection, float32 [1, W, gx, gy, gz], in the given arithmetic. run: progress by blocks; a cancel is honoured there."""
    import torch

    from VelvetMedLib.models.primus_bf16 import block_in_bf16

    quick = precision == "bf16"
    by_rows = quick and device == "cpu"
    total, done = model.config.image.depth * settings.windows**3, 0

    def run_block(block: Block, states: torch.Tensor, places: Rotary) -> torch.Tensor:
        nonlocal done
        if run is not None:
            run.step(done / total)
        done += 1
        return block_in_bf16(block, states, places) if by_rows else block(states, places)

    with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=quick and not by_rows):
        if settings.windows == 1:
            found = model.features(x, run=run_block)
        else:
            found = model.features_by_windows(x, settings.window_voxels, run=run_block)
    return found.float()


def _tensor_order(voxels_xyz: NDArray[np.float32], orientation: str) -> NDArray[np.float32]:
    """(x, y, z) as the tensor's axes: R, A, S as they are, or S, A, R."""
    return voxels_xyz if orientation == "RAS" else np.ascontiguousarray(voxels_xyz.transpose(2, 1, 0))


def _ras_order(dense: NDArray[Any], orientation: str) -> NDArray[Any]:
    return dense if orientation == "RAS" else dense.transpose(0, 3, 2, 1)


def similarity_xyz(part: CropPart, vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine of every cell with a unit vector of a text, [gx, gy, gz]."""
    found: NDArray[np.float32] = np.einsum("cxyz,c->xyz", part.dense.astype(np.float32), vector.astype(np.float32))
    return found
