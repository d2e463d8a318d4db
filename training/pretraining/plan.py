"""A dry run: what a training would hold, read and take, measured on made-up studies of the right sizes; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pretraining.made_up import MadeUpStudy, add_inputs
from VelvetMedLib.cohorts import read_cohort
from VelvetMedLib.engine.learner import Learner
from VelvetMedLib.engine.log import clock
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.models.text import MAX_SENTENCES, SPECIALS, TextLayout
from VelvetMedLib.objectives.base import NOT_ASKED, StudyBatch
from VelvetMedLib.recipes.base import Recipe

SENTENCE = 12
"""Tokens of a made-up sentence, its [SEN_i] included."""
VOCABULARY_GUESS = {"tiny": 2400, "micro": 2400}
BERT_VOCABULARY = 30_572
STUDIES = 2
TOKENS = 200
"""Longest made-up text."""


@dataclass(frozen=True)
class Plan:
    """parameters: by part. saved_mib: activations kept for backward by one micro-batch. seconds: of one step, estimated."""

    parameters: dict[str, int]
    studies: int
    volumes: int
    tokens: int
    saved_mib: float
    state_mib: float
    seconds: float


def vocabulary(recipe: Recipe, tokenizer: Path | None) -> int:
    """Of the given tokenizer, else the size that this preset's training would learn or load."""
    if tokenizer is not None:
        from VelvetMedLib.models.text import ReportTokenizer

        return ReportTokenizer(tokenizer).vocab_size
    return VOCABULARY_GUESS.get(recipe.text_size, BERT_VOCABULARY)


def make_plan(recipe: Recipe, vocab_size: int, processes: Processes) -> Plan:
    """Measured with `STUDIES` studies in one micro-batch, scaled to the recipe's."""
    learner = Learner(recipe, vocab_size).to(processes.device)
    batch = made_up_batch(recipe, vocab_size, STUDIES, learner.made).to(processes.device)
    with counted_bytes(learner) as saved:
        _once(learner, batch, processes)
    began = time.perf_counter()
    _once(learner, batch, processes)
    if processes.device.type == "cuda":
        torch.cuda.synchronize(processes.device)
    seconds = time.perf_counter() - began
    each = -(-recipe.loop.batch // (processes.world_size * recipe.loop.micro_batches))
    weights = sum(p.numel() for p in learner.parameters())
    copies = 4 + (1 if recipe.optimiser.average_decay > 0 else 0)  # weights, gradients, two moments, the average
    images = sum(key.startswith("image.") for key in learner.keys)
    texts = [batch.texts[key] for key in learner.keys if key.startswith("text.")]
    return Plan(
        parameters=parameters_by_part(learner),
        studies=recipe.loop.batch,
        volumes=recipe.loop.batch * images,
        tokens=recipe.loop.batch * sum(layout.ids.shape[1] for layout in texts),
        saved_mib=saved.total * each / STUDIES / 2**20,
        state_mib=weights * 4 * copies / 2**20,
        seconds=seconds * recipe.loop.batch / STUDIES / processes.world_size * (4 / 3 if recipe.loop.cached_gradients else 1),
    )


PART_NAMES = {"swin": "image encoder", "tribert": "text encoder", "image_encoder": "image encoder", "text_encoder": "text encoder"}
REST = "projections and adapter"


def parameters_by_part(learner: Learner) -> dict[str, int]:
    """Numbers that are trained, by part of the model and head."""
    parts = dict.fromkeys((*PART_NAMES.values(), REST), 0)
    for name, parameter in learner.model.named_parameters():
        part = PART_NAMES.get(name.partition(".")[0], REST)
        parts[part] += parameter.numel()
    heads = {name: sum(p.numel() for p in objective.parameters()) for name, objective in learner.listed().items()}
    return parts | {f"head of {name.replace('_', ' ')}": size for name, size in heads.items() if size}


def made_up_batch(recipe: Recipe, vocab_size: int, studies: int, keys: tuple[str, ...]) -> StudyBatch:
    """Noise and random words in the shapes of the recipe; texts as long as the recipe allows, at most 200 tokens."""
    draw = np.random.default_rng(0)
    length = min(TOKENS, recipe.reports.max_tokens)
    made = StudyBatch(study=torch.arange(studies), group=torch.arange(studies), view_spacing_mm=torch.full((studies, 3), 4.0))
    makers = recipe.inputs()
    for key in keys:
        if key in makers:
            continue
        if key.startswith("image."):
            side = recipe.views.global_voxels if key == "image.global" else recipe.views.local_voxels
            made.images[key] = torch.from_numpy(draw.random((studies, 1, side, side, side), np.float32))
            made.clean[key] = made.images[key]
            made.quarter_turns[key] = torch.zeros(studies, dtype=torch.long)
        else:
            made.texts[key] = _made_up_layout(studies, length, vocab_size, draw)
            asked = torch.from_numpy(draw.random((studies, length)) < recipe.reports.mask_share)
            made.labels[key] = torch.where(asked, made.texts[key].ids, NOT_ASKED)
    along = recipe.companions()
    beside = along.keys if along is not None else frozenset()
    for chosen, count in ((set(keys) - beside, studies), (set(keys) & beside, along.of(studies) if along is not None else 0)):
        if used := list(dict.fromkeys(makers[key] for key in keys if key in makers and key in chosen)):
            sources = [MadeUpStudy(recipe, vocab_size, n) for n in range(count)]
            add_inputs(made, used, sources)
    return made


def _made_up_layout(studies: int, length: int, vocab_size: int, draw: np.random.Generator) -> TextLayout:
    """Sentences of `SENTENCE` tokens, every token a word."""
    place = np.arange(length)
    sentence = np.minimum(np.maximum(place - 1, 0) // SENTENCE + 1, MAX_SENTENCES)
    heads = (place > 0) & ((place - 1) % SENTENCE == 0)
    words = place[~heads][1:]

    def rows(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.tile(values, (studies, 1)))

    ids = torch.from_numpy(draw.integers(len(SPECIALS), vocab_size, (studies, length)))
    in_sentence = np.where(place == 0, 0, sentence)
    return TextLayout(
        ids=ids,
        type_ids=rows(sentence),
        pad_mask=torch.ones(studies, length, dtype=torch.bool),
        word_index=rows(place),
        entry_sentence=rows(in_sentence),
        sentence_mask=torch.ones(studies, int(sentence.max()), dtype=torch.bool),
        word_entry=rows(words),
        word_mask=torch.ones(studies, len(words), dtype=torch.bool),
    )


def _once(learner: Learner, batch: StudyBatch, processes: Processes) -> None:
    learner.zero_grad(set_to_none=True)
    learner.gradients([batch], processes.context(0, 0), processes, 0)


@dataclass
class Counted:
    """Bytes that autograd keeps for backward, each storage once, parameters left out."""

    total: int = 0


@contextmanager
def counted_bytes(module: nn.Module) -> Iterator[Counted]:
    """Counts what forward passes inside the block keep for backward. Recomputed activations are not kept, and not counted."""
    seen = {p.untyped_storage().data_ptr() for p in module.parameters()}
    counted = Counted()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            counted.total += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield counted


def print_plan(recipe: Recipe, *, steps: int, device: str | None, cohort: Path | None, tokenizer: Path | None) -> Plan:
    """The dry run's page."""
    processes = Processes(device)
    plan = make_plan(recipe, vocabulary(recipe, tokenizer), processes)
    print(f"{recipe.key}: {sum(plan.parameters.values()):,} parameters")
    for name, number in plan.parameters.items():
        print(f"  {name:34s} {number:>13,}")
    print(f"one step: {plan.studies} studies, {plan.volumes} volumes, about {plan.tokens:,} tokens")
    print(f"memory of weights, gradients and optimiser: {plan.state_mib:,.0f} MiB on each process")
    print(f"activations kept for one micro-batch: about {plan.saved_mib:,.0f} MiB (measured on {STUDIES} made-up studies, scaled)")
    print(f"one step: about {plan.seconds:.2f} s on {processes.device}; {steps} steps: about {clock(plan.seconds * steps)}")
    if cohort is not None:
        print(f"cohort: {len(read_cohort(cohort))} studies")
    print("dry run: nothing was trained or written")
    return plan
