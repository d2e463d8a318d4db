"""The COLIPRI-style recipe: what its makers give, what goes along with pairs, and that recipes can be mixed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from Testing.objectives import toys
from VelvetMedLib.ct.body_cells import BodyCells
from VelvetMedLib.engine.data import joined_studies
from VelvetMedLib.engine.learner import Learner
from VelvetMedLib.engine.optimiser import factor_of, make_optimiser, set_learning_rate
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.randomness import generator
from VelvetMedLib.errors import UsageError
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, NOT_ASKED, TEXT_CLEAN, StudyBatch
from VelvetMedLib.objectives.masked_image import IMAGE_MAE, KEPT, PADDING, MaskedImageSettings
from VelvetMedLib.objectives.opposite_sentences import ASKED, TEXT_OPPOSITE
from VelvetMedLib.objectives.report_generation import TEXT_CAUSAL
from VelvetMedLib.recipes import RECIPES, colipri, preset, velvet
from VelvetMedLib.recipes.colipri_inputs import ColipriInputs, CropChanges, PracticeSettings, causal, cut, drawn_cells
from VelvetMedLib.recipes.mixed import mixed
from VelvetMedLib.recipes.overrides import names_of, overridden
from VelvetMedLib.recipes.parts import ReportSettings, ViewSettings

SECTIONS = [
    ("Technique", ["Axial scan."]),
    ("Findings", ["No effusion.", "Small nodule in the left lung.", "Ground-glass in the lung."]),
    ("Impression", ["Nodule."]),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Study:
    """A made-up `StudySource`."""

    hu: NDArray[np.int16]
    name: str = "a"
    group: int = 1
    epoch: int = 0
    evaluation: bool = False
    tokens_for_sentences: bool = False
    views: ViewSettings = field(default_factory=lambda: ViewSettings(local_voxels=32, fine_spacing_mm=(6.0, 6.0, 6.0)))
    reports: ReportSettings = field(default_factory=lambda: ReportSettings(max_tokens=64))
    tokenizer: Any = field(default_factory=toys.tokenizer)
    report: Any = field(default_factory=lambda: SECTIONS)

    def draw(self, purpose: str) -> np.random.Generator:
        return generator(0, self.epoch, self.name, purpose)

    def fine_hu(self) -> NDArray[np.int16]:
        return self.hu

    def body(self) -> BodyCells:
        return BodyCells(np.ones((1, 1, 1), bool), self.hu.shape, self.hu.shape)

    def global_view(self) -> NDArray[np.float32]:
        raise AssertionError("not asked for")

    def sections(self) -> Any:
        return self.report

    def sentences(self) -> list[str]:
        return [s for title, listed in self.report for s in listed if title != "Technique"]

    def other_fine_hu(self, draw: np.random.Generator) -> None:
        return None


def makers(**changes: Any) -> ColipriInputs:
    still = CropChanges(shift_voxels=0, scale=0.0, hu=0.0, noise_hu=0.0)
    settings: dict[str, Any] = {"changes": still, "practice": PracticeSettings(), "masked": MaskedImageSettings(), "tokens": 24, "patch": 8}
    return ColipriInputs(**settings | changes)


def ramp(*shape: int) -> NDArray[np.int16]:
    return np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape).astype(np.int16) % 500


def test_in_evaluation_the_crop_is_the_middle_of_the_scan_in_minus_one_to_one_and_air_beyond_it() -> None:
    hu = ramp(20, 40, 32)
    crop = cut(Study(hu, evaluation=True), "crop", CropChanges(), 8)
    assert crop.voxels.shape == (32, 32, 32) and crop.voxels.dtype == np.float32
    assert np.allclose(crop.voxels[6:26], hu[:, 4:36] / 1000, atol=1e-6)
    assert np.all(crop.voxels[:6] == -1) and np.all(crop.voxels[26:] == -1)
    padding = crop.padding().reshape(4, 4, 4)
    assert not padding.any(), "every cell of eight voxels touches the scan"
    narrow = cut(Study(ramp(10, 32, 32), evaluation=True), "crop", CropChanges(), 8).padding().reshape(4, 4, 4)
    assert narrow[[0, 3]].all() and not narrow[1:3].any()


def test_a_crop_is_shifted_scaled_and_jittered_within_its_bounds_by_its_keys_and_never_mirrored() -> None:
    hu = np.zeros((64, 64, 64), np.int16)
    hu[40:, :, :] = 500  # brighter to the right
    settings = CropChanges(shift_voxels=4, scale=0.1, hu=20, noise_hu=5)
    edges, levels = set(), set()
    for epoch in range(20):
        crop = cut(Study(hu, epoch=epoch), "crop", settings, 8).voxels
        assert np.array_equal(crop, cut(Study(hu, epoch=epoch), "crop", settings, 8).voxels)
        profile = crop.mean(axis=(1, 2))
        assert profile[-1] > profile[0], "the right side stays the right side"
        edges.add(int(np.argmax(profile > 0.25)))
        levels.add(round(float(profile[0]), 3))
    assert len(edges) > 3 and len(levels) > 10 and max(abs(level) for level in levels) < 0.021 + 0.003


def test_a_quarter_of_all_cells_is_kept_drawn_from_the_scan_and_padding_only_where_that_is_too_little() -> None:
    padding = np.zeros(64, bool)
    padding[:30] = True
    counts = np.zeros(64)
    for seed in range(400):
        kept = drawn_cells(padding, 16, np.random.default_rng(seed))
        assert len(set(kept.tolist())) == 16 and np.array_equal(kept, np.sort(kept)) and not padding[kept].any()
        counts[kept] += 1
    assert counts[30:].min() > 120 and counts[30:].max() < 260, "each of the 34 about equally often (188 times)"
    padding[:56] = True
    kept = drawn_cells(padding, 16, np.random.default_rng(0))
    assert set(range(56, 64)) <= set(kept.tolist()) and len(kept) == 16
    assert MaskedImageSettings().kept_of(13_824) == 3_456 and MaskedImageSettings().kept_of(8_000) == 2_000


def test_the_text_of_the_contrast_varies_with_the_epoch_and_is_the_findings_in_evaluation() -> None:
    make, said = makers(), []
    for epoch in range(60):
        layout = make.contrastive_text(Study(ramp(8, 8, 8), epoch=epoch))["texts"][TEXT_CLEAN]
        said.append(toys.tokenizer().decode(layout.ids[0].tolist()))
    assert len(set(said)) > 12 and "No effusion. Small nodule in the left lung. Ground-glass in the lung." in said
    assert "Nodule." in said, "the impression alone"
    layout = make.contrastive_text(Study(ramp(8, 8, 8), evaluation=True))["texts"][TEXT_CLEAN]
    assert toys.tokenizer().decode(layout.ids[0].tolist()) == "No effusion. Small nodule in the left lung. Ground-glass in the lung."
    assert layout.ids[0, 0] == toys.tokenizer().cls_id and not set(layout.ids[0].tolist()) & set(toys.tokenizer().sentence_ids)
    only = makers(practice=PracticeSettings(section_shares=(1.0, 0.0, 0.0), shuffle=0.0, short=0.0))
    assert len({tuple(only.contrastive_text(Study(ramp(8, 8, 8), epoch=e))["texts"][TEXT_CLEAN].ids[0].tolist()) for e in range(5)}) == 1


def test_the_report_to_write_is_never_shuffled_begins_with_its_part_and_asks_for_the_end() -> None:
    tokenizer, make = toys.tokenizer(), makers(tokens=40)
    texts = {"findings": SECTIONS[1][1], "impression": SECTIONS[2][1], "both": [*SECTIONS[1][1], *SECTIONS[2][1]]}
    wanted = {tuple(causal(tokenizer, part, sentences, 40)[0].tolist()) for part, sentences in texts.items()}
    found = set()
    for epoch in range(40):
        made = make.causal_text(Study(ramp(8, 8, 8), epoch=epoch))
        ids, labels = made["extras"][TEXT_CAUSAL][0], made["labels"][TEXT_CAUSAL][0]
        found.add(tuple(ids.tolist()))
        asked = labels != NOT_ASKED
        assert torch.equal(labels[asked], ids[1:][asked[:-1]]) and int(labels[asked][-1]) == tokenizer.id("[EOS]")
        assert int(ids[0]) == tokenizer.id("[REPORT]") and not asked[0] and not asked[-1]
    assert found == wanted


def test_a_report_that_is_too_long_ends_with_a_whole_sentence_and_asks_for_no_end() -> None:
    tokenizer = toys.tokenizer()
    whole, _ = causal(tokenizer, "findings", SECTIONS[1][1], 99)
    ids, labels = causal(tokenizer, "findings", SECTIONS[1][1], len(whole) - 1)
    assert tokenizer.id("[EOS]") not in ids.tolist() and tokenizer.decode(ids.tolist()).endswith("left lung.")
    assert int(labels[-2]) == int(ids[-1]) and int(labels[-1]) == NOT_ASKED
    tight, _ = causal(tokenizer, "findings", SECTIONS[1][1][1:], 8)
    assert len(tight) == 8, "a first sentence that is too long by itself is cut"


def test_opposite_texts_have_a_row_for_each_place_and_empty_rows_are_not_asked() -> None:
    report = [("Findings", ["There is a pleural effusion.", "No pneumothorax."])]
    make = makers(practice=PracticeSettings(opposite_pairs=4))
    made = make.opposite_texts(Study(ramp(8, 8, 8), report=report))
    assert made["extras"][ASKED].tolist() == [[True, True, False, False]]
    layout = made["texts"][TEXT_OPPOSITE]
    assert layout.ids.shape[0] == 8 and [int(n) for n in layout.pad_mask.sum(dim=1)][2:4] == [2, 2], "[CLS] [SEP]"
    none = make.opposite_texts(Study(ramp(8, 8, 8), report=[("Findings", ["Possible effusion."])]))
    assert not none["extras"][ASKED].any() and none["texts"][TEXT_OPPOSITE].ids.shape[0] == 8


def batch_of(recipe: Any, keys: Any, count: int = 2, scans: int = 3) -> StudyBatch:
    """Every input of the recipe for made-up studies, as the engine joins them."""
    inputs = recipe.inputs()
    along = recipe.companions()
    beside = along.keys if along is not None else frozenset()

    def rows(names: set[str], number: int) -> StudyBatch:
        out = []
        for n in range(number):
            study = Study(ramp(30 + n, 32, 28), name=f"s{n}", views=recipe.views, reports=recipe.reports)
            one = StudyBatch(study=torch.tensor([n]), group=torch.tensor([n]), view_spacing_mm=torch.ones(1, 3))
            for make in dict.fromkeys(inputs[key] for key in keys if key in inputs and key in names):
                for part, values in make(study).items():
                    getattr(one, part).update(values)
            out.append(one)
        return joined_studies(out)

    made, extra = rows(set(keys) - beside, count), rows(set(keys) & beside, scans) if beside else None
    return made if extra is None else replace(made, images=made.images | extra.images, extras=made.extras | extra.extras)


def test_a_learner_of_the_recipe_runs_every_objective_with_more_scans_than_pairs() -> None:
    recipe = colipri.micro()
    learner = Learner(recipe, toys.tokenizer().vocab_size)
    assert set(learner.keys) == {IMAGE_GLOBAL, TEXT_CLEAN, TEXT_OPPOSITE, IMAGE_MAE}
    assert set(learner.made) - set(learner.keys) == {TEXT_CAUSAL, ASKED, KEPT, PADDING}
    ctx = Processes("cpu").context(0, 0)
    batch = batch_of(recipe, learner.made)
    assert len(batch) == 2 and len(batch.images[IMAGE_MAE]) == 3
    terms = learner(batch, ctx)
    assert terms.losses.keys() == {f"{n}_loss" for n in ("report_contrast", "report_generation", "opposite_sentences", "masked_image")}
    assert {n: t.count for n, t in terms.losses.items()} == learner.counts(batch, ctx)
    assert terms.losses["masked_image_loss"].count > 0 and all(bool(t.total.isfinite()) for t in terms.losses.values())


@pytest.mark.parametrize(("option", "loss"), [("contrast=sigmoid", "sigmoid_contrast_loss"), ("contrast=none", None)])
def test_the_contrast_is_a_choice_and_its_weight_goes_with_it(option: str, loss: str | None) -> None:
    recipe = overridden(colipri.micro(), [option, "weights.contrast=0.25"])
    learner = Learner(recipe, 300)
    names = {name for name in learner.listed() if "contrast" in name}
    assert names == ({loss.removesuffix("_loss")} if loss else set())
    assert loss is None or learner.weights[loss] == 0.25
    assert recipe.levels == (("report",) if loss else ())


def test_masked_images_alone_read_no_report_and_every_scan_is_a_study() -> None:
    recipe = overridden(colipri.micro(), ["contrast=none", "generation=false", "opposite_sentences=false"])
    assert not recipe.needs_reports and recipe.companions() is None and recipe.key == "M_micro_micro"
    assert Learner(recipe, 300).keys == (IMAGE_MAE,)
    along = colipri.paper().companions()
    assert along is not None and along.of(128) == 128 and not along.paired_too
    with pytest.raises(UsageError, match="contrast"):
        overridden(recipe, ["masked_image=false"])


def test_presets_are_complete_and_the_paper_network_is_the_released_one() -> None:
    assert set(RECIPES) >= {"velvet", "colipri"} and isinstance(preset("colipri", "tiny"), colipri.ColipriRecipe)
    paper = colipri.paper()
    assert paper.views.local_voxels == 160 and paper.key == "CROM_base_M" and paper.optimiser.average_decay == 0.9995
    with torch.device("meta"):
        model = paper.model(30_522)
    image = sum(p.numel() for p in model.image_encoder.parameters())
    assert image == 144_085_536 + 664_320 + 2_362_368, "methods.md 3.1; the mask token is a buffer"
    assert names_of(paper)["writer.layers"] == 6 and names_of(paper)["masking.masked"] == 0.75


def test_encoders_and_heads_learn_at_rates_of_their_own() -> None:
    learner = Learner(colipri.micro(), 300)
    optimiser = make_optimiser(learner, learner.recipe.optimiser)
    set_learning_rate(optimiser, 1e-3)
    names = {id(p): n for n, p in learner.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert len(rates) == len(names)
    assert rates["model.image_encoder.backbone.down_projection.proj.weight"] == 1e-3
    assert rates["model.text_encoder.backbone.embeddings.word_embeddings.weight"] == 0.5e-3
    assert rates["model.image_encoder.projector.weight"] == rates["objectives.report_generation.decoder.bias"] == 2e-3
    decays = {names[id(p)]: group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    assert (
        decays["model.logit_scale"] == decays["objectives.masked_image.decoder.gap"] == 0 < decays["model.image_encoder.projector.weight"]
    )
    assert factor_of("a.b.c", {"a.": 2.0, "a.b.": 3.0}) == 3.0 and factor_of("z", {"a.": 2.0}) == 1.0


def test_velvets_hierarchy_with_colipris_writer_is_one_line_and_learns() -> None:
    recipe = mixed(velvet.micro().with_(mm=False, vis=False, txt=False), colipri.micro(), "report_generation")
    assert "report_generation" in recipe.key and recipe.levels == ("report", "sentence", "word") and recipe.tokens_for_sentences
    learner = Learner(recipe, toys.tokenizer().vocab_size)
    assert [*learner.listed()] == ["report_contrast", "sentence_contrast", "word_contrast", "report_generation"]
    assert learner.made == (IMAGE_GLOBAL, TEXT_CLEAN, TEXT_CAUSAL) and recipe.companions() is None
    assert set(recipe.inputs()) & {IMAGE_GLOBAL, TEXT_CLEAN} == set(), "what both have is made as the base makes it"
    made = batch_of(recipe, learner.made)
    side = recipe.views.global_voxels
    batch = replace(
        made,
        images={IMAGE_GLOBAL: torch.rand(2, 1, side, side, side, generator=torch.Generator().manual_seed(0))},
        texts={TEXT_CLEAN: toys.tokenizer().layout(toys.REPORTS[:2], 64)},
        view_spacing_mm=torch.full((2, 3), 4.0),
    )
    processes = Processes("cpu")
    optimiser = make_optimiser(learner, recipe.optimiser)
    losses = []
    for step in range(6):
        optimiser.zero_grad()
        sums = learner.gradients([batch], processes.context(0, step), processes, 0)
        losses.append(sums.sums["report_generation_loss"] / sums.totals["report_generation_loss"])
        optimiser.step()
    assert losses[-1] < losses[0]
    swin = dict(learner.model.named_parameters())["swin.patch_embed.proj.weight"]
    assert swin.grad is not None and swin.grad.abs().sum() > 0


def test_settings_of_both_sides_of_a_mixed_recipe_are_set_by_dotted_name_and_recorded() -> None:
    recipe = mixed(velvet.micro(), colipri.micro(), "report_generation")
    changed = overridden(recipe, ["base.itc=top", "other.writer.layers=3", "other.weights.report_generation=0.5"])
    assert changed.base.levels == ("report",) and changed.loss_weights()["report_generation_loss"] == 0.5  # type: ignore[attr-defined]
    assert "masked_image_loss" not in changed.loss_weights()
    assert changed.to_dict()["other"]["writer"]["layers"] == 3 and changed.to_dict()["take"] == ["report_generation"]


def test_recipes_that_cannot_be_mixed_say_why() -> None:
    with pytest.raises(UsageError, match="cannot be mixed"):
        mixed(velvet.micro(), colipri.micro(), "report_generation", "nonsense")
    with pytest.raises(UsageError, match="cannot be mixed"):
        mixed(velvet.micro(), colipri.micro(), "report_contrast")
    with pytest.raises(UsageError, match="cannot leave cells"):
        Learner(mixed(velvet.micro(), colipri.micro(), "masked_image"), 300)
    other_way = mixed(colipri.micro(), velvet.micro(), "masked_language_text")
    assert "masked_language_text" in Learner(other_way, 300).listed()
