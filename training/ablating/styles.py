"""The other recipes on VELVET-Med's encoder: the same Swin and text sizes, studies, batch, optimiser and schedule; objectives their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from VelvetMedLib.objectives.base import TEXT_CLEAN
from VelvetMedLib.recipes import colipri, t3d
from VelvetMedLib.recipes.base import Recipe
from VelvetMedLib.recipes.mixed import MixedRecipe
from VelvetMedLib.recipes.t3d import T3dRecipe
from VelvetMedLib.recipes.velvet import VelvetRecipe

R = TypeVar("R", bound=Recipe)


def _of_size(presets: Mapping[str, Callable[[], R]], base: VelvetRecipe) -> R:
    """The preset that goes with the base's text encoder: heads and writers are as small as it is."""
    return presets.get(base.text_size, presets["paper"])()


def colipri_style(base: VelvetRecipe) -> MixedRecipe:
    """COLIPRI's objectives and contrastive text on the base's encoders, views and report-level contrast.

    Masked images are left out: the loss encodes the kept cells alone, and a Swin cannot leave cells out of its windows.
    """
    other = _of_size(colipri.PRESETS, base)
    return MixedRecipe(base=base, other=other, take=("report_generation", "opposite_sentences"), shared=(TEXT_CLEAN,))


def t3d_style(base: VelvetRecipe) -> T3dRecipe:
    """Contrast and restoration of crops as large as the base's global view, at its fine spacing.

    The text encoder learns too: nothing here begins with trained weights.
    """
    return _of_size(t3d.PRESETS, base).with_(
        vision_size=base.vision_size,
        text_size=base.text_size,
        text_trainable=True,
        diagnose_every=0,
        views=replace(base.views, local_voxels=base.views.global_voxels),
        reports=base.reports,
        optimiser=base.optimiser,
        loop=base.loop,
    )
