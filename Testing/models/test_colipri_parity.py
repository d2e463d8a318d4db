"""Parity with the public `colipri` package on the same random weights, in the released sizes: at most 1e-4 apart in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from Testing.plugins.colipri_package import load_package, their_model, their_state
from VelvetMedLib.models.bert import BertConfig
from VelvetMedLib.models.colipri import ColipriConfig, ColipriModel
from VelvetMedLib.models.primus import PrimusConfig

pytestmark = [
    pytest.mark.slow,
    # Third parties': hydra, timm, torchio and transformers talk about their own futures while they are imported.
    pytest.mark.filterwarnings("ignore"),
]
LIMIT = 1e-4
CONFIG = ColipriConfig.paper()
"""Every width and depth as released; the inputs below are of 4 cells a side, so that a test takes seconds."""


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Any, ColipriModel]]:
    """(theirs, ours) with equal weights."""
    load_package()
    theirs = their_model(CONFIG)
    with torch.device("meta"):
        ours = ColipriModel(CONFIG)
    ours.load_state_dict(their_state(theirs), strict=True, assign=True)
    yield theirs, ours.eval()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def text() -> tuple[torch.Tensor, torch.Tensor]:
    """Two prompts of different lengths, padded to the same number of positions, most of them padding."""
    ids = torch.zeros(2, 96, dtype=torch.long)
    mask = torch.zeros(2, 96, dtype=torch.long)
    generator = torch.Generator().manual_seed(2)
    for row, length in enumerate((9, 31)):
        ids[row, :length] = torch.randint(1, 30_522, (length,), generator=generator)
        mask[row, :length] = 1
    return ids, mask


def test_the_packages_own_names_load_without_one_missing_or_extra(pair: Any) -> None:
    theirs, ours = pair
    assert list(theirs.state_dict()) and set(theirs.state_dict()) == set(ours.state_dict())
    image = [t for n, t in theirs.state_dict().items() if not n.startswith("text_encoder.")]
    assert (len(image), sum(t.numel() for t in image)) == (380, 147_113_089)


@torch.no_grad()
def test_the_pooled_image_embedding_is_the_packages(pair: Any, image: torch.Tensor) -> None:
    theirs, ours = pair
    wanted = theirs.encode_image(image, pool=True, project=True, normalize=True)
    assert (ours.embed_image(image) - wanted).abs().max() <= LIMIT
    assert wanted[0] @ wanted[1] < 0.99, "two images that no model could tell apart would compare nothing"


@torch.no_grad()
def test_the_dense_map_is_the_packages(pair: Any, image: torch.Tensor) -> None:
    theirs, ours = pair
    wanted = theirs.encode_image(image, pool=False, project=True, normalize=True)
    assert wanted.shape == (2, 768, 4, 4, 4)
    assert (ours.dense(ours.features(image)) - wanted).abs().max() <= LIMIT


@torch.no_grad()
def test_features_before_projection_are_the_packages(pair: Any, image: torch.Tensor) -> None:
    theirs, ours = pair
    wanted = theirs.encode_image(image)
    assert wanted.shape == (2, 864, 4, 4, 4)
    assert (ours.features(image) - wanted).abs().max() <= LIMIT * wanted.abs().max()


@torch.no_grad()
def test_the_text_embedding_is_the_packages_with_padding_masked(pair: Any, text: Any) -> None:
    theirs, ours = pair
    wanted = theirs.encode_text(*text)
    assert (ours.embed_text(*text) - wanted).abs().max() <= LIMIT
    assert wanted[0] @ wanted[1] < 0.99, "two texts that no model could tell apart would compare nothing"


@torch.no_grad()
def test_the_text_embedding_is_the_older_packages_with_padding_pooled_too(pair: Any, text: Any) -> None:
    """0.1.0 and 0.1.2: the encoder sees the mask, the pooler does not."""
    theirs, ours = pair
    states = theirs.text_encoder.backbone(text[0], attention_mask=text[1])["last_hidden_state"]
    wanted = torch.nn.functional.normalize(theirs.text_encoder.pooler(states), dim=1)
    with torch.device("meta"):
        older = ColipriModel(ColipriConfig(text_pool_mask=False))
    older.load_state_dict(ours.state_dict(), assign=True)
    older.eval()
    found = older.embed_text(*text)
    assert (found - wanted).abs().max() <= LIMIT
    assert (found - ours.embed_text(*text)).abs().max() > 10 * LIMIT, "both ways alike would compare nothing"


@torch.no_grad()
def test_zero_shot_probabilities_are_the_packages(pair: Any, image: torch.Tensor, text: Any) -> None:
    theirs, ours = pair
    pooled = theirs.encode_image(image, pool=True, project=True, normalize=True)
    wanted = theirs.classify(pooled, theirs.encode_text(*text))
    found = (ours.embed_image(image) @ ours.embed_text(*text).T / ours.softmax_temperature).softmax(dim=-1)
    assert (found - wanted).abs().max() <= LIMIT


@torch.no_grad()
def test_the_dense_similarity_map_is_the_packages(pair: Any, image: torch.Tensor, text: Any) -> None:
    theirs, ours = pair
    dense = theirs.encode_image(image, pool=False, project=True, normalize=True)
    wanted = theirs.compute_similarities(dense, theirs.encode_text(*text))
    found = torch.einsum("bcxyz,pc->bpxyz", ours.dense(ours.features(image)), ours.embed_text(*text))
    assert (found - wanted).abs().max() <= LIMIT


@torch.no_grad()
def test_windowed_features_are_the_packages_sliding_window() -> None:
    """A narrow model suffices: what is compared is the order of windows and their places."""
    load_package()
    config = ColipriConfig(
        image=PrimusConfig(width=96, depth=2, heads=4, ffn=256, drop_path=0.0),
        text=BertConfig(vocab_size=20, width=48, depth=1, heads=4, ffn=64, positions=16),
        projection_dim=48,
        pool_heads=4,
    )
    theirs, ours = their_model(config), ColipriModel(config).eval()
    ours.load_state_dict(their_state(theirs))
    image = torch.rand(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    features = ours.features_by_windows(image, 32)
    wanted = theirs.encode_image(image, pool=True, project=True, normalize=True, window_size=32)
    assert (ours.pooled(features) - wanted).abs().max() <= LIMIT
    dense = theirs.encode_image(image, pool=False, project=True, normalize=True, window_size=32)
    assert (ours.dense(features) - dense).abs().max() <= LIMIT


def test_word_pieces_are_those_of_the_tokenizer_that_the_package_loads() -> None:
    """The package's tokenizer is a BertTokenizer with a published vocabulary; here with a made-up one, padded and cut as there."""
    transformers = pytest.importorskip("transformers")
    from Testing.plugins.colipri_bundles import PIECES
    from VelvetMedLib.models.bert import BertTokenizer, tokenizer_from_vocabulary

    theirs = transformers.BertTokenizer(vocab={piece: n for n, piece in enumerate(PIECES)}, model_max_length=32)
    ours = BertTokenizer(tokenizer_from_vocabulary("\n".join(PIECES)), positions=32)
    texts = ["No LUNG nodules present.", "Pleural effusion - left; überall 3 mm", "", "effusion " * 40, "naïve  café\n\tlung"]
    wanted = theirs(texts, max_length=32, padding="max_length", truncation=True, return_tensors="pt")
    ids, mask = ours.batch(texts, whole=True)
    assert torch.equal(ids, wanted["input_ids"]) and torch.equal(mask, wanted["attention_mask"].bool())
