"""Cached-gradient contrast: a batch larger than memory with the gradients of that batch (methods.md 2.4e).

Source of the idea: GradCache (Gao et al. 2021). Pass 1 encodes every micro-batch without a graph and keeps the features;
objectives that compare studies run once on these leaves of the whole effective batch; pass 2 encodes each micro-batch
again under the same random state and sends the leaves' gradients through it, beside the losses that need no other study.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from VelvetMedLib.objectives.base import Feature, Features, StudyBatch, joined_layout, joined_rows

Encode: TypeAlias = Callable[[StudyBatch, Sequence[str]], Mapping[str, Feature]]


def cached_backward(
    batches: Sequence[StudyBatch],
    *,
    encode: Encode,
    across_keys: Sequence[str],
    across_loss: Callable[[Features, StudyBatch], Tensor],
    local_keys: Sequence[str] = (),
    local_loss: Callable[[Features, StudyBatch], Tensor] | None = None,
    leaf_dtype: torch.dtype | None = None,
) -> None:
    """Adds to every parameter's `.grad` the gradient of across_loss on the joined batch plus the sum of local_loss over the batches.

    batches: the micro-batches of the effective batch, on the device. encode(batch, keys): features, as `encoding.encode`.
    across_keys, across_loss: for the objectives with `across`, called once with features and batch of all studies; its
    gathers are the step's only ones. local_keys: further keys of the other objectives, local_loss: their sum for one
    micro-batch, given the features of both lists of keys. Both losses come divided by the counts of the whole step
    (`base.normalised`). leaf_dtype: kind of number in which leaves (and so their gradients) wait; None = as encoded, exact.

    Random numbers are drawn in the order: encoding of all micro-batches, across_loss, then per micro-batch what local_keys
    and local_loss need; pass 2 replays the first. Many processes: call it without DDP's reduction (`no_sync`) and reduce
    once afterwards, since parameters behind and before the leaves receive gradient in different passes.
    """
    states: list[_RandomState] = []
    kept: list[dict[str, tuple[Tensor, ...]]] = []
    with torch.no_grad():
        for batch in batches:
            states.append(_RandomState())
            features = encode(batch, across_keys)
            kept.append({key: tuple(x.detach().to(_waiting(x, leaf_dtype)) for x in _compared(features[key])) for key in across_keys})
            kinds = {key: type(features[key]) for key in across_keys}
            dtypes = {key: tuple(x.dtype for x in _compared(features[key])) for key in across_keys}
    leaves = {key: tuple(joined_rows([one[key][part] for one in kept]) for part in range(len(dtypes[key]))) for key in across_keys}
    widths = [{key: tuple(x.shape for x in one[key]) for key in across_keys} for one in kept]
    kept.clear()
    with torch.enable_grad():
        for tensors in leaves.values():
            for x in tensors:
                x.requires_grad_(x.is_floating_point())
        joined: dict[str, Any] = {
            key: _rebuilt(kinds[key], [x.to(dtype) for x, dtype in zip(leaves[key], dtypes[key], strict=True)]) for key in across_keys
        }
        across_loss(joined, joined_batch(batches, across_keys)).backward()
        del joined
        first = 0
        for batch, state, shapes in zip(batches, states, widths, strict=True):
            with state.replayed():
                features = dict(encode(batch, across_keys))
            outputs, gradients = [], []
            for key in across_keys:
                for x, leaf, shape in zip(_compared(features[key]), leaves[key], shapes[key], strict=True):
                    if x.requires_grad and leaf.grad is not None:
                        rows = (slice(first, first + shape[0]), *(slice(0, size) for size in shape[1:]))
                        outputs.append(x)
                        gradients.append(leaf.grad[rows].to(x.dtype))
            if local_loss is not None:
                features |= encode(batch, local_keys)
                outputs.append(local_loss(features, batch))
                gradients.append(torch.ones_like(outputs[-1]))
            if outputs:
                torch.autograd.backward(outputs, gradients)
            first += len(batch)
            del features, outputs, gradients


def joined_batch(batches: Sequence[StudyBatch], keys: Sequence[str]) -> StudyBatch:
    """What comparisons across studies read of several micro-batches: study, group, the layouts of `keys` and their extras; no voxels.

    An extra goes along with the key that its name ends in: "told.image.local_a" with "image.local_a".
    """
    texts = {key: joined_layout([batch.texts[key] for batch in batches]) for key in keys if key.startswith("text.")}
    names = [name for name in batches[0].extras if name.endswith(tuple(f".{key}" for key in keys))]
    extras = {name: joined_rows([batch.extras[name] for batch in batches]) for name in names}
    whole = StudyBatch(study=torch.cat([batch.study for batch in batches]), group=torch.cat([batch.group for batch in batches]))
    return replace(whole, texts=texts, extras=extras)


def _waiting(x: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Maps and token states may wait in half precision; what is small (the spacing) stays exact."""
    return dtype if dtype is not None and x.is_floating_point() and x.ndim > 2 else x.dtype


def _compared(feature: Feature) -> list[Tensor]:
    """The fields that objectives with `across` read (`base.Feature`)."""
    alone = _alone(type(feature))
    names = getattr(feature, "_fields", ())
    return [x for name, x in zip(names, feature, strict=True) if name not in alone]


def _rebuilt(kind: Any, values: Sequence[Tensor]) -> Any:
    """A feature of its compared fields; the others are None."""
    left = iter(values)
    return kind(*(None if name in _alone(kind) else next(left) for name in kind._fields))


def _alone(kind: Any) -> tuple[str, ...]:
    named: tuple[str, ...] = kind.alone() if hasattr(kind, "alone") else ()
    return named


class _RandomState:
    """State of torch's global generators, from which dropout draws, at the moment of construction."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        self.devices = [torch.cuda.current_device()] if on_cuda else []
        self.cuda = [torch.cuda.get_rng_state(device) for device in self.devices]

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draws again what was drawn after construction; behind the block the generators go on as if it had not been."""
        with torch.random.fork_rng(devices=self.devices):
            torch.set_rng_state(self.cpu)
            for device, state in zip(self.devices, self.cuda, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
