"""One place that lets the decoder write: prompts in, slotted texts and how sure it was out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.prompts import SLOTS

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

LONGEST_SENTENCE = 48


@dataclass(frozen=True)
class Written:
    """What the decoder wrote after one prompt. slotted: text with [SIZE], [COUNT], [VALUE] for numbers.

    probability: geometric mean of the probabilities of its tokens. ended: False if it ran into the length limit.
    """

    slotted: str
    probability: float
    ended: bool


def has_decoder(bundle: Bundle) -> bool:
    return getattr(bundle.model, "decoder", None) is not None


def write(prompts: Sequence[Sequence[int]], encoding: Encoding, bundle: Bundle, run: Run | None = None) -> list[Written]:
    """The decoder's text for every prompt, greedy, all prompts side by side. Cancel is honoured between tokens."""
    import torch

    run = run or Run()
    decoder, tokenizer = bundle.model.decoder, bundle.tokenizer
    if decoder is None or not prompts:
        return []
    reading = encoding.need_reading()
    end = tokenizer.id("[EOS]")
    allowed = {end, *(tokenizer.id(slot) for slot in SLOTS)}
    forbidden = sorted(set(tokenizer.special_ids) - allowed)
    longest = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), longest), tokenizer.id("[PAD]"))
    valid = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        valid[row, longest - len(prompt) :] = True
    device = bundle.device
    memory = torch.from_numpy(reading.memory)[None].to(device).expand(len(prompts), -1, -1)
    mask = torch.from_numpy(reading.memory_mask)[None].to(device).expand(len(prompts), -1)
    out = decoder.generate(
        ids.to(device), memory, mask, LONGEST_SENTENCE, end,
        prefix_mask=valid.to(device), forbidden_ids=forbidden, cancel=run.check,
        on_token=lambda step, _: run.step(step / LONGEST_SENTENCE),
    )  # fmt: skip
    return [_read(row, logs, end, bundle) for row, logs in zip(out.ids.tolist(), out.logprobs.tolist(), strict=True)]


def _read(ids: list[int], logprobs: list[float], end: int, bundle: Bundle) -> Written:
    ended = end in ids
    length = ids.index(end) if ended else len(ids)
    # The end token counts: being sure that the sentence is over is part of being sure of it.
    scored = logprobs[: length + 1] if ended else logprobs
    probability = float(np.exp(np.mean(scored))) if scored else 0.0
    return Written(bundle.tokenizer.decode(ids[:length]).strip(), probability, ended)
