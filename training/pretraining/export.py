"""The finished run as a bundle, as far as pre-training goes: encoders and projections; dense heads, findings and prose come later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.bundle import save_bundle
from VelvetMedLib.bundle.config import BundleConfig, FindingEntry, FineViewConfig, GlobalViewConfig, ViewsConfig
from VelvetMedLib.engine.learner import Learner
from VelvetMedLib.reports import ontology

NOT_TRAINED = "pre-training has no findings head"


def export_bundle(
    folder: Path, learner: Learner, tokenizer_json: str, *, name: str, training_data: str, licence: str, results: dict[str, Any]
) -> BundleConfig:
    """Write the learner's present weights as a bundle; objectives' own heads stay in the run's checkpoints."""
    recipe = learner.recipe
    side = recipe.views.global_voxels
    config = BundleConfig(
        id=name,
        version="1",
        recipe=f"velvet: {recipe.key}",
        licence=licence,
        training_data=training_data,
        intended_use="Research and development: encoders to fine-tune. Research use only. Not for clinical use.",
        architecture=learner.model.config.to_dict(),
        views=ViewsConfig(
            global_=GlobalViewConfig(shape_voxels=(side, side, side), hu_window=recipe.views.hu_window),
            fine=FineViewConfig(spacing_mm=recipe.views.fine_spacing_mm),
        ),
        aligned_levels=tuple(recipe.levels),
        findings=tuple(FindingEntry(name=finding.name, assessed=False, reason=NOT_TRAINED) for finding in ontology().findings),
        results=results,
    )
    return save_bundle(folder, config, learner.model, tokenizer_json, model_card(config, results))


def model_card(config: BundleConfig, results: dict[str, Any]) -> str:
    """Markdown; every figure comes from `results`."""
    figures = results.get("validation", {})
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in figures.items())
    levels = ", ".join(config.aligned_levels) or "none"
    return f"""# {config.id}

{RESEARCH_USE_ONLY}

Encoders pre-trained with the recipe `{config.recipe}`. It holds an image encoder, a text encoder and their common spaces.
It has no network for organs and lesions, no findings head and no writer: tasks that need those refuse it.

* Training data: {config.training_data}
* Image and text were aligned at these levels: {levels}.
* Steps: {results.get("steps", 0)}; weights of step {results.get("step", 0)}, chosen by retrieval on validation studies.
* Licence: {config.licence}

## Retrieval among {results.get("gallery", 0)} validation studies

The checkpoint was chosen on these same studies, so the figures are optimistic; a study with equal facts counts as right.

| figure | value |
|---|---|
{rows}

Not evaluated on patients' scans. The developers do not claim that this model is appropriate for any purpose in patient care.
"""
