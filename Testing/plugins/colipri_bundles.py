"""Fixtures around COLIPRI: a weights file with the released names in a tiny size, its vocabulary, and bundles made from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "present", "there", "is", "seen", "not", "lung", "nod", "##ule", "##s"]
PIECES += ["pleural", "effusion", "left", "liver", "of", "with", "evidence", "mass", *"abcdefghijklmnopqrstuvwxyz-."]
PIECES += [f"##{c}" for c in "abcdefghijklmnopqrtuvwxyz"]  # "##s" stands above


def tiny_settings() -> Any:
    """Patches of 8 voxels as released; everything else small."""
    from VelvetMedLib.models.bert import BertConfig
    from VelvetMedLib.models.colipri import ColipriConfig
    from VelvetMedLib.models.primus import PrimusConfig

    return ColipriConfig(
        image=PrimusConfig(width=24, depth=2, heads=2, ffn=32, patch=8, drop_path=0.0),
        text=BertConfig(vocab_size=len(PIECES), width=16, depth=1, heads=2, ffn=24, positions=32),
        projection_dim=16,
        pool_heads=4,
    )


def write_released(folder: Path, *, seed: int = 0, text: bool = True, vocabulary: bool = True, change: Any = None) -> Path:
    """`model.safetensors` (with `vocab.txt` beside it) as a source would publish it. change: called with the tensors before writing."""
    import torch
    from safetensors.torch import save_file

    from VelvetMedLib.models.colipri import ColipriModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ColipriModel(tiny_settings())
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower():
                torch.nn.init.normal_(parameter, std=0.3)
    tensors = {n: t.clone() for n, t in model.state_dict().items() if text or not n.startswith("text_encoder.")}
    tensors["softmax_temperature"] = torch.tensor(0.07)
    if change is not None:
        change(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / "model.safetensors"))
    if vocabulary:
        (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return folder / "model.safetensors"


def tiny_source(address: str = "http://127.0.0.1:9") -> Any:
    """A published model whose network is the tiny one, to be served by a test from `address`."""
    from VelvetMedLib.bundle.published import Source

    @dataclass(frozen=True, kw_only=True)
    class Tiny(Source):
        def architecture(self) -> Any:
            return tiny_settings()

    return Tiny(
        name="colipri",
        title="a tiny stand-in for COLIPRI",
        licence="MIT, as a stand-in",
        weights_url=f"{address}/model.safetensors",
        vocabulary_url=f"{address}/vocab.txt",
        training_data="none: random weights for tests",
        citation="nobody",
        window_voxels=32,
    )


@pytest.fixture
def colipri_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of the user's data, and the tiny network in the place of the published one."""
    from VelvetMedLib.bundle import published

    monkeypatch.setenv("VELVETMED_DATA", str(tmp_path / "data"))
    monkeypatch.setitem(published.SOURCES, "colipri", tiny_source())
    return tmp_path / "data"


@pytest.fixture(scope="session")
def colipri_bundles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """`colipri_bundles(orientation=..., text_pool_mask=..., text=...)` -> a loaded tiny bundle; equal settings give one and the same."""
    import torch

    from VelvetMedLib.bundle import load_bundle, published

    patch = pytest.MonkeyPatch()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made: dict[tuple[Any, ...], Any] = {}

    def make(*, orientation: str = "RAS", text_pool_mask: bool = True, text: bool = True) -> Any:
        key = (orientation, text_pool_mask, text)
        if key not in made:
            folder = tmp_path_factory.mktemp("colipri")
            weights = write_released(folder / "files", text=text)
            with pytest.MonkeyPatch.context() as inner:
                inner.setenv("VELVETMED_DATA", str(folder))
                inner.setitem(published.SOURCES, "colipri", tiny_source())
                entry = published.add_published(
                    "colipri", weights=weights, agree=lambda _: False, orientation=orientation, text_pool_mask=text_pool_mask
                )
            made[key] = load_bundle(entry.folder)
        return made[key]

    yield make
    torch.set_num_threads(threads)
    patch.undo()


@pytest.fixture(scope="session")
def colipri_bundle(colipri_bundles: Callable[..., Any]) -> Any:
    """The tiny bundle with the settings that are the default."""
    return colipri_bundles()
