"""The joined model: its settings as JSON, its size, unit vectors at three levels, and spacing that reaches the fusion layers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.decoder import DecoderConfig
from VelvetMedLib.models.fine import FineConfig
from VelvetMedLib.models.reader import FindingsHeadConfig, ReaderConfig
from VelvetMedLib.models.swin import SwinConfig
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.models.tribert import TriBertConfig
from VelvetMedLib.models.velvet import ModelConfig, VelvetModel


def demo_settings(vocabulary: int = 2400) -> ModelConfig:
    swin = SwinConfig(embed_dim=16)
    return ModelConfig(
        swin=swin,
        tribert=TriBertConfig(vocab_size=vocabulary, ffn=384, visual_width=swin.widths[4]),
        fine=FineConfig(),
        reader=ReaderConfig(top_channels=swin.widths[4]),
        findings=FindingsHeadConfig(),
        decoder=DecoderConfig(vocab_size=vocabulary, layers=3, ffn=512),
    )


def small_model(tokenizer: ReportTokenizer, **changes: Any) -> VelvetModel:
    torch.manual_seed(0)
    settings = {
        "swin": SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), heads=(2, 2, 2, 2)),
        "tribert": TriBertConfig(vocab_size=tokenizer.vocab_size, width=12, heads=3, ffn=20, text_layers=1, positions=64),
        "projection_dim": 10,
    }
    return VelvetModel(ModelConfig(**(settings | changes))).eval()


def test_the_demo_setting_fits_the_bundle_in_half_precision() -> None:
    count = sum(p.numel() for p in VelvetModel(demo_settings()).parameters())
    assert count <= 9.4e6, f"{count} parameters are {2 * count / 1e6:.1f} MB on disk"


def test_settings_survive_json_and_an_unknown_key_at_any_depth_is_named() -> None:
    settings = demo_settings()
    data = json.loads(json.dumps(settings.to_dict()))
    assert ModelConfig.from_dict(data) == settings
    data["reader"]["colour"] = 1
    with pytest.raises(UsageError, match="colour"):
        ModelConfig.from_dict(data)
    bare = ModelConfig(tribert=TriBertConfig(vocab_size=100))
    assert ModelConfig.from_dict(bare.to_dict()) == bare and VelvetModel(bare).decoder is None


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("swin", "depths"), [1, 2, "3", 4], r"SwinConfig\.depths"),
        (("tribert", "width"), "192", r"TriBertConfig\.width"),
        (("tribert", "width"), True, r"TriBertConfig\.width"),
        (("fine",), 3, r"ModelConfig\.fine"),
        (("swin",), None, r"ModelConfig\.swin"),
        (("reader", "top_channels"), 7, r"ModelConfig\.reader"),
        (("decoder", "vocab_size"), 9, r"ModelConfig\.decoder"),
        (("findings", "width"), 64, r"ModelConfig\.findings"),
    ],
)
def test_a_value_of_the_wrong_kind_or_parts_that_do_not_fit_are_refused_by_name(path: tuple[str, ...], value: Any, named: str) -> None:
    data = demo_settings().to_dict()
    place: Any = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(UsageError, match=named):
        ModelConfig.from_dict(data)


def test_every_settings_class_checks_itself_and_goes_through_json() -> None:
    assert {c.__name__ for c in Settings.__subclasses__()} >= {
        "SwinConfig", "TriBertConfig", "FineConfig", "ReaderConfig", "FindingsHeadConfig", "DecoderConfig", "ModelConfig",
    }  # fmt: skip


def test_image_and_text_meet_as_unit_vectors_at_three_levels(tokenizer: ReportTokenizer) -> None:
    model = small_model(tokenizer)
    layout = tokenizer.layout([["No effusion.", "Small nodule."], ["no"]], 32)
    with torch.no_grad():
        features = model.encode_global(torch.rand(2, 1, 32, 64, 32), torch.full((2, 3), 5.0))
        image = model.project_image(features)
        states = model.tribert.text(layout.ids, layout.type_ids, layout.pad_mask)
        text = model.project_text(states, layout)
    assert (
        features.bottom.shape[1:] == (32, 4, 8, 4)
        and features.middle.shape[1:] == (64, 2, 4, 2)
        and features.top.shape[1:] == (128, 1, 2, 1)
    )
    assert [tuple(image[k].shape) for k in ("report", "sentence", "word")] == [(2, 10), (2, 16, 10), (2, 128, 10)]
    for vectors in image.values():
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))
    torch.testing.assert_close(text["report"].norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(text["sentence"].norm(dim=-1), text["sentence_mask"].float())
    torch.testing.assert_close(text["word"].norm(dim=-1), text["word_mask"].float())
    torch.testing.assert_close(model.embed_text(layout), text["report"])
    assert list(model.project_image(features, levels=["report"])) == ["report"]


def test_a_word_cell_is_the_projection_of_the_bottom_cell_at_the_same_place(tokenizer: ReportTokenizer) -> None:
    model = small_model(tokenizer)
    with torch.no_grad():
        features = model.encode_global(torch.rand(1, 1, 32, 64, 32), torch.full((1, 3), 5.0))
        x, y, z = 1, 6, 3
        alone = model.image_projection["word"](features.bottom[0, :, x, y, z])
        torch.testing.assert_close(model.project_image(features)["word"][0, (x * 8 + y) * 4 + z], alone / alone.norm())


def test_two_volumes_that_differ_only_in_spacing_fuse_differently_unless_the_spacing_token_is_off(tokenizer: ReportTokenizer) -> None:
    layout = tokenizer.layout([["Small nodule."]], 32)
    x = torch.rand(1, 1, 32, 32, 32)
    for on in (True, False):
        model = small_model(tokenizer, spacing_token=on)
        with torch.no_grad():
            states = model.tribert.text(layout.ids, layout.type_ids, layout.pad_mask)
            fused = [
                model.tribert.fuse(
                    states, layout.type_ids, layout.pad_mask, model.visual_tokens(model.encode_global(x, torch.full((1, 3), mm)))
                )
                for mm in (3.0, 6.0)
            ]
        assert torch.allclose(*fused, atol=1e-6) == (not on)


def test_the_contrastive_scale_starts_at_one_over_seven_hundredths_and_stays_below_a_hundred(tokenizer: ReportTokenizer) -> None:
    model = small_model(tokenizer)
    assert float(model.contrast_scale().detach()) == pytest.approx(1 / 0.07, rel=1e-4)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    assert float(model.contrast_scale().detach()) == pytest.approx(100.0, rel=1e-4)
