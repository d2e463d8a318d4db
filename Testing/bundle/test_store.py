"""A damaged or strange bundle is refused by name and nothing of it is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from VelvetMedLib.bundle import load_bundle, verify_bundle
from VelvetMedLib.errors import BundleError
from VelvetMedLib.files import file_sha256


@pytest.fixture
def copy(random_bundle_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_bundle_folder, tmp_path / "copy"))


def reseal(folder: Path, change: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Make the recorded hashes fit again, as a careful forger would."""
    path = folder / "bundle.json"
    data = json.loads(path.read_text("utf-8"))
    for name in data["files"]:
        if (folder / name).is_file():
            data["files"][name] = {"sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size}
    if change:
        change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(str(folder / "model.safetensors"))
    change(tensors)
    save_file(tensors, str(folder / "model.safetensors"))
    reseal(folder)


def test_a_whole_bundle_loads_and_is_in_float32_and_eval_mode(random_bundle: Any):
    assert not random_bundle.model.training
    assert {p.dtype for p in random_bundle.model.parameters()} == {torch.float32}
    assert len(random_bundle.sha256) == 64


def test_weights_survive_the_half_precision_on_disk(random_bundle_folder: Path, random_bundle: Any):
    stored = load_file(str(random_bundle_folder / "model.safetensors"))
    name = "reader.region_in.0.weight"
    assert stored[name].dtype == torch.float16
    assert torch.equal(random_bundle.model.state_dict()[name], stored[name].float())


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "MODEL_CARD.md"])
def test_a_flipped_byte_is_refused_by_file_name(copy: Path, name: str):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=name):
        load_bundle(copy)


def test_a_shortened_file_is_refused_by_name(copy: Path):
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        load_bundle(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "MODEL_CARD.md", "bundle.json"])
def test_a_missing_file_is_refused(copy: Path, name: str):
    (copy / name).unlink()
    with pytest.raises(BundleError) as error:
        load_bundle(copy)
    assert name in str(error.value)


def test_a_missing_tensor_is_named(copy: Path):
    edit_weights(copy, lambda t: t.pop("logit_scale"))
    with pytest.raises(BundleError, match="lack a tensor") as error:
        load_bundle(copy)
    assert "logit_scale" in error.value.found


def test_an_extra_tensor_is_named(copy: Path):
    edit_weights(copy, lambda t: t.update(stowaway=torch.zeros(2)))
    with pytest.raises(BundleError) as error:
        load_bundle(copy)
    assert "stowaway" in error.value.found


def test_a_tensor_of_another_shape_or_type_is_named(copy: Path):
    edit_weights(copy, lambda t: t.update(logit_scale=torch.zeros(3)))
    with pytest.raises(BundleError, match="logit_scale has the wrong shape"):
        load_bundle(copy)
    edit_weights(copy, lambda t: t.update(logit_scale=torch.zeros((), dtype=torch.int64)))
    with pytest.raises(BundleError, match="logit_scale has the wrong type"):
        load_bundle(copy)


def test_an_unknown_format_version_is_named(copy: Path):
    reseal(copy, lambda d: d.update(format_version=99))
    with pytest.raises(BundleError, match="format version") as error:
        load_bundle(copy)
    assert "99" in error.value.found


def test_an_unknown_architecture_setting_is_named(copy: Path):
    reseal(copy, lambda d: d["architecture"].update(flux_capacitor=1))
    with pytest.raises(BundleError) as error:
        load_bundle(copy)
    assert "flux_capacitor" in str(error.value)


@pytest.mark.parametrize("name", ["model.pt", "weights.bin", "extra.pkl", "last.ckpt", "maps.npy"])
def test_a_pickled_file_is_refused_before_anything_is_read(copy: Path, name: str):
    (copy / name).write_bytes(b"\x80\x04.")
    with pytest.raises(BundleError, match="can run code") as error:
        load_bundle(copy)
    assert name in error.value.found and "convert_weights" in error.value.next_step


def test_a_pickle_disguised_as_safetensors_is_refused(copy: Path):
    (copy / "model.safetensors").write_bytes(b"\x80\x04\x95" + b"x" * 100)
    reseal(copy)
    with pytest.raises(BundleError, match="not a safetensors file"):
        load_bundle(copy)


def test_a_header_that_promises_more_than_the_file_holds_is_refused(copy: Path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (copy / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    reseal(copy)
    with pytest.raises(BundleError, match="not what its header says"):
        load_bundle(copy)


def test_a_file_that_is_not_listed_is_refused(copy: Path):
    (copy / "notes.txt").write_text("hello")
    with pytest.raises(BundleError) as error:
        load_bundle(copy)
    assert "notes.txt" in error.value.found


def test_errors_carry_no_path(copy: Path):
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError) as error:
        load_bundle(copy)
    assert str(copy) not in str(error.value) and copy.name not in error.value.found


def test_saving_over_a_bundle_replaces_it_and_over_other_content_is_refused(copy: Path, bundle_maker: Any, tmp_path: Path):
    before = verify_bundle(copy)
    bundle_maker(copy, seed=3)
    assert verify_bundle(copy).files != before.files
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(BundleError, match="cannot be written there"):
        bundle_maker(other)
    assert (other / "thesis.txt").read_text() == "precious"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_two_bundles_share_encodings_only_with_equal_weights_and_preprocessing(random_bundle: Any, bundle_maker: Any, tmp_path: Path):
    same = load_bundle(bundle_maker(tmp_path / "a", seed=0))
    other = load_bundle(bundle_maker(tmp_path / "b", seed=1))
    tiles = load_bundle(bundle_maker(tmp_path / "c", seed=0, tile=(32, 32, 32)))
    assert same.encoding_key == random_bundle.encoding_key
    assert len({same.encoding_key, other.encoding_key, tiles.encoding_key}) == 3


def test_loading_touches_no_global_random_state(random_bundle_folder: Path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_bundle(random_bundle_folder)
    assert torch.equal(torch.rand(3), expected)
    assert np.isfinite(expected.numpy()).all()
