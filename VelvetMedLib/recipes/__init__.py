"""Recipes: which encoders, views and objectives make up one pre-training method."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from VelvetMedLib.recipes.base import Recipe

RECIPES = {
    "velvet": "VelvetMedLib.recipes.velvet",
    "colipri": "VelvetMedLib.recipes.colipri",
    "t3d": "VelvetMedLib.recipes.t3d",
    "disruptive": "VelvetMedLib.recipes.disruptive",
}
"""Name on the command line -> module with `PRESETS`: loaded when it is asked for, so that listing the names needs no torch."""


def preset(recipe: str, name: str) -> Recipe:
    """A recipe in one of its published settings: `preset("velvet", "tiny")`. Raises KeyError for an unknown name."""
    made: Recipe = importlib.import_module(RECIPES[recipe]).PRESETS[name]()
    return made
