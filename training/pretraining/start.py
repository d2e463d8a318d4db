"""Where a pre-training starts from: published weights that `convert_weights.py` has converted, for the text or the image encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from converted import Converted, check_swin, read_converted
from torch import nn

from VelvetMedLib.errors import TrainingError, UsageError
from VelvetMedLib.models.swin import SwinConfig, SwinEncoder
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.models.tribert import TriBert, TriBertConfig, load_bert_weights
from VelvetMedLib.recipes.base import Recipe
from VelvetMedLib.recipes.velvet import TEXT, VISION

TEXT_SIZES = ("text_layers", "width", "heads", "ffn", "norm_eps")
VISION_SIZES = ("in_channels", "embed_dim", "depths", "heads", "window", "patch", "mlp_ratio", "legacy_merging", "legacy_relative_index")
Kind = TypeVar("Kind", bound=nn.Module)


@dataclass(frozen=True)
class Start:
    """text, vision: verified conversions; None = weights drawn from the run's seed."""

    text: Converted | None = None
    vision: Converted | None = None

    def named(self) -> dict[str, Converted]:
        return {name: found for name, found in (("text", self.text), ("vision", self.vision)) if found is not None}

    def facts(self) -> dict[str, Any]:
        """JSON-ready: sources and SHA-256 of everything read; what two calls of one run must agree on. {} = drawn from the seed."""
        return {
            name: {
                "source": found.record["source"],
                "files": {file: entry["sha256"] for file, entry in sorted(found.record["files"].items())},
            }
            for name, found in self.named().items()
        }

    def statement(self) -> str:
        """Sentences for the bundle and its card; "" where nothing was taken over."""
        told = []
        for name, found in self.named().items():
            stated = found.record["source"]["stated_by_the_user"]
            encoder = {"text": "text", "vision": "image"}[name]
            told.append(
                f"The {encoder} encoder began with the published weights {stated.get('name', 'whose name was not stated')} "
                f"(licence: {stated.get('licence', 'not stated')}; sha256 {found.record['source']['files'][-1]['sha256']})."
            )
        return " ".join(told)

    def tokenizer_file(self, text_from: Path | None, given: Path | None) -> Path | None:
        """The BERT's own tokenizer where there is a BERT: its word rows mean nothing under another one. Raises UsageError for two."""
        if text_from is None:
            return given
        if given is not None:
            raise UsageError(
                "Two tokenizers were given.",
                found="--tokenizer and --text-from",
                expected="one of them: converted weights bring their own tokenizer",
                next_step="Leave out --tokenizer.",
            )
        return text_from / "tokenizer.json"

    def check(self, recipe: Recipe) -> None:
        """Raises TrainingError that names both sizes where the weights are not those of the recipe's encoders."""
        with torch.device("meta"):
            model = recipe.model(ReportTokenizer(self.text.tokenizer_json).vocab_size if self.text else 1)
        if self.text is not None:
            _check_text(_encoder(model, "tribert", TriBert, recipe), self.text, recipe)
        if self.vision is not None:
            _check_vision(_encoder(model, "swin", SwinEncoder, recipe), self.vision, recipe)

    def load(self, model: nn.Module, tokenizer: ReportTokenizer, tokenizer_json: str, recipe: Recipe) -> None:
        """Put the weights into new encoders; a resumed run's checkpoint then takes their place."""
        if self.text is not None:
            if tokenizer_json != self.text.tokenizer_json:
                raise TrainingError(
                    "The run folder holds another tokenizer than the converted weights.",
                    found="a tokenizer.json that was made or given before",
                    expected="the tokenizer of the converted BERT",
                    next_step="Give a new folder with --run.",
                )
            tensors = {name: value.float() for name, value in self.text.tensors.items()}
            tribert = _encoder(model, "tribert", TriBert, recipe)
            load_bert_weights(tribert, tensors, cls_id=tokenizer.cls_id, sentence_ids=tokenizer.sentence_ids)
        if self.vision is not None:
            tensors = {name: value.float() for name, value in self.vision.tensors.items()}
            _encoder(model, "swin", SwinEncoder, recipe).load_state_dict(tensors)


def read_start(text_from: Path | None, vision_from: Path | None) -> Start:
    """Verify and read the given folders. Raises BundleError that names what is wrong with one."""
    return Start(
        read_converted(text_from, "bert") if text_from is not None else None,
        read_converted(vision_from, "swin") if vision_from is not None else None,
    )


def _encoder(model: nn.Module, name: str, kind: type[Kind], recipe: Recipe) -> Kind:
    found = getattr(model, name, None)
    if not isinstance(found, kind):
        raise TrainingError(
            f"The recipe {recipe.name} has no encoder that these weights fit.",
            found=f"no {kind.__name__} in it",
            expected="a recipe with TriBERT for --text-from, with a Swin encoder for --vision-from, such as velvet",
            next_step="Leave the option out, or choose another recipe.",
        )
    return found


def _check_text(encoder: TriBert, found: Converted, recipe: Recipe) -> None:
    config = encoder.config
    theirs = TriBertConfig.from_bert(found.config, vocab_size=config.vocab_size, fusion_layers=config.fusion_layers)
    if any(getattr(theirs, name) != getattr(config, name) for name in TEXT_SIZES):
        fitting = [name for name, size in TEXT.items() if all(getattr(size, n) == getattr(theirs, n) for n in TEXT_SIZES[:-1])]
        raise _misfit("BERT", "text", _text_size(theirs), _text_size(config), fitting)
    if theirs.positions < config.positions:
        raise TrainingError(
            "The converted BERT holds shorter texts than the recipe reads.",
            found=f"{theirs.positions} positions in the weights",
            expected=f"at least {config.positions} (reports.max_tokens)",
            next_step=f"Use --set reports.max_tokens={theirs.positions}, or other weights.",
        )


def _check_vision(encoder: SwinEncoder, found: Converted, recipe: Recipe) -> None:
    config, theirs = encoder.config, SwinConfig.from_dict(found.config)
    if any(getattr(theirs, name) != getattr(config, name) for name in VISION_SIZES):
        fitting = [name for name, size in VISION.items() if all(getattr(size, n) == getattr(theirs, n) for n in VISION_SIZES)]
        raise _misfit("Swin", "vision", _vision_size(theirs), _vision_size(config), fitting)
    check_swin(config, found.tensors)


def _misfit(weights: str, setting: str, found: str, expected: str, fitting: list[str]) -> TrainingError:
    choice = f"Use --set {setting}_size={fitting[0]}" if fitting else f"No {setting}_size of this version fits them: take"
    return TrainingError(
        f"The converted {weights} weights do not have the size of the recipe's {setting} encoder.",
        found=f"the weights: {found}",
        expected=f"the recipe: {expected}",
        next_step=f"{choice}{', or ' if fitting else ' '}other weights.",
    )


def _text_size(config: TriBertConfig) -> str:
    return (
        f"{config.text_layers} layers of width {config.width}, {config.heads} heads, feed-forward {config.ffn}, "
        f"{config.positions} positions, norm epsilon {config.norm_eps:g}"
    )


def _vision_size(config: SwinConfig) -> str:
    parts: Mapping[str, Any] = {name: getattr(config, name) for name in VISION_SIZES}
    return ", ".join(f"{name} {'/'.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in parts.items())
