"""Vectors of held-out studies, for the metric that chooses the best checkpoint. Nothing is drawn: same weights, same vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from VelvetMedLib.engine.data import EVALUATION, BatchMaker
from VelvetMedLib.engine.learner import Learner, autocast
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.sampler import part_of
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, TEXT_CLEAN, Features
from VelvetMedLib.objectives.encoding import encode


@torch.no_grad()
def held_out_vectors(
    learner: Learner, maker: BatchMaker, names: Sequence[str], processes: Processes, *, batch: int = 8
) -> tuple[Tensor, Tensor]:
    """Report-level unit vectors of scans and reports, [N, D] each, on the CPU, in the order of `names`; processes share the work.

    maker: must make the inputs of "image.global" and "text.clean".
    """
    before = learner.training
    learner.eval()
    mine = part_of(names, processes.rank, processes.world_size)
    model: Any = learner.model
    width = learner.recipe.vector_width
    images, texts = [torch.zeros(0, width)], [torch.zeros(0, width)]
    for start in range(0, len(mine), batch):
        made = maker.batch(mine[start : start + batch], EVALUATION).to(processes.device)
        # In full precision: early in a run, vectors that differ a little would tie when rounded to bf16.
        with autocast(processes.device, "fp32"):
            features: Features = encode(model, made, (IMAGE_GLOBAL, TEXT_CLEAN))
            images.append(model.project_image(features[IMAGE_GLOBAL], ["report"])["report"].float().cpu())
            states = features[TEXT_CLEAN].states
            texts.append(model.project_text(states, made.texts[TEXT_CLEAN], ["report"])["report"].float().cpu())
    learner.train(before)
    joined = [processes.gather_rows(torch.cat(part).to(processes.device)).cpu() for part in (images, texts)]
    return joined[0], joined[1]


@contextmanager
def weights_of(learner: nn.Module, tensors: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Lend a module other weights, such as their moving average; its own come back exactly."""
    if tensors is None:
        yield
        return
    own = {name: value.detach().clone() for name, value in learner.state_dict().items()}
    learner.load_state_dict(dict(tensors))
    try:
        yield
    finally:
        learner.load_state_dict(own)
