"""AdamW with decay groups, its schedule, the norm of all gradients, and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from VelvetMedLib.recipes.parts import OptimiserSettings


def make_optimiser(module: nn.Module, settings: OptimiserSettings, *, only: Container[str] | None = None) -> torch.optim.AdamW:
    """AdamW in two groups: weights of two or more dimensions decay; norms, biases, the scale and window biases do not.

    only: names of the parameters that this process updates, None = all. A module with `rate_factors` (beginning of a
    parameter's name -> factor on the learning rate, the longest that fits counts) gets such a pair of groups for each factor.
    """
    factors: Mapping[str, float] = getattr(module, "rate_factors", {})
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and (only is None or name in only):
            kind = (factor_of(name, factors), settings.decay_all or decays(name, parameter))
            decay = settings.weight_decay if kind[1] else 0.0
            groups.setdefault(kind, {"params": [], "weight_decay": decay, "factor": kind[0]})["params"].append(parameter)
    return torch.optim.AdamW(
        [groups[kind] for kind in sorted(groups, reverse=True)],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        foreach=False,
    )


def factor_of(name: str, factors: Mapping[str, float]) -> float:
    """The factor of the longest beginning that fits; 1 where none does."""
    fitting = [beginning for beginning in factors if name.startswith(beginning)]
    return factors[max(fitting, key=len)] if fitting else 1.0


def decays(name: str, parameter: Tensor) -> bool:
    """No decay on norms, biases and the contrastive scale: everything of fewer than two dimensions, and the window biases."""
    return parameter.ndim >= 2 and not name.endswith("relative_position_bias_table")


def learning_rate(step: int, steps: int, settings: OptimiserSettings) -> float:
    """Rate of step `step` (from 0) of `steps`: linear warm-up, then half a cosine from learning_rate to last_rate."""
    warm = round(steps * settings.warmup_share)
    if step < warm:
        return settings.learning_rate * (step + 1) / (warm + 1)
    share = (step - warm) / max(1, steps - 1 - warm)
    return settings.last_rate + (settings.learning_rate - settings.last_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)


def gradient_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together, float32."""
    squares = [gradient.detach().float().square().sum() for gradient in gradients]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())


def scale_gradients(gradients: Iterable[Tensor], norm: Tensor, largest: float) -> None:
    """Clip by global norm; `largest` 0 = leave them."""
    if largest > 0 and float(norm) > largest:
        factor = largest / (float(norm) + 1e-6)
        for gradient in gradients:
            gradient.mul_(factor)


def optimiser_tensors(module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments and step counts by parameter name."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in module.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def restore_optimiser(
    module: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], *, only: Container[str] | None = None
) -> None:
    """Inverse of `optimiser_tensors`; parameters without moments, or not among `only`, have none."""
    of: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        owner, key = name.rsplit("/", 1)
        of.setdefault(owner, {})[key] = value
    optimiser.state.clear()
    for name, parameter in module.named_parameters():
        if name in of and (only is None or name in only):
            # torch keeps the step count on the CPU and the moments beside their parameter.
            state = {key: value if key == "step" else value.to(parameter.device) for key, value in of[name].items()}
            optimiser.state[parameter] = state


class MovingAverage:
    """Exponential moving average of a module's parameters; buffers are copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """After step `step` (from 0). The first steps have a shorter memory, or the random start would dominate."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.tensors[name].lerp_(value.detach(), 1 - decay)
            else:
                self.tensors[name].copy_(value)
