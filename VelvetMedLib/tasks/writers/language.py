"""The writer that was trained with a language model (`training/finetune.py report`): its folder, checked byte by byte, and its use.

WRITER/writer.json          what it was made for and from, settings, results, and the hash of every file below
WRITER/writer.safetensors   the Linear ("prompt.*") and LoRA ("lora.*", by peft's own names)
WRITER/model/               the language model as transformers saves it: safetensors, JSON
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.bundle.config import refuse
from VelvetMedLib.bundle.store import file_sha256, tensor_table
from VelvetMedLib.errors import VelvetMedError
from VelvetMedLib.files import read_json, write_json
from VelvetMedLib.reports import FindingRecord
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.writers.base import Wording
from VelvetMedLib.tasks.writers.soft_prompt import (
    LoraSettings,
    PromptedModel,
    SearchSettings,
    check_language_folder,
    instruction,
    load_language_model,
    prompt_states,
    seen_of,
)

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

FORMAT_VERSION = 1
MARK, WEIGHTS, MODEL = "writer.json", "writer.safetensors", "model"
_NEXT = "Train it again with training/finetune.py report, or use an undamaged copy."


@dataclass(frozen=True)
class WriterFacts:
    """writer.json. bundle: id and encoding_key of the bundle whose encodings it reads. base: name and licence of the language model.
    style: the only one that it has learnt, "" = the one that a draft asks for. training_data, results: for the reader of the file."""

    bundle: Mapping[str, str]
    base: Mapping[str, str]
    width: int
    sources: tuple[str, ...]
    lora: LoraSettings
    search: SearchSettings
    style: str
    training_data: str
    results: Mapping[str, Any]


class LanguageWriter:
    """All findings side by side."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        """Raises BundleError where anything is not as it was written, or the writer was trained with another bundle."""
        import torch
        from safetensors.torch import load_file

        self.bundle, self.told, self.sha256 = bundle, read_writer(folder), file_sha256(folder / MARK)
        if self.told.bundle["encoding_key"] != bundle.encoding_key:
            raise refuse(
                "The writer was trained with another model of scans.",
                found=f"bundle {bundle.config.id!r} version {bundle.config.version}",
                expected=f"bundle {self.told.bundle['id']!r} with the weights that it was trained with",
                next_step="Name that bundle with --bundle, or train a writer with this one.",
            )
        language, tokenizer = load_language_model(folder / MODEL, self.told.lora)
        from peft import set_peft_model_state_dict

        with torch.random.fork_rng(devices=[]):
            self.model = PromptedModel(language, tokenizer, self.told.width)
        tensors = load_file(str(folder / WEIGHTS))
        try:
            self.model.prompt.load_state_dict(_under("prompt.", tensors))
            outcome: Any = set_peft_model_state_dict(language, _under("lora.", tensors))
            if outcome.unexpected_keys or any("lora_" in key for key in outcome.missing_keys):
                raise RuntimeError("LoRA matrices of another model")
        except (RuntimeError, KeyError) as error:
            raise refuse("The writer's weights do not fit its language model.", found=str(error).splitlines()[0][:200], expected="its own",
                         next_step=_NEXT) from None  # fmt: skip
        self.model.to(bundle.device).eval()

    @property
    def facts(self) -> Mapping[str, Any]:
        base = {"model": self.told.base.get("name", ""), "licence": self.told.base.get("licence", "")}
        return {"kind": "language model", **base, "sha256": self.sha256}

    def write(self, records: Sequence[FindingRecord], encoding: Encoding, style: str, run: Run) -> list[Wording | None]:
        if not records:
            return []
        seen = [seen_of(encoding, self.bundle)] * len(records)
        asked = [instruction(record, self.told.style or style) for record in records]
        states, valid = prompt_states(self.bundle, asked, seen, self.told.sources)
        return wordings(self.model, states, valid, self.told.search, run)


def wordings(model: PromptedModel, states: Any, valid: Any, search: SearchSettings, run: Run) -> list[Wording | None]:
    """The model's sentence for each prompt with how sure it is of its tokens; None where it found no end."""
    import torch

    rows = model.generate(states, valid, search, run.check)
    with torch.no_grad():
        logs, asked = model.log_likelihood(states, valid, [[*ids, model.end] for ids, _ in rows])
    sure = (logs.sum(1) / asked.sum(1)).exp().tolist()
    return [Wording(model.text(ids), probability) if ended else None for (ids, ended), probability in zip(rows, sure, strict=True)]


def save_writer(folder: Path, model: PromptedModel, base: Path, facts: WriterFacts) -> None:
    """Write a writer's folder, all or nothing; an older writer there is replaced. base: folder of the language model; its files are
    linked where the disk allows it, and copied elsewhere."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writer-", dir=folder.parent) as temporary:
        new = Path(temporary) / "new"
        (new / MODEL).mkdir(parents=True)
        for path in check_language_folder(base):
            try:
                os.link(path, new / MODEL / path.name)
            except OSError:
                shutil.copyfile(path, new / MODEL / path.name)
        # Without this peft asks the hub whether the model's vocabulary was changed.
        adapter = get_peft_model_state_dict(model.language, save_embedding_layers=False)
        tensors = {f"prompt.{name}": value for name, value in model.prompt.state_dict().items()}
        tensors |= {f"lora.{name}": value for name, value in adapter.items()}
        save_file({name: value.detach().float().cpu().contiguous().clone() for name, value in tensors.items()}, str(new / WEIGHTS))
        named = sorted(p for p in new.rglob("*") if p.is_file())
        files = {p.relative_to(new).as_posix(): {"sha256": file_sha256(p), "bytes": p.stat().st_size} for p in named}
        told = {name: value.to_dict() if isinstance(value, LoraSettings | SearchSettings) else value for name, value in vars(facts).items()}
        write_json(new / MARK, {"format_version": FORMAT_VERSION, "notice": RESEARCH_USE_ONLY, **told, "files": files})
        if folder.exists():
            if any(folder.iterdir()) and not (folder / MARK).is_file():
                raise refuse("The writer cannot be written there.", found="other files", expected="a new or empty folder",
                             next_step="Choose another folder.")  # fmt: skip
            os.replace(folder, Path(temporary) / "old")
        os.replace(new, folder)


def read_writer(folder: Path) -> WriterFacts:
    """What writer.json says, after every file was found whole and no other one. Raises BundleError."""
    data = read_json(folder / MARK)
    if data is None or data.get("format_version") != FORMAT_VERSION:
        raise refuse(
            "There is no trained writer here.",
            found="no readable writer.json of this version in the folder",
            expected="a folder that training/finetune.py report has made",
            next_step="Choose another folder.",
        )
    listed = data.get("files")
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MARK}
    if not isinstance(listed, dict) or set(listed) != found or WEIGHTS not in found:
        raise refuse("The writer's files are not those that it lists.", found=", ".join(sorted(found)), expected="those of writer.json",
                     next_step=_NEXT)  # fmt: skip
    for name, entry in listed.items():
        if file_sha256(folder / name) != entry.get("sha256"):
            raise refuse(f"The writer's file {name} is damaged or was changed.", found="another sha256", expected=str(entry.get("sha256")),
                         next_step=_NEXT)  # fmt: skip
    tensor_table(folder / WEIGHTS)
    try:
        return WriterFacts(
            bundle=dict(data["bundle"]), base=dict(data["base"]), width=int(data["width"]), sources=tuple(data["sources"]),
            lora=LoraSettings.from_dict(data["lora"]), search=SearchSettings.from_dict(data["search"]),
            style=str(data["style"]), training_data=str(data["training_data"]), results=dict(data["results"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, VelvetMedError) as error:
        raise refuse("writer.json is incomplete.", found=type(error).__name__, expected="all its entries", next_step=_NEXT) from None


def _under(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
