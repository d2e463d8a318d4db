"""What a learner makes of held-out scans: features of the global view, and one vector of each study."""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pretraining.run import Data, batch_maker
from probing.features import study_vectors

from VelvetMedLib.engine.data import EVALUATION
from VelvetMedLib.engine.learner import Learner, autocast
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.objectives.base import IMAGE_GLOBAL
from VelvetMedLib.objectives.encoding import coarsest_map, encode
from VelvetMedLib.recipes.base import Recipe
from VelvetMedLib.recipes.t3d import T3dRecipe

AT_ONCE = 8


@torch.no_grad()
def viewed(learner: Learner, data: Data, split: str, processes: Processes, seed: int) -> Iterator[Any]:
    """Features of the global view of a split's studies, `AT_ONCE` after `AT_ONCE`."""
    names = [entry.study.study for entry in data.split(split)]
    maker = batch_maker(data, split, learner.recipe, (IMAGE_GLOBAL,), seed)
    for start in range(0, len(names), AT_ONCE):
        made = maker.batch(names[start : start + AT_ONCE], EVALUATION).to(processes.device)
        with autocast(processes.device, learner.recipe.loop.precision):
            feature = encode(learner.model, made, (IMAGE_GLOBAL,))[IMAGE_GLOBAL]
        yield feature


@singledispatch
def pooled(recipe: Recipe, learner: Learner, data: Data, split: str, processes: Processes, seed: int) -> NDArray[np.float32]:
    """[N, C]: one vector of each study, before any projection, so that every row is probed at the same place: the mean of the coarsest
    map of the global view. For a recipe that views scans in another way another function is registered."""
    maps = [coarsest_map(feature).float() for feature in viewed(learner, data, split, processes, seed)]
    return np.concatenate([found.mean(dim=(2, 3, 4)).cpu().numpy() for found in maps])


@pooled.register
def _(recipe: T3dRecipe, learner: Learner, data: Data, split: str, processes: Processes, seed: int) -> NDArray[np.float32]:
    """The mean over crops that cover the body (methods.md 1.5)."""
    names = [entry.study.study for entry in data.split(split)]
    maker = batch_maker(data, split, recipe, (), seed)
    return study_vectors(learner.model, recipe, maker, names, (), processes.device).without_text["mean"]  # type: ignore[arg-type]
