"""TriBERT: the attention table, the read-outs, equality with transformers' BERT, and its start from a checkpoint."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.text import ReportTokenizer, TextLayout
from VelvetMedLib.models.tribert import Layer, TriBert, TriBertConfig, attention_rule, load_bert_weights

REPORT = ["No effusion.", "Small nodule."]


def small(tokenizer: ReportTokenizer, **changes: Any) -> TriBert:
    torch.manual_seed(0)
    settings = {
        "vocab_size": tokenizer.vocab_size,
        "width": 12,
        "heads": 3,
        "ffn": 20,
        "text_layers": 2,
        "fusion_layers": 2,
        "positions": 64,
    }
    net = TriBert(TriBertConfig(**(settings | changes))).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.1)
        net.token_type.weight[0] = 0
    return net


def slow_rule(layout: TextLayout, sentence_ids: tuple[int, ...]) -> Tensor:
    """The rule as it is written down, one pair at a time, from the ids themselves."""
    batch, length = layout.ids.shape
    allow = torch.zeros(batch, length, length, dtype=torch.bool)
    for b in range(batch):
        for p in range(length):
            for q in range(length):
                if not layout.pad_mask[b, q]:
                    continue
                if layout.pad_mask[b, p] and int(layout.ids[b, p]) in sentence_ids:
                    i = sentence_ids.index(int(layout.ids[b, p])) + 1
                    allow[b, p, q] = q == 0 or int(layout.type_ids[b, q]) == i
                else:
                    allow[b, p, q] = True
    return allow


def test_the_worked_example_has_the_attention_table_of_the_specification(published_tokenizer: ReportTokenizer) -> None:
    layout = published_tokenizer.layout([REPORT, ["No effusion."] * 3], 512)
    table = attention_rule(layout.type_ids, layout.pad_mask)[0, 0, :, :11].int()
    everything = [1] * 10 + [0]
    assert table[1].tolist() == [1] * 5 + [0] * 6
    assert table[5].tolist() == [1] + [0] * 4 + [1] * 5 + [0]
    assert all(table[p].tolist() == everything for p in (0, 2, 3, 4, 6, 7, 8, 9))


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_the_attention_rule_equals_the_slow_one_for_any_number_of_sentences(tokenizer: ReportTokenizer, count: int) -> None:
    layout = tokenizer.layout([["small nodule."] * count, REPORT, ["no"]], 512)
    assert torch.equal(attention_rule(layout.type_ids, layout.pad_mask)[:, 0], slow_rule(layout, tokenizer.sentence_ids))


def test_a_sequence_that_fills_its_length_exactly_needs_no_padding(tokenizer: ReportTokenizer) -> None:
    layout = tokenizer.layout([["no " * 100, "no " * 100, "no " * 100, "no " * 100, "no " * 106]], 512)
    assert layout.pad_mask.shape == (1, 512) and layout.pad_mask.all()
    assert torch.equal(attention_rule(layout.type_ids, layout.pad_mask)[:, 0], slow_rule(layout, tokenizer.sentence_ids))


@pytest.mark.parametrize("word_merge", ["sum", "mean"])
def test_read_outs_equal_a_slow_loop_over_entries(tokenizer: ReportTokenizer, word_merge: str) -> None:
    net = small(tokenizer, word_merge=word_merge)
    reports = [REPORT, [], ["Nodules in the left lung.", "No effusion.", "Small."]]
    layout = tokenizer.layout(reports, 64)
    states = torch.randn(3, layout.ids.shape[1], 12)
    read = net.read_out(states, layout)
    for b, report in enumerate(reports):
        place, words, sentences = 1, [], []
        for sentence in report:
            entries = [states[b, place]]
            place += 1
            grouped: list[list[Tensor]] = []
            for piece in tokenizer.encode(sentence):
                text = tokenizer._tokenizer.id_to_token(piece)
                if text.startswith("##"):
                    grouped[-1].append(states[b, place])
                else:
                    grouped.append([states[b, place]])
                place += 1
            merged = [sum(g) / (len(g) if word_merge == "mean" else 1) for g in grouped]
            words += merged
            sentences.append(torch.stack(entries + merged).mean(0))
        torch.testing.assert_close(read.report[b], states[b, 0])
        assert int(read.sentence_mask[b].sum()) == len(sentences) and int(read.word_mask[b].sum()) == len(words)
        for n, sentence_vector in enumerate(sentences):
            torch.testing.assert_close(read.sentences[b, n], sentence_vector)
        for n, word in enumerate(words):
            torch.testing.assert_close(read.words[b, n], word)
        assert (read.words[b, len(words) :] == 0).all() and (read.sentences[b, len(sentences) :] == 0).all()


def test_the_worked_example_reads_out_one_report_two_sentences_and_six_words(published_tokenizer: ReportTokenizer) -> None:
    layout = published_tokenizer.layout([REPORT], 512)
    net = TriBert(TriBertConfig(vocab_size=8, width=4, heads=1, ffn=4, text_layers=1))
    read = net.read_out(torch.randn(1, 10, 4), layout)
    assert read.report.shape == (1, 4) and read.sentences.shape == (1, 2, 4) and read.words.shape == (1, 6, 4)


def test_padding_changes_no_state(tokenizer: ReportTokenizer) -> None:
    net = small(tokenizer)
    alone, padded = tokenizer.layout([REPORT], 64), tokenizer.layout([REPORT, ["no " * 30]], 64)
    visual = torch.randn(2, 5, 12)
    with torch.no_grad():
        a = net.text(alone.ids, alone.type_ids, alone.pad_mask)
        b = net.text(padded.ids, padded.type_ids, padded.pad_mask)
        torch.testing.assert_close(a[0], b[0, :10])
        fused_a = net.fuse(a, alone.type_ids, alone.pad_mask, visual[:1])
        mask = torch.ones(2, 7, dtype=torch.bool)
        mask[:, 5:] = False
        wide = torch.cat([visual, torch.full((2, 2, 12), 50.0)], dim=1)
        fused_b = net.fuse(b, padded.type_ids, padded.pad_mask, wide, mask)
    torch.testing.assert_close(fused_a[0], fused_b[0, :10])


def slow_layer(layer: Layer, x: Tensor, mask: Tensor, visual: Tensor) -> Tensor:
    """Plain matrix products, one head at a time, float64, no batch."""

    def attend(module: Any, queries: Tensor, memory: Tensor, allow: Tensor) -> Tensor:
        heads, width = module.heads, queries.shape[-1] // module.heads
        parts = []
        for h in range(heads):
            s = slice(h * width, (h + 1) * width)
            scores = module.query(queries)[:, s] @ module.key(memory)[:, s].T / math.sqrt(width)
            parts.append(scores.masked_fill(~allow, -torch.inf).softmax(-1) @ module.value(memory)[:, s])
        return module.out(torch.cat(parts, dim=-1))

    def norm(module: Any, y: Tensor) -> Tensor:
        centred = y - y.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + module.eps).sqrt() * module.weight + module.bias

    x = norm(layer.attention_norm, x + attend(layer.attention, x, x, mask))
    if layer.cross is not None:
        x = norm(layer.cross_norm, x + attend(layer.cross, x, visual, torch.ones(len(x), len(visual), dtype=torch.bool)))
    inner = layer.ffn_in(x)
    return norm(layer.ffn_norm, x + layer.ffn_out(0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))))


def test_text_and_fusion_layers_equal_plain_matrix_products(tokenizer: ReportTokenizer) -> None:
    net = small(tokenizer).double()
    layout = tokenizer.layout([REPORT], 64)
    visual = torch.randn(1, 5, 12, dtype=torch.float64)
    mask = slow_rule(layout, tokenizer.sentence_ids)[0]
    with torch.no_grad():
        states = net.text(layout.ids, layout.type_ids, layout.pad_mask)
        x = functional.layer_norm(
            net.token(layout.ids[0]) + net.position.weight[:10] + net.token_type(layout.type_ids[0]),
            [12],
            net.norm.weight,
            net.norm.bias,
            1e-12,
        )
        for layer in net.text_layers:
            x = slow_layer(layer, x, mask, visual[0])  # type: ignore[arg-type]
        torch.testing.assert_close(states[0], x)
        fused = net.fuse(states, layout.type_ids, layout.pad_mask, visual)
        for layer in net.fusion_layers:
            x = slow_layer(layer, x, mask, visual[0])  # type: ignore[arg-type]
        torch.testing.assert_close(fused[0], x)


def hf_bert(width: int, depth: int, heads: int, rows: int) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    torch.manual_seed(5)
    config = transformers.BertConfig(
        vocab_size=rows, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=2 * width,
        max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for p in bert.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return bert


@pytest.mark.parametrize(("width", "depth", "heads"), [(384, 6, 12), (36, 2, 6)])
def test_a_checkpoint_of_any_size_loads_and_equals_transformers_bert_where_the_mask_is_plain(
    published_tokenizer: ReportTokenizer, width: int, depth: int, heads: int
) -> None:
    t = published_tokenizer
    bert = hf_bert(width, depth, heads, rows=30_522)
    config = TriBertConfig.from_bert(bert.config.to_dict(), vocab_size=t.vocab_size, fusion_layers=2)
    ours = TriBert(config).eval()
    before = ours.fusion_layers[0].cross.query.weight.clone()  # type: ignore[union-attr]
    load_bert_weights(ours, {f"bert.{k}": v for k, v in bert.state_dict().items()}, cls_id=2, sentence_ids=t.sentence_ids)
    cls_row = bert.get_input_embeddings().weight[2]
    assert torch.equal(ours.token.weight[30_522:30_572], cls_row.expand(50, -1))
    assert (ours.token_type.weight[0] == 0).all() and torch.equal(
        ours.token_type.weight[7], bert.embeddings.token_type_embeddings.weight[0]
    )
    assert torch.equal(ours.fusion_layers[0].cross.query.weight, before)  # type: ignore[union-attr]
    # One sentence: its [SEN_1] row sees everything, so the rule is BERT's own. For BERT, [SEN_1] is one more [CLS].
    layout = t.layout([["Small nodule in the left lung."], ["No effusion."]], 64)
    theirs = layout.ids.masked_fill(layout.ids == t.sentence_ids[0], 2)
    with torch.no_grad():
        a = ours.text(layout.ids, layout.type_ids, layout.pad_mask)
        b = bert(input_ids=theirs, attention_mask=layout.pad_mask.long()).last_hidden_state
        torch.testing.assert_close(a[layout.pad_mask], b[layout.pad_mask], atol=2e-4, rtol=1e-3)
        assert torch.isfinite(ours.fuse(a, layout.type_ids, layout.pad_mask, torch.randn(2, 3, width))).all()


def test_fusion_layers_can_start_as_copies_of_the_last_text_layers_and_old_names_are_known(tokenizer: ReportTokenizer) -> None:
    bert = hf_bert(12, 3, 3, rows=tokenizer.vocab_size)
    net = small(tokenizer, text_layers=3, fusion_layers=2, ffn=24)
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in bert.state_dict().items()
    }
    load_bert_weights(net, old, cls_id=tokenizer.cls_id, sentence_ids=tokenizer.sentence_ids, fusion_init="copy_last")
    for fusion, text in ((0, 1), (1, 2)):
        for name, p in net.text_layers[text].named_parameters():
            assert torch.equal(p, net.fusion_layers[fusion].get_parameter(name))


def test_a_checkpoint_that_does_not_fit_is_refused_by_the_tensors_name_and_nothing_is_loaded(tokenizer: ReportTokenizer) -> None:
    tensors = dict(hf_bert(12, 2, 3, rows=tokenizer.vocab_size).state_dict())
    net = small(tokenizer, ffn=24)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    without = {k: v for k, v in tensors.items() if k != "encoder.layer.1.output.dense.bias"}
    with pytest.raises(UsageError, match=r"encoder\.layer\.1\.output\.dense\.bias"):
        load_bert_weights(net, without, cls_id=2, sentence_ids=tokenizer.sentence_ids)
    with pytest.raises(UsageError, match=r"intermediate\.dense\.weight"):
        load_bert_weights(small(tokenizer), tensors, cls_id=2, sentence_ids=tokenizer.sentence_ids)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_type_of_padding_stays_zero_and_the_start_is_berts(tokenizer: ReportTokenizer) -> None:
    net = TriBert(TriBertConfig(vocab_size=tokenizer.vocab_size, width=768, heads=12))
    assert (net.token_type.weight[0] == 0).all() and 0.015 < float(net.token.weight.detach().std()) < 0.025
    layout = tokenizer.layout([REPORT, ["no"]], 32)
    net.text(layout.ids, layout.type_ids, layout.pad_mask).sum().backward()
    assert net.token_type.weight.grad is not None and (net.token_type.weight.grad[0] == 0).all()


@pytest.mark.parametrize("width", [48, 192])
def test_a_narrow_net_starts_with_reports_as_far_apart_as_a_wide_one(width: int) -> None:
    """Each layer adds W x to x: with the same deviation at every width a narrow W adds next to nothing, and all [CLS] are one."""
    ids = torch.randint(5, 200, (2, 20), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 2

    def apart(width: int, seed: int) -> float:
        torch.manual_seed(seed)
        net = TriBert(TriBertConfig(vocab_size=200, width=width, heads=4, ffn=4 * width, text_layers=3, fusion_layers=0)).eval()
        with torch.no_grad():
            states = net.text(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool))[:, 0]
        return 1 - float(torch.nn.functional.cosine_similarity(states[0], states[1], dim=0))

    wide, narrow = (sum(apart(w, seed) for seed in range(4)) / 4 for w in (768, width))
    assert 0.5 * wide < narrow < 2 * wide, (narrow, wide)


def test_the_paper_setting_has_the_counted_size() -> None:
    with torch.device("meta"):
        net = TriBert(TriBertConfig.paper())
    count = sum(p.numel() for p in net.parameters())
    assert abs(count - 165.7e6) < 0.2e6


def test_a_report_longer_than_the_positions_is_refused(tokenizer: ReportTokenizer) -> None:
    layout = tokenizer.layout([["no " * 90]], 128)
    with pytest.raises(UsageError, match="at most 64"):
        small(tokenizer).text(layout.ids, layout.type_ids, layout.pad_mask)


def test_recomputed_layers_draw_the_same_dropout_and_give_the_same_gradients(tokenizer: ReportTokenizer) -> None:
    net = small(tokenizer, dropout=0.3).double().train()
    layout = tokenizer.layout([REPORT, ["No effusion."]], 64)
    visual = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    seen = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])

    def losses_and_gradients(*, recompute: bool, seed: int = 3) -> list[Tensor]:
        net.recompute_activations = recompute
        net.zero_grad()
        visual.grad = None
        torch.manual_seed(seed)
        states = net.text(layout.ids, layout.type_ids, layout.pad_mask)
        # Two losses on one encoding, as in training: the text layers are run again once, for both.
        fused = net.fuse(states, layout.type_ids, layout.pad_mask, visual, seen)
        loss = fused.square().sum() + net.read_out(states, layout).sentences.cos().sum()
        drawn_after = torch.rand(3, dtype=torch.float64)
        loss.backward()
        return [loss.detach(), drawn_after, visual.grad, *(p.grad for p in net.parameters())]

    kept = losses_and_gradients(recompute=False)
    again = losses_and_gradients(recompute=True)
    for a, b in zip(kept, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(kept[0], losses_and_gradients(recompute=True, seed=4)[0]), "dropout is on"


def test_recomputed_layers_keep_little_for_backward_and_without_gradients_nothing_is_recomputed(tokenizer: ReportTokenizer) -> None:
    net = small(tokenizer, text_layers=6).train()
    layout = tokenizer.layout([REPORT] * 4, 64)
    parameters = {p.data_ptr() for p in net.parameters()}

    def kept_numbers() -> int:
        found: dict[int, int] = {}

        def keep(x: Tensor) -> Tensor:
            found[x.data_ptr()] = x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            net.text(layout.ids, layout.type_ids, layout.pad_mask)
        return sum(n for place, n in found.items() if place not in parameters)

    plain = kept_numbers()
    net.recompute_activations = True
    # A layer keeps its input; what it computes inside (projections, attention, twenty hidden channels) is run again.
    assert kept_numbers() < plain / 3
    calls = []
    net.text_layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        net.text(layout.ids, layout.type_ids, layout.pad_mask)
    assert len(calls) == 1
    net.text(layout.ids, layout.type_ids, layout.pad_mask).sum().backward()
    assert len(calls) == 3
