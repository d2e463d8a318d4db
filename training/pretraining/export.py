"""The finished run on disk, as far as pre-training goes: encoders and projections; dense heads, findings and prose come later."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.bundle import save_bundle
from VelvetMedLib.bundle.config import BundleConfig, FindingEntry, FineViewConfig, GlobalViewConfig, ViewsConfig, ZeroShotConfig
from VelvetMedLib.engine.files import put_folder
from VelvetMedLib.engine.learner import Learner
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.files import file_sha256, read_json, write_json, write_text
from VelvetMedLib.models.image_encoders import find_encoder
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.reports import ontology

NOT_TRAINED = "pre-training has no findings head"
RECORD, ENCODERS = "encoders.json", "encoders.safetensors"


def export(folder: Path, learner: Learner, tokenizer_json: str, **facts: Any) -> None:
    """A bundle where the encoders are VELVET's; else a folder of plain encoders. facts: as `export_bundle` takes them."""
    if isinstance(learner.model, VelvetModel):
        export_bundle(folder, learner, tokenizer_json, **facts)
    else:
        export_encoders(folder, learner, tokenizer_json, **facts)


def export_encoders(
    folder: Path, learner: Learner, tokenizer_json: str, *, name: str, training_data: str, licence: str, results: dict[str, Any]
) -> None:
    """encoders.safetensors, tokenizer.json, encoders.json (the recipe and its facts) and a card; the whole folder or nothing."""
    recipe = learner.recipe
    new = folder.with_name(f".new-{folder.name}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    weights = new / ENCODERS
    # A model with published weights is written under their names.
    tensors: dict[str, Any] = getattr(learner.model, "released_tensors", learner.model.state_dict)()
    save_file({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, str(weights))
    write_text(new / "tokenizer.json", tokenizer_json)
    method = f"{recipe.name}: {recipe.key}"
    card = card_text(
        name, method, training_data, recipe.levels, licence, results, kind="It is not a bundle: no task of the product reads it."
    )
    write_text(new / "MODEL_CARD.md", card)
    encoder = find_encoder(learner.model)
    facts = {
        "id": name,
        "recipe": method,
        "settings": recipe.to_dict(),
        "vocab_size": ReportTokenizer(tokenizer_json).vocab_size,
        "training_data": training_data,
        "licence": licence,
        "results": results,
        "sha256": file_sha256(weights),
        "image_encoder": None if encoder is None else encoder.to_dict(),
    }
    write_json(new / RECORD, facts)
    put_folder(new, folder, folder.with_name(f".old-{folder.name}"))


def read_encoders(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `export_encoders` wrote: the record and all tensors. Raises TrainingError where they do not belong together."""
    record, weights = read_json(folder / RECORD), folder / ENCODERS
    if record is None or not weights.is_file() or file_sha256(weights) != record.get("sha256"):
        raise TrainingError(
            "The folder of encoders is damaged.",
            found=f"{RECORD} or {ENCODERS} is missing or was changed",
            expected="both, as the pre-training wrote them",
            next_step="Call the pre-training's line again: it writes them from its checkpoint.",
        )
    return record, load_file(str(weights))


def export_bundle(
    folder: Path, learner: Learner, tokenizer_json: str, *, name: str, training_data: str, licence: str, results: dict[str, Any]
) -> BundleConfig:
    """Write the learner's present weights as a bundle, with the match head where one was trained: searches re-rank by it.
    The other objectives' own heads stay in the run's checkpoints."""
    recipe, model = learner.recipe, _with_match_head(learner)
    side = recipe.views.global_voxels
    config = BundleConfig(
        id=name,
        version="1",
        recipe=f"{recipe.name}: {recipe.key}",
        licence=licence,
        training_data=training_data,
        intended_use="Research and development: encoders to fine-tune. Research use only. Not for clinical use.",
        architecture=model.config.to_dict(),
        views=ViewsConfig(
            global_=GlobalViewConfig(shape_voxels=(side, side, side), hu_window=recipe.views.hu_window),
            fine=FineViewConfig(spacing_mm=recipe.views.fine_spacing_mm),
        ),
        aligned_levels=tuple(recipe.levels),
        findings=tuple(FindingEntry(name=finding.name, assessed=False, reason=NOT_TRAINED) for finding in ontology().findings),
        zero_shot=ZeroShotConfig() if "report" in recipe.levels else None,
        results=results,
    )
    return save_bundle(folder, config, model, tokenizer_json, model_card(config, results))


def _with_match_head(learner: Learner) -> VelvetModel:
    model = learner.model
    assert isinstance(model, VelvetModel)
    if "match" not in learner.objectives:
        return model
    whole = VelvetModel(replace(model.config, match=True))
    head = {f"match.{name}": tensor for name, tensor in learner.objectives["match"].head.state_dict().items()}
    whole.load_state_dict(model.state_dict() | head)
    return whole


def model_card(config: BundleConfig, results: dict[str, Any]) -> str:
    """Markdown; every figure comes from `results`."""
    kind = "It has no network for organs and lesions, no findings head and no writer: tasks that need those refuse it."
    return card_text(config.id, config.recipe, config.training_data, config.aligned_levels, config.licence, results, kind=kind)


def card_text(
    name: str, recipe: str, training_data: str, levels: Sequence[str], licence: str, results: dict[str, Any], *, kind: str
) -> str:
    """kind: a sentence on what the folder is not."""
    figures = results.get("validation", {})
    rows = "\n".join(f"| {figure} | {value:.3f} |" for figure, value in figures.items())
    named = ", ".join(levels) or "none"
    return f"""# {name}

{RESEARCH_USE_ONLY}

Encoders pre-trained with the recipe `{recipe}`. It holds an image encoder, a text encoder and their common spaces.
{kind}

* Training data: {training_data}
* Image and text were aligned at these levels: {named}.
* Steps: {results.get("steps", 0)}; weights of step {results.get("step", 0)}, chosen by retrieval on validation studies.
* Licence: {licence}

## Retrieval among {results.get("gallery", 0)} validation studies

The checkpoint was chosen on these same studies, so the figures are optimistic; a study with equal facts counts as right.

| figure | value |
|---|---|
{rows}

Not evaluated on patients' scans. The developers do not claim that this model is appropriate for any purpose in patient care.
"""
