"""Converted weights on disk: the folder that `convert_weights.py` writes and that trainings start from. Safetensors and JSON only.

model.safetensors   the encoder's tensors, in the source's own number type
config.json         kind "swin": the settings of `SwinEncoder`; kind "bert": the checkpoint's own configuration
tokenizer.json      kind "bert": the checkpoint's tokenizer with our special tokens behind its vocabulary
conversion.json     where everything came from; sizes and SHA-256 of the source, of these files and of each tensor
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from VelvetMedLib import __version__
from VelvetMedLib.bundle.store import tensor_table
from VelvetMedLib.errors import BundleError
from VelvetMedLib.files import file_sha256
from VelvetMedLib.models.swin import SwinConfig, SwinEncoder
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.models.tribert import TriBert, TriBertConfig, load_bert_weights

FORMAT_VERSION = 1
RECORD, WEIGHTS, CONFIG, TOKENIZER = "conversion.json", "model.safetensors", "config.json", "tokenizer.json"
KINDS = ("swin", "bert")


@dataclass(frozen=True)
class Converted:
    """A verified conversion. kind: "swin" or "bert". tokenizer_json: the tokenizer's text, "" where there is none."""

    kind: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    record: dict[str, Any]
    tokenizer_json: str = ""


def refuse(what: str, *, found: str, expected: str, next_step: str = "") -> NoReturn:
    """Raise a BundleError; the usual next step is to convert again."""
    raise BundleError(
        what, found=found, expected=expected, next_step=next_step or "Convert the published weights again with training/convert_weights.py."
    )


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 over a tensor's bytes, row-major."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def write_converted(
    folder: Path,
    kind: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    facts: Mapping[str, Any],
    came_from: Mapping[str, str],
    tokenizer_json: str = "",
) -> dict[str, Any]:
    """Write a conversion, all or nothing, and read it back: every tensor must equal the one given. Returns the record.

    facts: JSON-ready, goes into the record. came_from: our name of each tensor -> its name in the source.
    """
    if folder.exists() and not (folder / RECORD).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        refuse(
            "The folder for the converted weights is in use.",
            found="a file, or a folder that holds something other than converted weights",
            expected="a new or empty folder, or one that this command wrote before",
            next_step="Give another folder with --out.",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".converted-", dir=folder.parent) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, str(new / WEIGHTS))
        stored = load_file(str(new / WEIGHTS))
        if changed := [name for name, tensor in tensors.items() if not same_bits(stored[name], tensor)]:
            refuse("A tensor was not stored as it was read.", found=", ".join(changed[:5]), expected="equal tensors")
        _write_json(new / CONFIG, config)
        if tokenizer_json:
            (new / TOKENIZER).write_text(tokenizer_json, encoding="utf-8", newline="\n")
        files = {p.name: {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in sorted(new.iterdir())}
        record = {
            "format_version": FORMAT_VERSION,
            "kind": kind,
            "made_by": f"VelvetMed {__version__}, training/convert_weights.py",
            **facts,
            "files": files,
            "tensors": {
                name: {
                    "from": came_from[name],
                    "shape": list(tensor.shape),
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                    "sha256": tensor_sha256(tensor),
                }
                for name, tensor in sorted(tensors.items())
            },
        }
        _write_json(new / RECORD, record)
        if folder.exists():
            os.replace(folder, Path(temporary) / "old")
        os.replace(new, folder)
    return record


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Equal in type, shape and every bit, so that NaN equals itself."""
    return first.dtype == second.dtype and first.shape == second.shape and tensor_sha256(first) == tensor_sha256(second)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def is_converted(folder: Path) -> bool:
    """Whether a folder claims to hold converted weights."""
    return (folder / RECORD).is_file()


def read_converted(folder: Path, kind: Literal["swin", "bert"]) -> Converted:
    """Verify a conversion of this kind and read it. Raises BundleError that names what is wrong."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        version, found_kind, files = record["format_version"], record["kind"], record["files"]
    except (OSError, ValueError, KeyError, TypeError):
        refuse(
            "There are no converted weights here.",
            found="no readable conversion.json in the given folder",
            expected="a folder written by training/convert_weights.py",
        )
    if version != FORMAT_VERSION:
        refuse("The converted weights are of an unknown version.", found=str(version), expected=str(FORMAT_VERSION))
    if found_kind != kind:
        refuse("The converted weights are of another kind.", found=str(found_kind), expected=kind, next_step="Give the other folder.")
    wanted = {WEIGHTS, CONFIG} | ({TOKENIZER} if kind == "bert" else set())
    if set(files) != wanted:
        refuse("The record lists other files than a conversion has.", found=", ".join(sorted(files)), expected=", ".join(sorted(wanted)))
    for name, entry in sorted(files.items()):
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"] or file_sha256(path) != entry["sha256"]:
            refuse("A file of the converted weights is missing or was changed.", found=name, expected=f"sha256 {entry['sha256']}")
    table = tensor_table(folder / WEIGHTS)
    shapes = {name: tuple(entry["shape"]) for name, entry in record["tensors"].items()}
    if {name: shape for name, (_, shape) in table.items()} != shapes:
        refuse("The converted tensors are not those of the record.", found=f"{len(table)} tensors", expected=f"{len(shapes)} as recorded")
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    text = (folder / TOKENIZER).read_text(encoding="utf-8") if kind == "bert" else ""
    return Converted(kind, config, load_file(str(folder / WEIGHTS)), record, text)


def swin_config_of(tensors: Mapping[str, Tensor], *, legacy_merging: bool, legacy_relative_index: bool) -> SwinConfig:
    """The settings that the encoder's tensors tell by their shapes; the two legacy switches leave no trace in them."""
    try:
        embed_dim, in_channels, patch = tensors["patch_embed.proj.weight"].shape[:3]
        depths, heads, windows, ratios = [], [], set(), set()
        for stage in range(1, 5):
            front = f"layers{stage}.0.blocks."
            blocks = {int(name.removeprefix(front).split(".")[0]) for name in tensors if name.startswith(front)}
            depths.append(len(blocks))
            if not blocks and f"layers{stage}.0.downsample.norm.weight" in tensors:
                heads.append(1)  # a stage that only merges has no heads to tell of
                continue
            rows, columns = tensors[f"{front}0.attn.relative_position_bias_table"].shape
            heads.append(int(columns))
            windows.add((round(rows ** (1 / 3)) + 1) // 2)
            ratios.add(int(tensors[f"{front}0.mlp.linear1.weight"].shape[0] // (embed_dim * 2 ** (stage - 1))))
        if len(ratios) != 1:
            raise ValueError("attention block, or blocks of different inner widths")
    except (KeyError, ValueError) as error:
        refuse(
            "The tensors are not those of a Swin encoder.",
            found=f"no usable {error}",
            expected="patch embedding and four stages, one of them with blocks, with MONAI's names",
            next_step="Give the checkpoint of a MONAI SwinTransformer, SwinUNETR or its self-supervised pre-training.",
        )
    if len(windows) != 1:
        refuse("The stages have windows of different sizes.", found=str(sorted(windows)), expected="one size for all stages")
    return SwinConfig(
        in_channels=int(in_channels),
        embed_dim=int(embed_dim),
        depths=tuple(depths),
        heads=tuple(heads),
        window=windows.pop(),
        patch=int(patch),
        mlp_ratio=ratios.pop(),
        legacy_merging=legacy_merging,
        legacy_relative_index=legacy_relative_index,
    )


def check_swin(config: SwinConfig, tensors: Mapping[str, Tensor]) -> None:
    """Names and shapes against the encoder that the settings build. Raises BundleError that names the first misfit."""
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in SwinEncoder(config).state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if missing := sorted(set(wanted) - set(found)):
        refuse("The weights lack a tensor of the encoder.", found=f"no {', '.join(missing[:4])}", expected=f"{len(wanted)} tensors")
    if extra := sorted(set(found) - set(wanted)):
        refuse("The weights hold a tensor that the encoder does not have.", found=", ".join(extra[:4]), expected=f"{len(wanted)} tensors")
    for name, shape in wanted.items():
        if found[name] != shape:
            refuse(f"The tensor {name} has the wrong shape.", found=str(found[name]), expected=str(shape))


def text_encoder(
    converted: Converted,
    *,
    fusion_layers: int,
    visual_width: int = 0,
    heads: int | None = None,
    fusion_init: Literal["random", "copy_last"] = "random",
) -> tuple[TriBert, ReportTokenizer]:
    """A TriBERT that starts from a converted BERT, with its tokenizer. heads: other than the checkpoint's own, only for parity runs."""
    tokenizer = ReportTokenizer(converted.tokenizer_json)
    config = TriBertConfig.from_bert(converted.config, vocab_size=tokenizer.vocab_size, fusion_layers=fusion_layers, heads=heads)
    model = TriBert(replace(config, visual_width=visual_width))
    tensors = {name: value.float() for name, value in converted.tensors.items()}
    load_bert_weights(model, tensors, cls_id=tokenizer.cls_id, sentence_ids=tokenizer.sentence_ids, fusion_init=fusion_init)
    return model, tokenizer
