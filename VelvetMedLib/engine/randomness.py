"""Every random draw of a training, keyed by what it is for, and the state of every generator for a checkpoint.

A draw depends on the seed and on its key (step or epoch, study, purpose), never on the process, the worker or the
place in the batch. So a resumed run, or a run on more processes, draws what the unbroken run on one would have drawn.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def key_bits(*key: int | str) -> int:
    """128 bits that depend on every part of the key and on their order."""
    # The type is part of the key: study "7" and step 7 must not meet.
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest(), "little")


def generator(*key: int | str) -> np.random.Generator:
    """A numpy generator of its own for this key."""
    return np.random.default_rng(key_bits(*key))


def seed_torch(*key: int | str) -> None:
    """Seed torch's global generators (dropout draws from them) for one piece of work, so that it can be replayed."""
    torch.manual_seed(key_bits(*key) & (2**63 - 1))


def seed_everything(*key: int | str) -> None:
    """Seed all global generators of this process. Nothing of ours draws from Python's and numpy's, but a library might."""
    seed_torch(*key)
    random.seed(key_bits(*key, "python"))
    np.random.seed(key_bits(*key, "numpy") & (2**32 - 1))


def capture() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of all global generators of this process: tensors for safetensors, and the rest for JSON."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys, np.int64).copy())}
    if torch.cuda.is_available():
        tensors |= {f"cuda{n}": state for n, state in enumerate(torch.cuda.get_rng_state_all())}
    facts = {
        "python": [version, list(numbers), gauss],
        "numpy": [str(kind), int(position), int(has_gauss), float(cached)],
    }
    return tensors, facts


def restore(tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Inverse of `capture`."""
    version, numbers, gauss = facts["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, position, has_gauss, cached = facts["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        states = [tensors[f"cuda{n}"] for n in range(torch.cuda.device_count()) if f"cuda{n}" in tensors]
        if len(states) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states)
