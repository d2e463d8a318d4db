"""Which arithmetic the fine network runs in: bf16 only where a self-test finds it right and clearly faster, else fp32."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

LEAST_SPEED_UP = 1.3
MOST_DIFFERENCE = 0.03
_decided: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def choose_precision(net: nn.Module, device: str, in_channels: int) -> str:
    """ "bf16" or "fp32" for a network on a device; decided once per process and network. $VELVETMED_PRECISION overrides.

    The test runs a fixed 32-cubed input both ways, since bf16 convolutions have been wrong (pytorch#163539) and are slow
    where the processor lacks them. Right means: organ probabilities differ by at most 0.03.
    """
    wanted = os.environ.get("VELVETMED_PRECISION", "auto").lower()
    if wanted in ("fp32", "bf16"):
        return wanted
    if net not in _decided:
        _decided[net] = "bf16" if _self_test(net, device, in_channels) else "fp32"
    return _decided[net]


def _self_test(net: Any, device: str, in_channels: int) -> bool:
    import torch

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, in_channels, 32, 32, 32, generator=generator).to(device)
    try:
        with torch.inference_mode():
            plain, plain_s = _best_of_three(lambda: net(x).organ_logits.softmax(1))
            with torch.autocast(device.split(":")[0], torch.bfloat16):
                quick, quick_s = _best_of_three(lambda: net(x).organ_logits.float().softmax(1))
    except RuntimeError:
        return False
    difference = float((plain - quick.float()).abs().max())
    return difference <= MOST_DIFFERENCE and plain_s > LEAST_SPEED_UP * quick_s


def _best_of_three(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    result, best = call(), float("inf")
    for _ in range(3):
        started = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - started)
    return result, best
