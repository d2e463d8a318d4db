"""The decoder: causal, equal with and without its cache, cancellable, and indifferent to padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from VelvetMedLib.errors import Cancelled, UsageError
from VelvetMedLib.models.decoder import CausalDecoder, DecoderConfig

EOS = 3


@pytest.fixture()
def decoder() -> CausalDecoder:
    torch.manual_seed(1)
    net = CausalDecoder(DecoderConfig(vocab_size=40, width=24, layers=2, heads=3, ffn=48, positions=24)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return net


def memory_of(batch: int, valid: int = 6) -> tuple[Tensor, Tensor]:
    mask = torch.zeros(batch, 6, dtype=torch.bool)
    mask[:, :valid] = True
    return torch.randn(batch, 6, 24), mask


def generate_without_cache(net: CausalDecoder, prefix: Tensor, memory: Tensor, mask: Tensor, max_new: int) -> tuple[list[int], list[float]]:
    """The slow twin: the whole sequence again for every token, one row."""
    ids, logprobs = prefix.clone(), []
    for _ in range(max_new):
        scores = net(ids, memory, mask)[:, -1].log_softmax(-1)
        best, choice = scores.max(-1)
        logprobs.append(float(best))
        ids = torch.cat([ids, choice[:, None]], dim=1)
        if int(choice) == EOS:
            break
    return ids[0, prefix.shape[1] :].tolist(), logprobs


def test_generation_with_the_cache_equals_generation_without_it(decoder: CausalDecoder) -> None:
    memory, mask = memory_of(1, valid=4)
    prefix = torch.tensor([[1, 7, 9]])
    out = decoder.generate(prefix, memory, mask, 12, EOS)
    with torch.no_grad():
        ids, logprobs = generate_without_cache(decoder, prefix, memory, mask, 12)
    assert out.ids[0].tolist() == ids
    torch.testing.assert_close(out.logprobs[0], torch.tensor(logprobs), atol=1e-5, rtol=1e-5)


def test_rows_of_unequal_prefixes_padded_on_the_left_equal_rows_alone(decoder: CausalDecoder) -> None:
    memory, mask = memory_of(2)
    long, short = torch.tensor([[1, 7, 9, 11]]), torch.tensor([[1, 12]])
    together = torch.cat([long, torch.cat([torch.zeros(1, 2, dtype=torch.long), short], dim=1)])
    real = torch.tensor([[True] * 4, [False] * 2 + [True] * 2])
    both = decoder.generate(together, memory, mask, 8, EOS, prefix_mask=real)
    for row, prefix in enumerate((long, short)):
        alone = decoder.generate(prefix, memory[row : row + 1], mask[row : row + 1], 8, EOS)
        n = alone.ids.shape[1]
        assert both.ids[row, :n].tolist() == alone.ids[0].tolist()
        assert (both.ids[row, n:] == EOS).all() and (both.logprobs[row, n:] == 0).all()
        torch.testing.assert_close(both.logprobs[row, :n], alone.logprobs[0], atol=1e-5, rtol=1e-5)


def test_a_position_never_sees_later_ids_nor_masked_memory(decoder: CausalDecoder) -> None:
    memory, mask = memory_of(1, valid=3)
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    other = ids.clone()
    other[:, 3:] = 20
    changed = memory.clone()
    changed[:, 3:] = 100.0
    with torch.no_grad():
        a, b = decoder(ids, memory, mask), decoder(other, changed, mask)
    torch.testing.assert_close(a[:, :3], b[:, :3])
    assert not torch.allclose(a[:, 3], b[:, 3])


def test_generation_reports_each_token_and_stops_when_cancelled(decoder: CausalDecoder) -> None:
    memory, mask = memory_of(1)
    seen: list[tuple[int, list[int]]] = []

    def cancel() -> None:
        if len(seen) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        decoder.generate(torch.tensor([[1]]), memory, mask, 10, -1, cancel=cancel, on_token=lambda step, ids: seen.append((step, ids)))
    assert [step for step, _ in seen] == [0, 1]


def test_forbidden_tokens_are_never_written(decoder: CausalDecoder) -> None:
    memory, mask = memory_of(1)
    free = decoder.generate(torch.tensor([[1]]), memory, mask, 5, -1).ids
    forbidden = sorted(set(free[0].tolist()))
    bound = decoder.generate(torch.tensor([[1]]), memory, mask, 5, -1, forbidden_ids=forbidden).ids
    assert not set(bound[0].tolist()) & set(forbidden)


def test_a_text_that_is_too_long_is_refused_and_generation_ends_at_the_last_position(decoder: CausalDecoder) -> None:
    memory, mask = memory_of(1)
    with pytest.raises(UsageError, match="at most 24"):
        decoder(torch.ones(1, 25, dtype=torch.long), memory, mask)
    with pytest.raises(UsageError, match="1 to 24"):
        decoder.generate(torch.ones(1, 0, dtype=torch.long), memory, mask, 4, EOS)
    assert decoder.generate(torch.ones(1, 20, dtype=torch.long), memory, mask, 50, -1).ids.shape == (1, 4)
    assert decoder.generate(torch.ones(1, 24, dtype=torch.long), memory, mask, 50, -1).ids.shape == (1, 0)


def test_settings_name_what_is_wrong() -> None:
    with pytest.raises(UsageError, match=r"DecoderConfig\.heads"):
        DecoderConfig(vocab_size=10, width=10, heads=4)
    with pytest.raises(UsageError, match="vocab_size"):
        DecoderConfig.from_dict({"width": 8})
