"""Fixtures for every room that needs a model: a tiny random bundle, and a small body-shaped scan to run it on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def tokenizer_text() -> str:
    """A WordPiece tokenizer that spells everything letter by letter, with all special tokens of the ontology."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    from VelvetMedLib.models.text import special_tokens
    from VelvetMedLib.reports import ontology

    specials = special_tokens(ontology())
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,;:?!%()-/'"]
    words = ["no", "there", "is", "a", "the", "of", "in", "left", "right", "lung", "liver", "nodule", "effusion", "pleural", "yes"]
    pieces = [*specials, *letters, *(f"##{c}" for c in letters), *words]
    tokenizer = Tokenizer(models.WordPiece(vocab={p: n for n, p in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    return str(tokenizer.to_str())


def tiny_model_config(vocab_size: int) -> Any:
    """The smallest model that has every part."""
    from VelvetMedLib.models.decoder import DecoderConfig
    from VelvetMedLib.models.fine import FineConfig
    from VelvetMedLib.models.reader import FindingsHeadConfig, ReaderConfig
    from VelvetMedLib.models.swin import SwinConfig
    from VelvetMedLib.models.tribert import TriBertConfig
    from VelvetMedLib.models.velvet import ModelConfig
    from VelvetMedLib.models.verifier import LesionVerifierConfig

    return ModelConfig(
        swin=SwinConfig(embed_dim=16, depths=(1, 1, 1, 1)),
        tribert=TriBertConfig(
            vocab_size=vocab_size, width=48, heads=3, ffn=64, text_layers=1, fusion_layers=1, positions=192, visual_width=256
        ),
        projection_dim=32,
        fine=FineConfig(channels=(8, 8, 16, 16), full_channels=8, head_channels=8),
        reader=ReaderConfig(top_channels=256, width=48, layers=1, heads=4, projection_dim=32),
        findings=FindingsHeadConfig(width=48),
        decoder=DecoderConfig(vocab_size=vocab_size, width=48, layers=1, heads=4, ffn=64, positions=96),
        verifier=LesionVerifierConfig(width=16),
    )


def make_random_bundle(
    folder: Path, seed: int = 0, *, tile: tuple[int, int, int] = (48, 48, 48), heads: bool = True, **changes: Any
) -> Path:
    """Write a random but whole bundle. Its answers mean nothing; its shapes, files and rules are the real ones.

    heads: False for what a pre-training leaves, encoders and projections.
    """
    from dataclasses import replace

    import torch

    from VelvetMedLib.bundle import BundleConfig, FineViewConfig, ViewsConfig, save_bundle
    from VelvetMedLib.models.text import ReportTokenizer
    from VelvetMedLib.models.velvet import VelvetModel

    text = tokenizer_text()
    config = tiny_model_config(ReportTokenizer(text).vocab_size)
    if not heads:
        config = replace(config, fine=None, reader=None, findings=None, decoder=None, verifier=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VelvetModel(config)
        # Lesions here and there, so that every step behind them has something to do.
        if model.fine is not None:
            torch.nn.init.constant_(model.fine.lesion_head.bias, -1.5)
    settings = BundleConfig(
        **{
            "id": f"random-{seed}",
            "version": "0",
            "recipe": "random weights",
            "licence": "Apache-2.0",
            "training_data": "none: random weights for tests",
            "intended_use": "tests only",
            "architecture": config.to_dict(),
            "aligned_levels": ("report", "sentence", "word"),
            # Wide cells: most of an encoding's time goes into cleaning a map of nothing but specks.
            "views": ViewsConfig(fine=FineViewConfig(spacing_mm=(6.0, 6.0, 6.0), tile_voxels=tile)),
            **changes,
        }
    )
    save_bundle(folder, settings, model, text, "# Random bundle\n\nFor tests. Research use only. Not for clinical use.\n")
    return folder


def body_volume(shape_kji: tuple[int, int, int] = (48, 40, 48), spacing_mm: float = 5.0, seed: int = 0) -> Any:
    """A scan of an elliptic body with two lungs, a heart, a liver and a spine; axis-aligned RAS, smooth noise."""
    from VelvetMedLib.ct import from_array

    k, j, i = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape_kji], indexing="ij")
    hu = np.full(shape_kji, -1000.0)
    hu[(i / 0.85) ** 2 + (j / 0.75) ** 2 < 1] = 40
    for side in (-0.4, 0.4):
        hu[((i - side) / 0.3) ** 2 + (j / 0.5) ** 2 + ((k - 0.3) / 0.6) ** 2 < 1] = -820
    hu[((i + 0.1) / 0.25) ** 2 + ((j - 0.15) / 0.25) ** 2 + ((k - 0.1) / 0.3) ** 2 < 1] = 60
    hu[((i - 0.35) / 0.4) ** 2 + (j / 0.45) ** 2 + ((k + 0.6) / 0.3) ** 2 < 1] = 110
    hu[(i / 0.1) ** 2 + ((j + 0.55) / 0.12) ** 2 < 1] = 350
    hu += np.random.default_rng(seed).normal(0, 8, shape_kji)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = [-120.0, -100.0, -130.0]
    return from_array(np.clip(hu, -1024, 1500).astype(np.int16), affine)


@pytest.fixture(scope="session")
def random_bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random bundle. Copy it before changing a byte."""
    return make_random_bundle(tmp_path_factory.mktemp("bundles") / "random")


@pytest.fixture(scope="session")
def random_bundle(random_bundle_folder: Path) -> Any:
    """A tiny random bundle in memory."""
    import torch

    from VelvetMedLib.bundle import load_bundle

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_bundle(random_bundle_folder)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def pretrained_bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a pre-training leaves: encoders and projections, no head; random weights."""
    from VelvetMedLib.bundle import load_bundle

    return load_bundle(make_random_bundle(tmp_path_factory.mktemp("bundles") / "pretrained", heads=False))


@pytest.fixture(scope="session")
def body() -> Any:
    """A small body-shaped scan."""
    return body_volume()


@pytest.fixture(scope="session")
def make_body() -> Callable[..., Any]:
    """`make_body(shape_kji, spacing_mm, seed)` -> Volume."""
    return body_volume


@pytest.fixture(scope="session")
def bundle_maker() -> Callable[..., Path]:
    """`bundle_maker(folder, seed, tile=..., **BundleConfig fields)` -> folder."""
    return make_random_bundle
