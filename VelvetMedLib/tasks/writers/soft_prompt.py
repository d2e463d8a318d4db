"""Any causal language model behind a soft prompt: what our encoders make of an instruction and a scan, one Linear, then its own words.

methods.md 2.6: the instruction goes through the text encoder and its fusion layers, which see the scan; the states of all its tokens
that are no padding, and the reader's memory where the widths agree, become vectors in place of the language model's words, then
come its start token and the answer. The model itself is frozen; the Linear and low-rank matrices beside its query, key and value
projections (LoRA, Hu et al. 2021, by peft) are trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from VelvetMedLib.bundle.config import refuse
from VelvetMedLib.bundle.reading import CODE_KEYS
from VelvetMedLib.files import read_json
from VelvetMedLib.models.config import Settings
from VelvetMedLib.reports import FindingRecord, ontology
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.prompts import available_slots
from VelvetMedLib.tasks.writers.base import said

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

FUSED, TEXT, MEMORY = "fused", "text", "memory"
INSTRUCTION_TOKENS = 96
"""Longest instruction in tokens of the bundle's own text encoder."""
_OTHER = "Give another language model."
_SLOT_WORDS = {"[SIZE]": "size", "[COUNT]": "number", "[VALUE]": "value"}


@dataclass(frozen=True, kw_only=True)
class PromptSettings(Settings):
    """sources: what the soft prompt is made of, in this order: "fused" (the instruction's states after the fusion layers, which see the
    visual tokens), "text" (before them), "memory" (the reader's tokens of the scan). Empty = all that the bundle has."""

    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.require(set(self.sources) <= {FUSED, TEXT, MEMORY}, "sources", f"of {FUSED}, {TEXT}, {MEMORY}")

    def resolved(self, bundle: Bundle) -> tuple[str, ...]:
        """The sources, for a bundle that must have them. Raises UsageError."""
        config = bundle.model.config
        has = [FUSED if config.tribert.fusion_layers else TEXT]
        if config.reader is not None and config.reader.width == config.tribert.width:
            has.append(MEMORY)
        self.require(set(self.sources) <= {TEXT, *has}, "sources", f"what the bundle has: {', '.join(dict.fromkeys([TEXT, *has]))}")
        return self.sources or tuple(has)


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Settings):
    """Low-rank matrices beside the projections that the language model calls by these names."""

    rank: int = 8
    alpha: int = 32
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")

    def __post_init__(self) -> None:
        self.require(self.rank >= 1, "rank", "at least 1")
        self.require(self.alpha > 0, "alpha", "more than 0")
        self.require(0 <= self.dropout < 1, "dropout", "0 or more, less than 1")
        self.require(len(self.targets) > 0, "targets", "at least one name")


@dataclass(frozen=True, kw_only=True)
class SearchSettings(Settings):
    """How a sentence is looked for. beams: 1 = greedy. no_repeat: no run of so many tokens twice, 0 = any. early_stop: end with as many
    finished sentences as beams. most_tokens: of a sentence."""

    beams: int = 8
    no_repeat: int = 2
    early_stop: bool = True
    most_tokens: int = 48

    def __post_init__(self) -> None:
        self.require(self.beams >= 1, "beams", "at least 1")
        self.require(self.no_repeat >= 0, "no_repeat", "0 or more")
        self.require(self.most_tokens >= 1, "most_tokens", "at least 1")


class Seen(NamedTuple):
    """What a prompt needs of a scan. visual [V, W]: tokens for the fusion layers; memory [M, W]: the reader's valid tokens."""

    visual: NDArray[np.float16]
    memory: NDArray[np.float16]


def seen_of(encoding: Encoding, bundle: Bundle) -> Seen:
    """From an encoding with its global and reader parts."""
    from VelvetMedLib.models.velvet import GlobalFeatures

    part, reading = encoding.need_global(), encoding.need_reading()
    with torch.inference_mode():
        bottom, middle, top = (torch.from_numpy(m)[None].to(bundle.device) for m in (part.bottom, part.middle, part.top))
        features = GlobalFeatures(bottom, middle, top, torch.tensor([part.view_spacing_mm], device=bundle.device))
        visual = bundle.model.visual_tokens(features)[0].half().cpu().numpy()
    return Seen(visual, reading.memory[reading.memory_mask].astype(np.float16))


def instruction(record: FindingRecord, style: str) -> list[str]:
    """What the sentence shall say, in words that the bundle's text encoder reads: one attribute a sentence."""
    finding, told = ontology().finding(record.name), said(record)
    place = None if told.site is None else ontology().site_display(told.site)
    state = record.state.replace("_", " ")
    slots = [_SLOT_WORDS[slot] for slot in available_slots(told)]
    return [f"{finding.display} {state}", *filter(None, (told.side, place, told.severity, *slots)), style]


def prompt_states(
    bundle: Bundle, instructions: Sequence[Sequence[str]], seen: Sequence[Seen], sources: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """States [B, P, W], each row's own at its end, and which are no padding [B, P]. seen: of each instruction's scan."""
    model, device = bundle.model, bundle.device
    with torch.no_grad():
        layout = bundle.tokenizer.layout([list(one) for one in instructions], INSTRUCTION_TOKENS).to(device)
        text = model.tribert.text(layout.ids, layout.type_ids, layout.pad_mask)
        parts: list[list[Tensor]] = [[] for _ in seen]
        for source in sources:
            states = text
            if source == FUSED:
                visual = torch.from_numpy(np.stack([one.visual for one in seen])).float().to(device)
                states = model.tribert.fuse(text, layout.type_ids, layout.pad_mask, visual)
            for row, one in enumerate(seen):
                memory = torch.from_numpy(one.memory).float().to(device)
                parts[row].append(memory if source == MEMORY else states[row, layout.pad_mask[row]])
        rows = [torch.cat(row) for row in parts]
        longest = max(len(row) for row in rows)
        padded = torch.stack([functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        valid = torch.stack([torch.arange(longest, device=device) >= longest - len(row) for row in rows])
    return padded, valid


class PromptedModel(nn.Module):
    """A language model with LoRA (`language`, of peft) behind a Linear from the encoder's width to its own."""

    def __init__(self, language: Any, tokenizer: Any, width: int) -> None:
        super().__init__()
        self.language, self.words = language, tokenizer
        self.prompt = nn.Linear(width, language.get_input_embeddings().embedding_dim)
        self.start: int | None = tokenizer.bos_token_id
        self.end: int = tokenizer.eos_token_id
        # As large as a word's vector: a prompt that drowns the words takes long to be unlearnt.
        with torch.no_grad():
            size = language.get_input_embeddings().weight.float().std()
            nn.init.normal_(self.prompt.weight, std=float(size) / width**0.5)
            nn.init.zeros_(self.prompt.bias)

    def adapted(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def tokens(self, text: str) -> list[int]:
        """Ids of a sentence and the one end token."""
        return [*self.words(text, add_special_tokens=False)["input_ids"], self.end]

    def log_likelihood(self, states: Tensor, valid: Tensor, answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of each answer's tokens, end token included: [B, L] with zeros behind it, and which are asked for [B, L]."""
        device, longest = states.device, max(map(len, answers))
        ids = torch.full((len(answers), longest), self.end, device=device)
        asked = torch.zeros(len(answers), longest, dtype=torch.bool, device=device)
        for row, answer in enumerate(answers):
            ids[row, : len(answer)] = torch.tensor(list(answer), device=device)
            asked[row, : len(answer)] = True
        front, mask = self._front(states, valid)
        words = self.language.get_input_embeddings()(ids[:, :-1])
        whole = torch.cat([mask, asked[:, :-1]], dim=1)
        logits = self.language(
            inputs_embeds=torch.cat([front, words.to(front.dtype)], dim=1), attention_mask=whole.long(), position_ids=_positions(whole)
        ).logits[:, front.shape[1] - 1 :]
        logs = functional.log_softmax(logits.float(), dim=-1).gather(2, ids[..., None])[..., 0]
        return logs.masked_fill(~asked, 0.0), asked

    @torch.no_grad()
    def generate(
        self, states: Tensor, valid: Tensor, search: SearchSettings, cancel: Callable[[], None] | None = None
    ) -> list[tuple[list[int], bool]]:
        """Ids of a sentence for each row, without the end token, and whether it came to its end within `most_tokens`."""
        from transformers import StoppingCriteriaList

        def asked_to_stop(ids: Tensor, scores: Any, **_: Any) -> Tensor:
            if cancel is not None:
                cancel()
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        front, mask = self._front(states, valid)
        several: dict[str, Any] = {"early_stopping": search.early_stop} if search.beams > 1 else {}
        with warnings.catch_warnings():
            # It says that runs of the prompt may be repeated: a soft prompt has no words.
            warnings.filterwarnings("ignore", message="Passing `no_repeat_ngram_size`")
            out = self.language.generate(
                inputs_embeds=front, attention_mask=mask.long(), max_new_tokens=search.most_tokens, num_beams=search.beams,
                no_repeat_ngram_size=search.no_repeat, do_sample=False, eos_token_id=self.end, pad_token_id=self.end, use_cache=True,
                stopping_criteria=StoppingCriteriaList([asked_to_stop]), **several,
            )  # fmt: skip
        return [(row[: row.index(self.end)], True) if self.end in row else (row, False) for row in out.tolist()]

    def text(self, ids: Sequence[int]) -> str:
        return str(self.words.decode(list(ids), skip_special_tokens=True)).strip()

    def _front(self, states: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The soft prompt and the start token: [B, P, E] and [B, P]."""
        weight = self.language.get_input_embeddings().weight
        front = self.prompt(states).to(weight.dtype)
        if self.start is not None:
            begin = weight[self.start].expand(len(front), 1, -1)
            front, valid = torch.cat([front, begin], dim=1), torch.cat([valid, torch.ones_like(valid[:, :1])], dim=1)
        return front, valid


def _positions(mask: Tensor) -> Tensor:
    """Padding on the left does not move a row's positions."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def load_language_model(folder: Path, lora: LoraSettings, *, half: bool = False) -> tuple[Any, Any]:
    """A frozen causal language model with fresh LoRA, and its tokenizer, from a folder with safetensors. Nothing is fetched, no code of
    the folder runs. half: keep the frozen weights in bfloat16. Raises BundleError."""
    check_language_folder(folder)
    try:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise refuse(
            "Language models need packages that are not installed.",
            found=f"no {error.name}",
            expected="transformers and peft",
            next_step="Install them: pip install 'velvetmed[llm]'",
        ) from None
    logging.disable_progress_bar()
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **safe)
        base = AutoModelForCausalLM.from_pretrained(
            str(folder), use_safetensors=True, dtype=torch.bfloat16 if half else torch.float32, **safe
        )
        config = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets), task_type="CAUSAL_LM"
        )
        language = get_peft_model(base, config)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise refuse(
            "The language model cannot be used.",
            found=str(error).splitlines()[0][:200] if str(error) else type(error).__name__,
            expected="a causal language model of transformers whose projections have the names of lora.targets",
            next_step="Give another model, or other names with --set lora.targets=...",
        ) from None
    if tokenizer.eos_token_id is None:
        raise refuse("The language model has no end token.", found="no eos_token", expected="a tokenizer with one", next_step=_OTHER)
    return language.eval(), tokenizer


def check_language_folder(folder: Path) -> list[Path]:
    """The files of a language model, in order of name. Raises BundleError where it is none, or wants code of its own or pickles."""
    config = read_json(folder / "config.json")
    files = sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
    safe = [p for p in files if p.suffix == ".safetensors"]
    if config is None or not safe or not (folder / "tokenizer.json").is_file():
        raise refuse(
            "There is no language model that can be used here.",
            found="a folder without config.json, tokenizer.json or *.safetensors",
            expected="a folder as transformers saves it, with safetensors",
            next_step="Convert a GGUF file with training/convert_weights.py language; pickled weights are not read.",
        )
    if code := sorted(CODE_KEYS & set(config)):
        raise refuse(
            "The language model wants to run code of its own.",
            found=", ".join(code),
            expected="a model that transformers itself knows",
            next_step=_OTHER,
        )
    return [p for p in files if p.suffix in (".safetensors", ".json", ".jinja", ".txt", ".model") and p.name != "conversion.json"]
