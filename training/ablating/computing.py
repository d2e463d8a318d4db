"""How much a pre-training computes, counted and not timed: the same number on every machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pretraining.plan import made_up_batch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from VelvetMedLib.engine.learner import Learner
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.recipes.base import Recipe


@dataclass(frozen=True)
class Work:
    """Of one pre-training. step_flops: floating-point operations of a step; 0 where nobody compares them."""

    steps: int
    step_flops: int = 0

    @property
    def teraflops(self) -> float:
        """10^12 operations in all."""
        return self.steps * self.step_flops / 1e12


class _Counter(TorchDispatchMode):
    """Adds up the operations of matrix products and convolutions, forward and backward, by torch's own formulas.

    torch's `FlopCounterMode` also follows modules, and breaks on one that is called without gradient.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def flops_of(call: Callable[[], Any]) -> int:
    """Floating-point operations of a call; attention is counted as the matrix products that it stands for."""
    with sdpa_kernel(SDPBackend.MATH), _Counter() as counter:
        call()
    return counter.total


@cache
def step_flops(recipe: Recipe, vocab_size: int) -> int:
    """Of one step on made-up studies in the recipe's batch, on the CPU."""
    processes = Processes("cpu")
    loop = recipe.loop
    learner = Learner(recipe, vocab_size)
    batches = [made_up_batch(recipe, vocab_size, loop.batch // loop.micro_batches, learner.made)] * loop.micro_batches
    return flops_of(lambda: learner.gradients(batches, processes.context(0, 0), processes, 0))


def equal_work(recipe: Recipe, like: Recipe, steps: int, vocab_size: int) -> Work:
    """As many steps of `recipe` as compute what `steps` of `like` compute, to within half a step."""
    own = step_flops(recipe, vocab_size)
    return Work(max(1, round(steps * step_flops(like, vocab_size) / own)), own)
