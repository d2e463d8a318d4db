"""Keyed noise: even, independent of everything but its key; and gathers of one process alone."""

from __future__ import annotations

import torch

from VelvetMedLib.objectives.context import Context


def uniform(
    purpose: str = "p", *, seed: int = 0, step: int = 0, left: list[int] | None = None, right: list[int] | None = None
) -> torch.Tensor:
    a, b = torch.tensor(left or [1]), torch.tensor(right or [2])
    return Context(seed=seed, step=step).uniform(purpose, a[:, None], b[None, :])


def test_every_part_of_the_key_changes_the_noise_and_order_of_the_pair_counts() -> None:
    values = [
        uniform(), uniform("q"), uniform(seed=1), uniform(step=1), uniform(left=[2], right=[1]), uniform(left=[3]), uniform(right=[3]),
    ]  # fmt: skip
    assert len({float(v) for v in values}) == len(values) and torch.equal(uniform(), uniform())


def test_noise_of_a_pair_does_not_depend_on_the_other_pairs_the_rank_or_the_number_of_processes() -> None:
    ids = torch.randint(-(2**62), 2**62, (40,))
    whole = Context(seed=3, step=4).uniform("x", ids[:, None], ids[None, :])
    order = torch.randperm(40)
    part = Context(seed=3, step=4, rank=1, world_size=4).uniform("x", ids[order][7:9, None], ids[order][None, :])
    assert torch.equal(part, whole[order][7:9][:, order])


def test_noise_is_even_inside_zero_and_one_and_uncorrelated_along_rows_and_columns() -> None:
    near = torch.arange(400)  # neighbouring ids, the hardest case for a weak hash
    u = Context(seed=0).uniform("x", near[:, None], near[None, :])
    assert float(u.min()) > 0 and float(u.max()) < 1
    counts = torch.histc(u, 20, 0, 1)
    assert float(((counts - 8000) ** 2 / 8000).sum()) < 45  # chi-square with 19 degrees, far tail
    z = (u - 0.5) * 12**0.5
    assert all(abs(float(c)) < 4 / 400 for c in ((z[1:] * z[:-1]).mean(), (z[:, 1:] * z[:, :-1]).mean(), (z * z.T).triu(1).mean() * 2))


def test_one_process_gathers_itself_with_gradient_and_detached_without() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    ctx = Context()
    assert ctx.gather(x) is x and not ctx.gather_no_grad(x).requires_grad and ctx.first_row(3) == 0
