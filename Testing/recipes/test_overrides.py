"""Settings by dotted name: what is changed, and what is refused in words."""

from __future__ import annotations

import pytest
import torch

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.swin import SwinEncoder
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.recipes.overrides import names_of, overridden
from VelvetMedLib.recipes.velvet import ITC, PRESETS, TEXT, VISION, VelvetRecipe, micro, paper, tiny


def test_a_dotted_name_changes_one_setting_and_no_other() -> None:
    before, after = names_of(tiny()), names_of(overridden(tiny(), ["optimiser.learning_rate=3e-3"]))
    assert after["optimiser.learning_rate"] == 3e-3
    assert {name for name in before if before[name] != after[name]} == {"optimiser.learning_rate"}


@pytest.mark.parametrize(
    ("assignment", "name", "value"),
    [
        ("loop.batch=8", "loop.batch", 8),
        ("mm=off", "mm", False),
        ("txt=TRUE", "txt", True),
        ("itc=topmid", "itc", "topmid"),
        ("text_dropout=0.2", "text_dropout", 0.2),
        ("text_dropout=none", "text_dropout", None),
        ("views.fine_spacing_mm=1.5,1.5,2", "views.fine_spacing_mm", (1.5, 1.5, 2.0)),
        ("reports.report_fields=Findings,Impression", "reports.report_fields", ("Findings", "Impression")),
        ("loop.precision = fp32", "loop.precision", "fp32"),
    ],
)
def test_values_are_read_by_the_kind_of_their_setting(assignment: str, name: str, value: object) -> None:
    assert names_of(overridden(tiny(), [assignment]))[name] == value


def test_later_assignments_win() -> None:
    assert overridden(tiny(), ["agg=sum", "agg=mean"]).agg == "mean"


def test_the_order_of_settings_that_belong_together_does_not_matter() -> None:
    assert overridden(tiny(), ["itc=none", "mm=false"]) == overridden(tiny(), ["mm=false", "itc=none"])


def test_an_unknown_name_is_refused_and_the_nearest_one_named() -> None:
    with pytest.raises(UsageError) as caught:
        overridden(tiny(), ["optimizer.learning_rate=1"])
    assert "optimiser.learning_rate" in caught.value.expected
    with pytest.raises(UsageError) as caught:
        overridden(tiny(), ["itc.levels=all"])
    assert caught.value.found == "itc.levels"


@pytest.mark.parametrize("assignment", ["loop.batch=many", "mm=perhaps", "views.fine_spacing_mm=1,2", "loop.batch=1.5", "text_dropout="])
def test_a_value_of_the_wrong_kind_is_refused_and_the_kind_named(assignment: str) -> None:
    with pytest.raises(UsageError) as caught:
        overridden(tiny(), [assignment])
    assert assignment.split("=")[0] in caught.value.what
    assert any(word in caught.value.expected for word in ("number", "true or false", "none"))


@pytest.mark.parametrize("assignment", ["loop", "=3", "loop=4"])
def test_what_is_no_assignment_to_a_setting_is_refused(assignment: str) -> None:
    with pytest.raises(UsageError):
        overridden(tiny(), [assignment])


@pytest.mark.parametrize(
    ("assignments", "setting"),
    [
        (["views.global_voxels=80"], "global_voxels"),
        (["itc=bottom"], "itc"),
        (["vision_size=Xl"], "vision_size"),
        (["loop.precision=fp16"], "precision"),
        (["itc=none", "mm=true"], "mm"),
        (["loop.micro_batches=3"], "micro_batches"),
        (["local_attention=sharp"], "local_attention"),
        (["optimiser.learning_rate=0"], "learning_rate"),
        (["weights.word_contrast=-1"], "word_contrast"),
    ],
)
def test_a_recipe_checks_itself_and_names_the_setting(assignments: list[str], setting: str) -> None:
    with pytest.raises(UsageError, match=setting):
        overridden(tiny(), assignments)


def test_accumulation_without_cached_gradients_is_refused_for_contrast_unless_it_is_said_to_be_inexact() -> None:
    with pytest.raises(UsageError, match="loop"):
        overridden(tiny(), ["loop.micro_batches=4"])
    assert overridden(tiny(), ["loop.inexact_contrast=true", "loop.micro_batches=4"]).loop.micro_batches == 4
    with pytest.raises(UsageError):
        overridden(tiny(), ["loop.cached_gradients=true"])
    # Without any contrast, accumulation is exact as it is.
    uni = VelvetRecipe(itc="none", mm=False, vis=False, txt=True)
    assert overridden(uni, ["loop.batch=8", "loop.micro_batches=4"]).loop.micro_batches == 4


def test_keys_are_those_of_the_published_configurations() -> None:
    assert paper().key == "visiontext_allitc_mmssl_visssl_txtssl_BtSv"
    assert paper().with_(itc="top", vis=False, txt=False, text_size="St", vision_size="Tv").key == "visiontext_topitc_mmssl_StTv"


@pytest.mark.parametrize("itc", ITC)
@pytest.mark.parametrize("mm", [True, False])
def test_objectives_follow_the_switches(itc: str, mm: bool) -> None:
    if itc == "none" and mm:
        return
    recipe = micro().with_(itc=itc, mm=mm)
    names = set(recipe.objectives(300))
    assert {name for name in names if name.endswith("_contrast") and name != "view_contrast"} == {f"{level}_contrast" for level in ITC[itc]}
    assert ("match" in names) is ("masked_language_mm" in names) is mm
    assert recipe.model_config(300).tribert.fusion_layers == (TEXT["micro"].fusion_layers if mm else 0)


def test_every_loss_has_a_weight() -> None:
    assert {f"{name}_loss" for name in micro().objectives(300)} == set(micro().loss_weights())


def test_the_local_attention_variants_reach_the_objective() -> None:
    kinds = ("published", "skip_text_softmax", "local_tau")
    made = {kind: micro().with_(local_attention=kind).objectives(300)["word_contrast"].settings for kind in kinds}
    assert not made["published"].skip_text_softmax and made["published"].local_tau == 0
    assert made["skip_text_softmax"].skip_text_softmax
    assert made["local_tau"].local_tau == 0.1


def test_the_papers_encoder_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        encoder = SwinEncoder(paper().swin())
    assert sum(p.numel() for p in encoder.parameters()) == 22_853_112


@pytest.mark.parametrize("size", [*VISION, *TEXT])
def test_every_size_builds(size: str) -> None:
    changes = {"vision_size": size} if size in VISION else {"text_size": size}
    with torch.device("meta"):
        VelvetModel(micro().with_(**changes).model_config(500))


def test_every_preset_is_one_of_the_named_ones() -> None:
    assert set(PRESETS) == {"paper", "tiny", "lean", "micro"}
