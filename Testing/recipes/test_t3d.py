"""The T3D-style recipe: what it reads of a study, what it keeps still, which losses it weighs, settings to JSON and back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from Testing.objectives import toys
from VelvetMedLib.ct.body_cells import BodyCells
from VelvetMedLib.ct.views import scaled
from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, IMAGE_LOCAL_A, IMAGE_LOCAL_B, TEXT_CLEAN, StudyBatch
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.encoding import encode, needed_keys
from VelvetMedLib.objectives.sentence_subsets import whole_report
from VelvetMedLib.objectives.text_informed_contrast import told
from VelvetMedLib.objectives.text_informed_restoration import ASKED, IMAGE_CORRUPT_A
from VelvetMedLib.recipes.crops import central_start, cut
from VelvetMedLib.recipes.overrides import overridden
from VelvetMedLib.recipes.parts import ReportSettings, ViewSettings
from VelvetMedLib.recipes.t3d import T3dRecipe, micro, paper, tiny
from VelvetMedLib.recipes.t3d_inputs import T3dInputs

HU = np.random.default_rng(0).integers(-900, 900, (50, 46, 44)).astype(np.int16)


@dataclass
class Study:
    """A `StudySource` of noise whose lower half is body, and a report of five sentences."""

    epoch: int = 0
    evaluation: bool = False
    name: str = "a study"
    group: int = 7
    tokens_for_sentences: bool = True
    views: ViewSettings = field(default_factory=lambda: micro().views)
    reports: ReportSettings = field(default_factory=lambda: micro().reports)
    tokenizer: ReportTokenizer = field(default_factory=toys.tokenizer)

    def draw(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.epoch, *purpose.encode()])

    def fine_hu(self) -> np.ndarray:
        return HU

    def body(self) -> BodyCells:
        cells = np.zeros((25, 23, 22), bool)
        cells[:, :, :11] = True
        return BodyCells(cells, (2, 2, 2), (50, 46, 44))

    def global_view(self) -> np.ndarray:
        return np.zeros((32, 32, 32), np.float32)

    def sentences(self) -> list[str]:
        return ["No effusion.", "Small nodule.", "Ground-glass in the lung.", "Nodules.", "Effusion in the left lung."]

    def sections(self) -> list[tuple[str, list[str]]]:
        return [("Findings", self.sentences())]

    def other_fine_hu(self, draw: np.random.Generator) -> None:
        return None


def maker(**changes: object) -> T3dInputs:
    made = micro().inputs()[IMAGE_LOCAL_A]
    assert isinstance(made, T3dInputs)
    return replace(made, **changes)


def test_one_maker_makes_every_input_but_the_global_view_once() -> None:
    recipe = micro()
    keys = needed_keys(recipe.objectives(200).values())
    assert set(keys) == set(recipe.inputs()) == {IMAGE_LOCAL_A, IMAGE_LOCAL_B, IMAGE_CORRUPT_A, TEXT_CLEAN}
    assert len({id(made) for made in recipe.inputs().values()}) == 1
    later = overridden(recipe, ["tma=true", "tma_crops=4"])
    assert set(needed_keys(later.objectives(200).values())) == {*later.inputs(), IMAGE_GLOBAL}
    assert IMAGE_CORRUPT_A not in later.inputs() and "image.local_d" in later.inputs() and later.levels == ("report",)


def test_crops_are_cut_at_full_resolution_where_the_body_is_and_restoration_asks_for_masked_body_alone() -> None:
    made = maker()(Study())
    corrupt, clean, asked = made["images"][IMAGE_CORRUPT_A], made["clean"][IMAGE_CORRUPT_A], made["extras"][ASKED]
    assert all(made["images"][key].shape == (1, 1, 32, 32, 32) for key in (IMAGE_LOCAL_A, IMAGE_LOCAL_B, IMAGE_CORRUPT_A))
    window = micro().views.hu_window
    fits = [
        start
        for start in np.ndindex(19, 15, 13)
        if np.array_equal(clean[0, 0, :2, :2, :2].numpy(), scaled(HU[start[0] :, start[1] :, start[2] :][:2, :2, :2], window))
    ]
    assert len(fits) == 1, "the target is a piece of the scan as it is, not resized and not changed"
    start = np.array(fits[0])
    assert np.array_equal(clean[0, 0].numpy(), scaled(cut(HU, start, (32, 32, 32)), window))
    share = Study().body().share(start.tolist(), (32, 32, 32))
    assert share >= micro().crops.least_body
    inside = torch.from_numpy(Study().body().voxels(start.tolist(), (32, 32, 32)))
    assert asked.dtype == torch.bool and (corrupt[asked] == 0).all() and not asked[0, 0][~inside].any()
    assert abs(float(asked.sum()) / float(inside.sum()) - 0.6) < 0.1


def test_each_crop_is_told_a_part_of_its_own_and_now_and_then_nothing() -> None:
    parts, nothing = set(), 0
    for epoch in range(60):
        made = maker()(Study(epoch=epoch))
        whole = whole_report(made["texts"][TEXT_CLEAN])
        kept = [made["extras"][told(view)] for view in (IMAGE_LOCAL_A, IMAGE_LOCAL_B)]
        assert all(not (k & ~whole).any() for k in kept)
        nothing += sum(not k.any() for k in kept)
        parts.add(torch.equal(kept[0], kept[1]))
    assert parts == {True, False} and 10 < nothing < 40


def test_a_draw_depends_on_study_and_epoch_and_no_setting_moves_another_draw() -> None:
    one, again, other = maker()(Study()), maker()(Study()), maker()(Study(epoch=1))
    for part in ("images", "extras"):
        assert all(torch.equal(one[part][key], again[part][key]) for key in one[part])
    assert not torch.equal(one["images"][IMAGE_LOCAL_A], other["images"][IMAGE_LOCAL_A])
    without = maker(corrupt=False)(Study())
    assert all(torch.equal(one["images"][view], without["images"][view]) for view in (IMAGE_LOCAL_A, IMAGE_LOCAL_B))


def test_in_evaluation_nothing_is_drawn_and_all_is_told() -> None:
    one, other = maker()(Study(evaluation=True)), maker()(Study(evaluation=True, epoch=5))
    for part in ("images", "extras"):
        assert all(torch.equal(one[part][key], other[part][key]) for key in one[part])
    whole = whole_report(one["texts"][TEXT_CLEAN])
    assert all(torch.equal(one["extras"][told(view)], whole) for view in (IMAGE_LOCAL_A, IMAGE_LOCAL_B))
    start = central_start(Study().body(), (32, 32, 32))
    assert np.array_equal(one["images"][IMAGE_LOCAL_A][0, 0].numpy(), scaled(cut(HU, start, (32, 32, 32)), micro().views.hu_window))


def batch_of(recipe: T3dRecipe, count: int = 3) -> StudyBatch:
    """Studies that differ by what is drawn of them."""
    made = [recipe.inputs()[IMAGE_LOCAL_A](Study(epoch=n)) for n in range(count)]
    parts = {field: {key: torch.cat([m[field][key] for m in made]) for key in made[0][field]} for field in ("images", "clean", "extras")}
    layout = made[0]["texts"][TEXT_CLEAN]
    text = type(layout)(**{name: value.expand(count, *value.shape[1:]) for name, value in vars(layout).items()})
    if recipe.tma:
        parts["images"][IMAGE_GLOBAL] = torch.rand(count, 1, 32, 32, 32)
    return StudyBatch(
        study=torch.arange(count), group=torch.arange(count), view_spacing_mm=torch.ones(count, 3), texts={TEXT_CLEAN: text}, **parts
    )


@pytest.mark.parametrize("changes", [[], ["tma=true"], ["contrast.negatives=own_text", "restoration=false"]], ids=["first", "tma", "parts"])
def test_every_loss_has_a_weight_and_every_trained_part_a_gradient(changes: list[str]) -> None:
    torch.manual_seed(0)
    recipe = overridden(micro(), changes)
    model, objectives = recipe.model(toys.tokenizer().vocab_size), recipe.objectives(toys.tokenizer().vocab_size)
    with torch.no_grad():  # a text gate that is closed hides what lies behind it from the gradient
        model.text_informed.cross_gate.fill_(0.5)
    batch = batch_of(recipe)
    features = encode(model, batch, needed_keys(objectives.values()))
    losses = {name: term for o in objectives.values() for name, term in o(model, features, batch, Context()).losses.items()}
    assert set(losses) <= set(recipe.loss_weights())
    for name, objective in objectives.items():
        assert all(loss.startswith(name) for loss in objective.counts(batch, Context()))
    torch.stack([term.total / max(1.0, term.count) for term in losses.values()]).sum().backward()
    named = [*model.named_parameters(), *((n, p) for o in objectives.values() for n, p in o.named_parameters())]
    still = [name for name, p in named if p.grad is None]
    assert not still


def test_a_frozen_text_encoder_is_not_trained_and_drops_nothing_out() -> None:
    recipe = overridden(micro(), ["text_trainable=false"])
    model = recipe.model(200)
    assert not any(p.requires_grad for p in model.tribert.parameters()) and model.config.tribert.dropout == 0
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("tribert."))
    assert not paper().text_trainable and micro().model(200).config.tribert.dropout > 0


def test_settings_survive_json_and_name_themselves() -> None:
    for recipe in (paper(), tiny(), micro(), overridden(micro(), ["tma=true", "tma_clusters=false", "contrast.negatives=own_text"])):
        assert T3dRecipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert paper().key == "t3d_style_BtSv" and paper().name == "t3d_style"
    assert overridden(micro(), ["tma=true", "tma_clusters=false"]).key == "t3d_style_tma_noclusters_micromicro"
    assert paper().views.fine_spacing_mm == (1.0, 1.0, 1.5) and paper().views.local_voxels == 96


@pytest.mark.parametrize(
    ("change", "word"),
    [("heads=5", "heads"), ("loop.micro_batches=2", "loop"), ("tma_crops=9", "tma_crops"), ("text.dropout=2", "dropout")],
)
def test_settings_that_cannot_work_are_refused_by_name(change: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        overridden(micro(), [change])
