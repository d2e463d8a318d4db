"""The text-informed block and its contrast once more, in plain loops over numbers; of ours only the weights are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from Testing.objectives.slow import log_softmax, softmax, unit

Array = NDArray[np.float64]
Vectors = list[Array]


def weights(module: Any) -> dict[str, Array]:
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def apply(x: Array, w: dict[str, Array], name: str) -> Array:
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def layer_norm(x: Array, w: dict[str, Array], name: str) -> Array:
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return (x - mean) / math.sqrt(variance + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: Array) -> Array:
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])


def multi_head(query: Array, keys: Vectors, values: Vectors, heads: int) -> Array:
    width = len(query) // heads
    out = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        shares = softmax([float(np.dot(query[part], key[part])) / math.sqrt(width) for key in keys])
        out.append(sum(share * value[part] for share, value in zip(shares, values, strict=True)))
    return np.concatenate(out)


def informed(x: Vectors, text: Vectors, kept: Sequence[bool], block: Any) -> Vectors:
    """X'' of one image: its tokens, the report's token states and which of them may be read. block: `TextInformed`."""
    w, config = weights(block), block.config
    read = [t for t, k in zip(text, kept, strict=True) if k] or [w["null_token"]]
    for n in range(config.blocks):
        keys = [apply(t, w, f"blocks.{n}.cross.key") for t in read]
        values = [apply(t, w, f"blocks.{n}.cross.value") for t in read]
        out = []
        for token in x:
            query = apply(layer_norm(token, w, f"blocks.{n}.cross_norm"), w, f"blocks.{n}.cross.query")
            mixed = apply(multi_head(query, keys, values, config.heads), w, f"blocks.{n}.cross.out")
            token = token + math.tanh(float(w["cross_gate"][n])) * mixed
            inner = gelu(apply(layer_norm(token, w, f"blocks.{n}.ffn_norm"), w, f"blocks.{n}.ffn.0"))
            out.append(token + math.tanh(float(w["ffn_gate"][n])) * apply(inner, w, f"blocks.{n}.ffn.2"))
        x = out
    return x


def projected(x: Vectors, block: Any) -> Array:
    w = weights(block)
    mean = sum(x) / len(x)
    return unit(apply(gelu(apply(mean, w, "projection.0")), w, "projection.2"))


def one_anchor(anchor: Array, positives: Vectors, negatives: Vectors, temperature: float) -> float:
    """-mean over positives of log softmax at the positive, among positives and negatives."""
    logs = log_softmax([float(np.dot(anchor, z)) / temperature for z in [*positives, *negatives]])
    return -sum(logs[: len(positives)]) / len(positives)
