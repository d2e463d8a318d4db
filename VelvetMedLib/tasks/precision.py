"""Which arithmetic an image network runs in: bf16 only where the processor has it and a self-test finds it right, else fp32.

Nothing here looks at a clock: the same machine always chooses alike, so two runs on one scan give the same answer.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

MOST_MEAN_DIFFERENCE = 0.005
LEAST_COSINE = 0.999
_decided: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def choose_precision(net: nn.Module, device: str, in_channels: int) -> str:
    """ "bf16" or "fp32" for a network on a device; decided once per process and network. $VELVETMED_PRECISION overrides.

    The self-test runs a fixed 32-cubed input both ways, since bf16 convolutions have been silently wrong (pytorch#163539).
    Right means: organ probabilities differ by at most 0.005 in the mean.
    """
    wanted = os.environ.get("VELVETMED_PRECISION", "auto").lower()
    if wanted in ("fp32", "bf16"):
        return wanted
    if net not in _decided:
        _decided[net] = "bf16" if has_bf16(device) and _self_test(net, device, in_channels) else "fp32"
    return _decided[net]


def choose_crop_precision(model: nn.Module, device: str) -> str:
    """ "bf16" or "fp32" for a COLIPRI model; decided once per process and model. $VELVETMED_PRECISION overrides.

    Right means: the vectors of a fixed 64-cubed noise image, whole and by cells, have a cosine of at least 0.999 between the two.
    """
    wanted = os.environ.get("VELVETMED_PRECISION", "auto").lower()
    if wanted in ("fp32", "bf16"):
        return wanted
    if model not in _decided:
        _decided[model] = "bf16" if has_bf16(device) and _crop_self_test(model, device) else "fp32"
    return _decided[model]


def has_bf16(device: str) -> bool:
    """Whether the device multiplies bf16 in hardware; emulation is slower than fp32."""
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    if device != "cpu":
        return False
    # Older torch releases cannot tell; they run fp32.
    answers = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(answer()) for answer in answers if answer is not None)


def _self_test(net: Any, device: str, in_channels: int) -> bool:
    import torch

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, in_channels, 32, 32, 32, generator=generator).to(device)
    try:
        with torch.inference_mode():
            plain = net(x).organ_logits.softmax(1)
            with torch.autocast(device.split(":")[0], torch.bfloat16):
                quick = net(x).organ_logits.float().softmax(1)
    except RuntimeError:
        return False
    return float((plain - quick).abs().mean()) <= MOST_MEAN_DIFFERENCE


def _crop_self_test(model: Any, device: str) -> bool:
    import torch

    from VelvetMedLib.bundle.config import CropViewConfig
    from VelvetMedLib.tasks.crop import encode_features

    side = max(64 // model.config.image.patch, 1) * model.config.image.patch
    x = torch.rand(1, 1, side, side, side, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    settings = CropViewConfig(window_voxels=side)
    try:
        with torch.inference_mode():
            plain, quick = (encode_features(model, x, settings, precision, device) for precision in ("fp32", "bf16"))
            cosines = torch.cat([(f(plain) * f(quick)).sum(dim=1).flatten() for f in (model.pooled, model.dense)])
    except RuntimeError:
        return False
    return float(cosines.min()) >= LEAST_COSINE
