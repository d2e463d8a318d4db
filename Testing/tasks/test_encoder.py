"""The one pass: tiles join without seams, each encoder runs once, a saved encoding is the encoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from VelvetMedLib.bundle import load_bundle
from VelvetMedLib.errors import BundleError, Cancelled, CaseError
from VelvetMedLib.tasks import encoder as encode_module
from VelvetMedLib.tasks import find, ground, precision, run_analysis
from VelvetMedLib.tasks.encoder import encode, forget_encodings
from VelvetMedLib.tasks.encoding import load_encoding, save_encoding


@pytest.fixture(autouse=True)
def fresh() -> Any:
    forget_encodings()
    yield
    forget_encodings()


@pytest.fixture
def calls(random_bundle: Any) -> Any:
    """How often each encoder of the bundle ran."""
    counted: Counter[str] = Counter()
    hooks = [
        getattr(random_bundle.model, name).register_forward_hook(lambda *_, name=name: counted.update([name]))
        for name in ("fine", "swin", "reader")
    ]
    yield counted
    for hook in hooks:
        hook.remove()


@contextmanager
def swapped(bundle: Any, name: str, network: Any) -> Iterator[None]:
    """Another network in a bundle for a while (pytest's monkeypatch does not know a module's own attributes)."""
    original = getattr(bundle.model, name)
    setattr(bundle.model, name, network)
    try:
        yield
    finally:
        setattr(bundle.model, name, original)


def _with_tile(bundle: Any, tile: tuple[int, int, int]) -> Any:
    from dataclasses import replace

    views = replace(bundle.config.views, fine=replace(bundle.config.views.fine, tile_voxels=tile))
    return replace(bundle, config=replace(bundle.config, views=views))


def test_everything_from_one_scan_runs_each_encoder_once(
    body: Any, random_bundle: Any, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
):
    wide = _with_tile(random_bundle, (96, 96, 96))
    monkeypatch.setattr(encode_module, "choose_precision", lambda *_: "fp32")
    analysis = run_analysis(body, wide)
    again = encode(body, wide)
    find(again, wide)
    ground(again, "the liver", wide)
    assert again is analysis.encoding
    assert calls == {"fine": 1, "swin": 1, "reader": 1}


def test_only_what_is_asked_for_is_computed_and_the_rest_is_added_later(body: Any, random_bundle: Any, calls: Counter[str]):
    first = encode(body, random_bundle, needs={"global"})
    assert calls == {"swin": 1} and first.fine is None and first.reading is None
    with pytest.raises(ValueError, match="fine"):
        first.need_fine()
    encode(body, random_bundle)
    assert calls["swin"] == 1 and calls["reader"] == 1


def test_a_saved_encoding_reads_back_the_same(body: Any, random_bundle: Any, tmp_path: Path):
    first = encode(body, random_bundle)
    second = load_encoding(save_encoding(tmp_path / "e.safetensors", first))
    assert second.volume_sha256 == first.volume_sha256 and second.scan_grid.equals(first.scan_grid)
    a, b = first.need_fine(), second.need_fine()
    for name in ("organs_xyz", "lesions_cxyz", "hu_xyz", "in_view", "region_tokens", "region_mask", "lesion_tokens"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert a.lesions == b.lesions and a.grid.equals(b.grid)
    assert np.array_equal(first.need_reading().memory, second.need_reading().memory)
    assert [f.as_dict() for f in find(first, random_bundle)] == [f.as_dict() for f in find(second, random_bundle)]
    assert {p.name for p in tmp_path.iterdir()} == {"e.safetensors"}


@pytest.mark.parametrize("damage", ["truncate", "flip header", "version"])
def test_a_damaged_encoding_is_refused(body: Any, random_bundle: Any, tmp_path: Path, damage: str):
    path = save_encoding(tmp_path / "e.safetensors", encode(body, random_bundle))
    content = path.read_bytes()
    if damage == "truncate":
        content = content[: len(content) // 2]
    elif damage == "flip header":
        content = content[:4] + b"\xff\xff\xff\xff" + content[8:]
    else:
        content = content.replace(b'\\"format_version\\": 1', b'\\"format_version\\": 7', 1)
    path.write_bytes(content)
    with pytest.raises(CaseError):
        load_encoding(path)


def test_cancel_between_tiles_stops_and_keeps_nothing(body: Any, random_bundle: Any, calls: Counter[str]):
    small = _with_tile(random_bundle, (32, 32, 32))

    def cancel() -> None:
        if calls["fine"] >= 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        encode(body, small, cancel=cancel)
    assert calls["fine"] == 2 and "swin" not in calls
    assert not encode_module._cache


def test_progress_rises_to_one_and_names_its_stages(body: Any, random_bundle: Any):
    said: list[tuple[float, str]] = []
    encode(body, _with_tile(random_bundle, (32, 32, 32)), progress=lambda f, s, left: said.append((f, s)))
    fractions = [f for f, _ in said]
    assert fractions == sorted(fractions) and fractions[0] >= 0 and fractions[-1] <= 1
    assert {"prepare", "fine", "tokens", "global"} <= {s for _, s in said}


def test_a_bundle_without_a_network_that_is_needed_is_refused_by_name(body: Any, random_bundle: Any):
    with swapped(random_bundle, "reader", None), pytest.raises(BundleError, match="no reader"):
        encode(body, random_bundle)


class _Net(torch.nn.Module):
    """Constant organ logits; under autocast they are off by `error` at random."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: torch.Tensor) -> Any:
        logits = torch.rand(1, 33, 4, 4, 4) * (self.error if torch.is_autocast_enabled("cpu") else 0.0)
        return type("Out", (), {"organ_logits": logits})()


def test_half_precision_is_used_only_where_the_processor_has_it_and_it_is_right(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VELVETMED_PRECISION", "auto")
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    assert precision.choose_precision(_Net(9.0), "cpu", 2) == "fp32"
    assert precision.choose_precision(_Net(0.01), "cpu", 2) == "bf16"
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    assert precision.choose_precision(_Net(0.01), "cpu", 2) == "fp32"


def test_another_bundle_never_gets_this_bundles_encoding(body: Any, random_bundle: Any, bundle_maker: Any, tmp_path: Path):
    first = encode(body, random_bundle)
    other = encode(body, load_bundle(bundle_maker(tmp_path / "other", seed=9)))
    assert first.encoding_key != other.encoding_key
    assert not np.allclose(first.need_reading().study, other.need_reading().study)
