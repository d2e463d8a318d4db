"""COLIPRI's model: names and counts of the released weights, both halves on a tiny model, windows, padding, and the tokenizer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from VelvetMedLib.errors import BundleError, UsageError
from VelvetMedLib.models.bert import Bert, BertConfig, BertTokenizer, tokenizer_from_vocabulary
from VelvetMedLib.models.colipri import ColipriConfig, ColipriModel
from VelvetMedLib.models.primus import PrimusConfig

VOCABULARY = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "lung", "nod", "##ule", "##s", "present", ".", "effusion"])


def small(**changes: object) -> ColipriModel:
    torch.manual_seed(0)
    settings = {
        "image": PrimusConfig(width=24, depth=2, heads=2, ffn=32, patch=4, drop_path=0.0),
        "text": BertConfig(vocab_size=13, width=16, depth=2, heads=2, ffn=24, positions=12),
        "projection_dim": 16,
        "pool_heads": 4,
    }
    model = ColipriModel(ColipriConfig(**(settings | changes))).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name and "norm" not in name:
                parameter.normal_(std=0.3)
    return model


def test_both_halves_have_the_released_number_of_tensors_and_numbers() -> None:
    with torch.device("meta"):
        state = ColipriModel(ColipriConfig.paper()).state_dict()
    text = {n: t for n, t in state.items() if n.startswith("text_encoder.")}
    image = {n: t for n, t in state.items() if n not in text}
    assert (len(image), sum(t.numel() for t in image.values())) == (380, 147_113_089)
    assert (len(text), sum(t.numel() for t in text.values())) == (201, 111_254_016)
    assert tuple(state["image_encoder.projector.weight"].shape) == (768, 864, 1, 1, 1)
    assert tuple(state["text_encoder.backbone.embeddings.word_embeddings.weight"].shape) == (30_522, 768)
    last = "text_encoder.backbone.encoder.layer.11"
    assert tuple(state[f"{last}.intermediate.dense.weight"].shape) == (3072, 768)
    assert {f"{last}.attention.self.query.bias", f"{last}.attention.output.LayerNorm.weight", f"{last}.output.dense.weight"} <= set(text)


def test_the_temperature_can_hold_a_fraction() -> None:
    model = small()
    assert model.softmax_temperature.dtype == torch.float32
    model.load_state_dict(model.state_dict() | {"softmax_temperature": torch.tensor(0.07)})
    assert abs(float(model.softmax_temperature) - 0.07) < 1e-6


def test_pooled_and_dense_vectors_are_unit_vectors_in_one_space_and_of_one_grid() -> None:
    model, x = small(), torch.randn(2, 1, 8, 12, 16)
    with torch.no_grad():
        features = model.features(x)
        pooled, dense = model.pooled(features), model.dense(features)
    assert features.shape == (2, 24, 2, 3, 4) and pooled.shape == (2, 16) and dense.shape == (2, 16, 2, 3, 4)
    torch.testing.assert_close(pooled.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(dense.norm(dim=1), torch.ones(2, 2, 3, 4))


def test_the_projector_is_the_convolution_whose_names_it_has() -> None:
    model, features = small(), torch.randn(2, 24, 2, 3, 4)
    with torch.no_grad():
        wanted = model.image_encoder.projector(features).flatten(2).transpose(1, 2)
        torch.testing.assert_close(model.tokens(features), wanted)


def test_windows_are_encoded_one_by_one_and_stand_in_their_places() -> None:
    model, x = small(), torch.randn(1, 1, 16, 8, 8)
    with torch.no_grad():
        joined = model.features_by_windows(x, 8)
        torch.testing.assert_close(joined[:, :, :2], model.features(x[:, :, :8]))
        torch.testing.assert_close(joined[:, :, 2:], model.features(x[:, :, 8:]))
        assert not torch.allclose(joined, model.features(x))
    with pytest.raises(UsageError, match="multiples of 8"):
        model.features_by_windows(torch.randn(1, 1, 12, 8, 8), 8)


def slow_bert(bert: Bert, ids: list[int]) -> Tensor:
    """One unpadded text, one position, one head, one key at a time, in float64."""

    def norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
        centred = x - x.mean()
        return centred / (centred.square().mean() + layer.eps).sqrt() * layer.weight + layer.bias

    table = bert.embeddings
    rows = (table.word_embeddings.weight[i] + table.position_embeddings.weight[n] for n, i in enumerate(ids))
    states = [norm(row + table.token_type_embeddings.weight[0], table.LayerNorm) for row in rows]
    for layer in bert.encoder.layer:
        attention, size = layer.attention, len(states[0]) // layer.attention.heads
        q, k, v = ([part(s) for s in states] for part in (attention.self.query, attention.self.key, attention.self.value))
        after = []
        for i, state in enumerate(states):
            heads = []
            for h in range(attention.heads):
                part = slice(h * size, (h + 1) * size)
                weights = torch.stack([q[i][part] @ k[n][part] / math.sqrt(size) for n in range(len(states))]).exp()
                heads.append(sum(w * v[n][part] for n, w in enumerate(weights / weights.sum())))
            after.append(norm(attention.output.dense(torch.cat(heads)) + state, attention.output.LayerNorm))
        states = []
        for state in after:
            inner = layer.intermediate.dense(state)
            inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
            states.append(norm(layer.output.dense(inner) + state, layer.output.LayerNorm))
    return torch.stack(states)


def test_the_text_encoder_equals_a_computation_of_one_position_and_one_key_at_a_time() -> None:
    bert = small().double().text_encoder.backbone
    ids = torch.tensor([[2, 5, 6, 7, 3], [2, 12, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    with torch.no_grad():
        states = bert(ids, mask)
        torch.testing.assert_close(states[0], slow_bert(bert, [2, 5, 6, 7, 3]), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(states[1, :3], slow_bert(bert, [2, 12, 3]), rtol=1e-9, atol=1e-9)


def test_masked_text_pooling_does_not_see_padding_and_unmasked_pooling_does() -> None:
    tokenizer = BertTokenizer(tokenizer_from_vocabulary(VOCABULARY), positions=12)
    short, whole = (tokenizer.batch(["no lung nodules"], whole=w) for w in (False, True))
    assert short[0].shape == (1, 7) and whole[0].shape == (1, 12)
    with torch.no_grad():
        masked, unmasked = small(), small(text_pool_mask=False)
        torch.testing.assert_close(masked.embed_text(*short), masked.embed_text(*whole))
        assert not torch.allclose(unmasked.embed_text(*short), unmasked.embed_text(*whole), atol=1e-3)


def test_the_image_half_alone_has_no_text_tensors_and_says_so_when_asked_for_text() -> None:
    model = small(text=None)
    assert not any(name.startswith("text_encoder") for name in model.state_dict())
    with pytest.raises(UsageError, match="image half"):
        model.embed_text(torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool))


def test_a_vocabulary_becomes_a_lower_casing_tokenizer_that_cuts_long_texts_and_keeps_the_end_mark() -> None:
    tokenizer = BertTokenizer(tokenizer_from_vocabulary(VOCABULARY), positions=6)
    ids, mask = tokenizer.batch(["No LUNG nodules present.", "effusion"])
    assert ids.tolist() == [[2, 5, 6, 7, 8, 3], [2, 12, 3, 0, 0, 0]]
    assert mask.sum(dim=1).tolist() == [6, 3] and tokenizer.vocab_size == 13


@pytest.mark.parametrize("text", ["[PAD]\n[UNK]\n[CLS]\nno", "[PAD]\n[UNK]\n[CLS]\n[SEP]\nno\nno"])
def test_a_vocabulary_that_cannot_be_right_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match="tokenizer"):
        tokenizer_from_vocabulary(text)
