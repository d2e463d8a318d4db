"""A trained model on disk: save, verify, load. JSON and safetensors only; whatever is wrong is named and nothing is loaded."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from VelvetMedLib.bundle.config import (
    CARD_FILE,
    COLIPRI,
    CONFIG_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    BundleConfig,
    FileEntry,
    refuse,
)
from VelvetMedLib.bundle.reading import parse
from VelvetMedLib.errors import VelvetMedError
from VelvetMedLib.files import file_sha256

if TYPE_CHECKING:
    from torch import nn

PICKLED_ENDINGS = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin", ".npy", ".npz", ".joblib")
MOST_CONFIG_BYTES = 4 << 20
MOST_HEADER_BYTES = 16 << 20
_FLOATS = {"F16", "BF16", "F32"}


@dataclass(frozen=True)
class Bundle:
    """A verified model in memory, in eval mode, float32. sha256 covers bundle.json and, through it, every file.

    model, tokenizer: a `VelvetModel` with its `ReportTokenizer`; or, where config.family is "colipri", a `ColipriModel` with its
    `BertTokenizer` (None for an image half alone).
    """

    config: BundleConfig
    model: Any
    tokenizer: Any
    sha256: str
    device: str = "cpu"

    @property
    def weights_sha256(self) -> str:
        return self.config.files[WEIGHTS_FILE].sha256

    @property
    def encoding_key(self) -> str:
        """Hash of what an Encoding depends on: weights, preprocessing, lesion thresholds. Two bundles that agree may share encodings."""
        views = json.loads(self.config.to_json())["views"]
        lesions = [x.threshold if x.least_trust == 0 else (x.threshold, x.least_trust) for x in self.config.lesions]
        relevant = {"weights": self.weights_sha256, "views": views, "lesions": lesions}
        return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def read_config(folder: Path) -> BundleConfig:
    """Only bundle.json of a folder, checked in itself. Raises BundleError."""
    path = Path(folder) / CONFIG_FILE
    if not Path(folder).is_dir() or not path.is_file():
        raise refuse(
            "There is no model bundle here.",
            found="no bundle.json in the given folder",
            expected="a folder with bundle.json, model.safetensors, tokenizer.json and MODEL_CARD.md",
            next_step="Name a bundle that 'velvetmed models list' shows, or give the folder of one.",
        )
    if path.stat().st_size > MOST_CONFIG_BYTES:
        raise refuse("bundle.json is too large.", found=f"{path.stat().st_size} bytes", expected=f"at most {MOST_CONFIG_BYTES} bytes")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise refuse("bundle.json is not text.", found="bytes that are not UTF-8", expected="UTF-8") from None


def _check_files(folder: Path, config: BundleConfig) -> None:
    names = {p.name for p in folder.iterdir() if not p.name.startswith(".")} - {CONFIG_FILE}
    pickled = sorted(n for n in names | set(config.files) if n.lower().endswith(PICKLED_ENDINGS))
    if pickled:
        raise refuse(
            "The bundle holds a file of a kind that can run code when it is read.",
            found=", ".join(pickled),
            expected="safetensors and JSON only",
            next_step="Convert pickled weights once with training/convert_weights.py on a machine where you trust them.",
        )
    listed = set(config.files)
    required = set(config.required_files)
    if missing := sorted((required | listed) - names):
        raise refuse(
            "A file of the bundle is missing.",
            found="no " + ", no ".join(missing),
            expected=", ".join(sorted(listed | required)),
        )
    if extra := sorted(names - listed):
        raise refuse(
            "The bundle holds a file that bundle.json does not list.", found=", ".join(extra), expected="only " + ", ".join(sorted(listed))
        )
    for name, entry in sorted(config.files.items()):
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise refuse("A part of the bundle is not a plain file.", found=name, expected="plain files only")
        size = path.stat().st_size
        if size != entry.bytes:
            raise refuse(f"The file {name} of the bundle has the wrong size.", found=f"{size} bytes", expected=f"{entry.bytes} bytes")
        digest = file_sha256(path)
        if digest != entry.sha256:
            raise refuse(
                f"The file {name} of the bundle is damaged or was changed.", found=f"sha256 {digest}", expected=f"sha256 {entry.sha256}"
            )


def tensor_table(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape) from a safetensors header, without reading a tensor. Raises BundleError."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(MOST_HEADER_BYTES, size - 8):
            raise refuse(
                "The weights are not a safetensors file.", found=f"a header of {length} bytes in {size} bytes", expected="safetensors"
            )
        try:
            header = json.loads(stream.read(length))
            entries = {n: (e["dtype"], tuple(e["shape"]), e["data_offsets"]) for n, e in header.items() if n != "__metadata__"}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise refuse("The weights are not a safetensors file.", found="an unreadable header", expected="safetensors") from None
    widths = {"F16": 2, "BF16": 2, "F32": 4, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
    for name, (dtype, shape, (start, stop)) in entries.items():
        if dtype not in widths or stop - start != math.prod(shape) * widths[dtype] or stop > size - 8 - length:
            raise refuse(
                "A tensor of the weights is not what its header says.",
                found=f"{name}: {dtype} {list(shape)}",
                expected="a known type, whole",
            )
    return {name: (dtype, shape) for name, (dtype, shape, _) in entries.items()}


def _settings(config: BundleConfig) -> Any:
    """The architecture settings of the family's own class, from a fixed table: no bundle names a class."""
    if config.family == COLIPRI:
        from VelvetMedLib.models.colipri import ColipriConfig

        return ColipriConfig.from_dict(config.architecture)
    from VelvetMedLib.models.velvet import ModelConfig

    return ModelConfig.from_dict(config.architecture)


def _build(config: BundleConfig) -> nn.Module:
    """The family's network, random."""
    if config.family == COLIPRI:
        from VelvetMedLib.models.colipri import ColipriModel

        return ColipriModel(_settings(config))
    from VelvetMedLib.models.velvet import VelvetModel

    return VelvetModel(_settings(config))


def _tokenizer(config: BundleConfig, path: Path) -> Any:
    if not config.reads_text:
        return None
    if config.family == COLIPRI:
        from VelvetMedLib.models.bert import BertTokenizer

        return BertTokenizer(path.read_text(encoding="utf-8"), positions=_settings(config).text.positions)
    from VelvetMedLib.models.text import ReportTokenizer

    return ReportTokenizer(path)


def _empty_model(config: BundleConfig) -> nn.Module:
    import torch

    try:
        with torch.device("meta"):
            return _build(config)
    except VelvetMedError as error:
        raise refuse(f"The bundle's architecture cannot be built: {error.what}", found=error.found, expected=error.expected) from None
    except (TypeError, ValueError, KeyError) as error:
        raise refuse("The bundle's architecture cannot be built.", found=str(error), expected="settings that this version knows") from None


def _check_tensors(config: BundleConfig, path: Path) -> None:
    """Names, types and shapes against the architecture, before any memory is asked for."""
    import torch

    found = tensor_table(path)
    wanted = _empty_model(config).state_dict()
    if missing := sorted(set(wanted) - set(found)):
        raise refuse("The weights lack a tensor.", found="missing: " + _few(missing), expected=f"{len(wanted)} tensors")
    if extra := sorted(set(found) - set(wanted)):
        raise refuse(
            "The weights hold a tensor that the architecture does not have.",
            found="extra: " + _few(extra),
            expected=f"{len(wanted)} tensors",
        )
    for name, tensor in sorted(wanted.items()):
        dtype, shape = found[name]
        if shape != tuple(tensor.shape):
            raise refuse(f"The tensor {name} has the wrong shape.", found=str(list(shape)), expected=str(list(tensor.shape)))
        integer = {torch.int64: {"I64"}, torch.int32: {"I32"}, torch.uint8: {"U8"}, torch.bool: {"BOOL"}}
        allowed = _FLOATS if tensor.is_floating_point() else integer.get(tensor.dtype, set())
        if dtype not in allowed:
            raise refuse(f"The tensor {name} has the wrong type.", found=dtype, expected=" or ".join(sorted(allowed)))


def _few(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def verify_bundle(folder: Path | str) -> BundleConfig:
    """Check every byte, every file and every tensor of a bundle folder. Raises BundleError that names what is wrong."""
    folder = Path(folder)
    config = read_config(folder)
    _check_files(folder, config)
    _check_tensors(config, folder / WEIGHTS_FILE)
    return config


def load_bundle(path_or_name: Path | str = "demo", *, device: str = "cpu") -> Bundle:
    """A bundle by folder or by the name that the catalogue lists. Verified first; nothing is loaded from a bad one."""
    import torch
    from safetensors.torch import load_file

    from VelvetMedLib.bundle.catalogue import locate

    folder = locate(path_or_name)
    config = verify_bundle(folder)
    digest = file_sha256(folder / CONFIG_FILE)
    tensors = {n: t.float() if t.is_floating_point() else t for n, t in load_file(str(folder / WEIGHTS_FILE)).items()}
    with torch.random.fork_rng(devices=[]):
        # Built on the CPU, not on "meta": buffers that are computed and not stored must be computed.
        model = _build(config)
    model.load_state_dict(tensors, strict=True)
    model.requires_grad_(False)
    tokenizer = _tokenizer(config, folder / TOKENIZER_FILE)
    return Bundle(config, model.to(device).eval(), tokenizer, digest, device)


def save_bundle(
    folder: Path | str, config: BundleConfig, model: nn.Module, tokenizer_json: Path | str | None, card: str, *, half: bool = True
) -> BundleConfig:
    """Write a bundle, all or nothing; `files` of the config is filled in. An existing bundle in `folder` is replaced.

    half: store floats as fp16 (a tensor that would overflow stays fp32). tokenizer_json: a path, or the JSON text itself; None for
    a model that reads no text.
    """
    import torch
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    text = (
        tokenizer_json
        if tokenizer_json is None or (isinstance(tokenizer_json, str) and tokenizer_json.lstrip().startswith("{"))
        else Path(tokenizer_json).read_text("utf-8")
    )
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=folder.parent) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        tensors: dict[str, Any] = {}
        for name, tensor in model.state_dict().items():
            stored = tensor.detach().cpu().contiguous().clone()
            if half and stored.dtype == torch.float32 and bool(torch.isfinite(stored.half()).all()):
                stored = stored.half()
            tensors[name] = stored
        save_file(tensors, str(new / WEIGHTS_FILE))
        if text is not None:
            (new / TOKENIZER_FILE).write_text(text, encoding="utf-8", newline="\n")
        (new / CARD_FILE).write_text(card, encoding="utf-8", newline="\n")
        files: Mapping[str, FileEntry] = {
            name: FileEntry(sha256=file_sha256(new / name), bytes=(new / name).stat().st_size) for name in config.required_files
        }
        config = replace(config, files=files)
        (new / CONFIG_FILE).write_text(config.to_json() + "\n", encoding="utf-8", newline="\n")
        for path in new.iterdir():
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())
        verify_bundle(new)
        put_folder(new, folder)
    return config


def put_folder(new: Path, target: Path) -> None:
    """Move a finished folder into place; an older bundle there steps aside first and is removed after."""
    if not target.exists():
        os.replace(new, target)
        return
    if any(target.iterdir()) and not (target / CONFIG_FILE).is_file():
        raise refuse(
            "The bundle cannot be written there.",
            found="a folder that holds something other than a bundle",
            expected="an empty or new folder, or an older bundle",
            next_step="Choose another folder.",
        )
    aside = target.with_name(f".{target.name}-old-{os.getpid()}")
    os.replace(target, aside)
    try:
        os.replace(new, target)
    except OSError:
        os.replace(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def plain_name(name: str) -> bool:
    """Whether a word can name a bundle (no path, no drive, no hidden file)."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) is not None
