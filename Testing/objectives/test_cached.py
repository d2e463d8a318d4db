"""Cached gradients: micro-batches give the gradients of the large batch they make up, dropout included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from Testing.objectives import toys
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.objectives.base import Features, StudyBatch, joined_rows, normalised
from VelvetMedLib.objectives.cached import cached_backward, joined_batch
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.encoding import encode, needed_keys

SPLITS = [[0, 1, 2], [3, 4], [5], [6, 7]]
"""Unequal micro-batches; texts are of different lengths, so leaves are padded."""


class Step:
    """One step of all objectives over micro-batches: the two losses as the engine would hand them over."""

    def __init__(self, model: VelvetModel, objectives: nn.ModuleDict, names: Sequence[str]) -> None:
        self.model, self.ctx = model, Context(seed=1, step=2)
        chosen = [objectives[name] for name in names]
        self.across = [o for o in chosen if o.across]
        self.local = [o for o in chosen if not o.across]
        self.across_keys = needed_keys(self.across)
        self.local_keys = tuple(key for key in needed_keys(chosen) if key not in self.across_keys)
        self.batches = [toys.batch(items) for items in SPLITS]
        whole = joined_batch(self.batches, self.across_keys)
        self.totals = {key: n for o in self.across for key, n in o.counts(whole, self.ctx).items()}
        for o in self.local:
            for batch in self.batches:
                for key, n in o.counts(batch, self.ctx).items():
                    self.totals[key] = self.totals.get(key, 0.0) + n
        self.values: list[float] = []

    def encode(self, batch: StudyBatch, keys: Sequence[str]) -> Features:
        return encode(self.model, batch, keys)

    def loss(self, objectives: list[nn.Module], features: Features, batch: StudyBatch) -> Tensor:
        terms = {k: t for o in objectives for k, t in o(self.model, features, batch, self.ctx).losses.items()}
        total = normalised(terms, self.totals, world_size=1)
        self.values.append(float(total.detach()))
        return total

    def cached(self, dtype: torch.dtype | None = None) -> None:
        cached_backward(
            self.batches,
            encode=self.encode,
            across_keys=self.across_keys,
            across_loss=lambda f, b: self.loss(self.across, f, b),
            local_keys=self.local_keys,
            local_loss=(lambda f, b: self.loss(self.local, f, b)) if self.local else None,
            leaf_dtype=dtype,
        )

    def plain(self) -> None:
        """The same step with every graph kept: one batch as large as all, encoded piece by piece so that dropout draws alike."""
        kept = [dict(self.encode(batch, self.across_keys)) for batch in self.batches]
        joined = {
            key: type(kept[0][key])(*(joined_rows(parts) for parts in zip(*(one[key] for one in kept), strict=True)))
            for key in self.across_keys
        }
        total = self.loss(self.across, joined, joined_batch(self.batches, self.across_keys))
        for batch, features in zip(self.batches, kept, strict=True):
            if self.local:
                total = total + self.loss(self.local, features | dict(self.encode(batch, self.local_keys)), batch)
        total.backward()


def gradients(names: Sequence[str], how: str, *, dropout: float, dtype: torch.dtype | None = None) -> tuple[list[float], dict[str, Tensor]]:
    model, objectives = toys.model(dropout=dropout), toys.objectives()
    step = Step(model, objectives, names)
    torch.manual_seed(7)
    step.plain() if how == "plain" else step.cached(dtype)
    drawn = float(torch.rand(()))  # both ways leave the generator in the same place
    everything = {**dict(model.named_parameters()), **{f"objective.{k}": p for k, p in objectives.named_parameters()}}
    return [*step.values, drawn], {name: p.grad for name, p in everything.items() if p.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize(
    "names", [["report"], ["word", "view"], list(toys.objectives())], ids=["report", "cells and views", "all objectives"]
)  # fmt: skip
def test_cached_gradients_are_those_of_the_plain_large_batch(names: list[str], dropout: float) -> None:
    plain_values, plain = gradients(names, "plain", dropout=dropout)
    values, cached = gradients(names, "cached", dropout=dropout)
    assert values == pytest.approx(plain_values, rel=1e-12) and cached.keys() == plain.keys()
    for name, grad in plain.items():
        assert torch.allclose(cached[name], grad, rtol=1e-9, atol=1e-12), name


def test_dropout_is_on_in_that_comparison_so_that_replaying_matters() -> None:
    _, a = gradients(["report"], "cached", dropout=0.2)
    _, b = gradients(["report"], "cached", dropout=0.0)
    assert any(not torch.allclose(a[name], b[name], rtol=1e-3) for name in a)


def test_cached_gradients_equal_one_encoding_of_the_whole_batch_without_dropout() -> None:
    names = list(toys.objectives())
    _, cached = gradients(names, "cached", dropout=0.0)
    model, objectives = toys.model(), toys.objectives()
    batch, ctx = toys.batch(), Context(seed=1, step=2)
    features = encode(model, batch, needed_keys(objectives.values()))
    terms = {k: t for o in objectives.values() for k, t in o(model, features, batch, ctx).losses.items()}
    normalised(terms, {k: t.count for k, t in terms.items()}, world_size=1).backward()
    for name, p in model.named_parameters():
        assert (p.grad is None) == (name not in cached)
        assert p.grad is None or torch.allclose(cached[name], p.grad, rtol=1e-8, atol=1e-11), name


def test_leaves_in_half_precision_stay_close_and_the_spacing_stays_exact() -> None:
    names = ["report", "sentence", "match"]
    _, exact = gradients(names, "cached", dropout=0.0)
    _, coarse = gradients(names, "cached", dropout=0.0, dtype=torch.bfloat16)
    whole = torch.cat([g.flatten() for g in exact.values()])
    assert float((torch.cat([g.flatten() for g in coarse.values()]) - whole).norm() / whole.norm()) < 0.03
    spacing = "spacing_token.mlp.0.weight"
    assert spacing in exact


def test_under_bf16_autocast_cached_gradients_point_where_those_in_full_precision_do() -> None:
    names = ["report", "word", "match", "mm", "view"]
    found = []
    for half in (True, False):
        model, objectives = toys.model().float(), toys.objectives().float()
        step = Step(model, objectives, names)
        step.batches = [replace(b, images={k: v.float() for k, v in b.images.items()}) for b in step.batches]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            step.cached(torch.bfloat16 if half else None)
        found.append(torch.cat([p.grad.flatten() for p in [*model.parameters(), *objectives.parameters()] if p.grad is not None]))
    assert found[0].dtype == torch.float32
    assert float(torch.nn.functional.cosine_similarity(found[0], found[1], dim=0)) > 0.98


def test_at_most_one_micro_batch_is_encoded_with_a_graph_at_a_time() -> None:
    step = Step(toys.model(), toys.objectives(), ["report", "sentence", "mm"])
    seen: list[tuple[int, bool]] = []
    whole = step.encode

    def watched(batch: StudyBatch, keys: Sequence[str]) -> Features:
        seen.append((len(batch), torch.is_grad_enabled()))
        return whole(batch, keys)

    step.encode = watched  # type: ignore[method-assign]
    step.cached()
    sizes = [len(items) for items in SPLITS]
    assert [n for n, graph in seen if not graph] == sizes
    assert [n for n, graph in seen if graph] == [n for n in sizes for _ in range(2)]  # what is compared, then the masked text
