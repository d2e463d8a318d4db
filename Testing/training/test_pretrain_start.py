"""A pre-training that begins with converted published weights: what is taken over, what is refused, what a resumed run does."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pretrain
import pytest
import torch
from convert_weights import convert_bert, convert_swin
from converted import Converted, read_converted
from pretraining import run as running
from pretraining.start import read_start
from safetensors.torch import save_file
from torch import Tensor

from VelvetMedLib.bundle import load_bundle
from VelvetMedLib.engine.checkpoints import Checkpoints
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.errors import TrainingError, UsageError
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.recipes.overrides import overridden
from VelvetMedLib.recipes.velvet import micro

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 80}
"""The text encoder of the micro preset, as a BERT's config.json says it."""
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "lung", "nodule", "no", *LETTERS, *(f"##{c}" for c in LETTERS)]
STILL = ["--set", "optimiser.learning_rate=1e-12", "--set", "optimiser.last_rate=0"]
"""So that after the run the weights are those that it began with."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_bert(folder: Path, *, seed: int = 0, **changes: int) -> Path:
    """A BERT checkpoint of random numbers, converted."""
    sizes = SMALL | {"vocab_size": len(WORDS)} | changes
    width, ffn = sizes["hidden_size"], sizes["intermediate_size"]
    torch.manual_seed(seed)
    tensors = {
        "embeddings.word_embeddings.weight": torch.randn(len(WORDS), width),
        "embeddings.position_embeddings.weight": torch.randn(sizes["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": torch.randn(2, width),
        "embeddings.LayerNorm.weight": torch.ones(width),
        "embeddings.LayerNorm.bias": torch.zeros(width),
    }
    for n in range(sizes["num_hidden_layers"]):
        front = f"encoder.layer.{n}."
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            tensors |= {f"{front}{name}.weight": torch.randn(width, width) * 0.1, f"{front}{name}.bias": torch.randn(width) * 0.1}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            tensors |= {f"{front}{name}.weight": torch.ones(width), f"{front}{name}.bias": torch.zeros(width)}
        tensors |= {f"{front}intermediate.dense.weight": torch.randn(ffn, width) * 0.1, f"{front}intermediate.dense.bias": torch.zeros(ffn)}
        tensors |= {f"{front}output.dense.weight": torch.randn(width, ffn) * 0.1, f"{front}output.dense.bias": torch.zeros(width)}
    source = folder / "source"
    source.mkdir(parents=True)
    save_file(tensors, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    (source / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    convert_bert(source, folder / "converted", stated={"name": "small", "licence": "none"})
    return folder / "converted"


def monai_swin(folder: Path, *, legacy_merging: bool = False, **changes: Any) -> Path:
    """MONAI's own network in the micro preset's size, in the layout of its self-supervised checkpoints, converted."""
    pytest.importorskip("einops", reason="MONAI needs it for its Swin")
    swin_unetr = pytest.importorskip("monai.networks.nets.swin_unetr", reason="MONAI wrote these weights")
    torch.manual_seed(2)
    sizes = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)} | changes
    net = swin_unetr.SwinTransformer(in_chans=1, window_size=(2,) * 3, patch_size=(2,) * 3, downsample="merging", **sizes)
    state = {f"module.{name}".replace(".mlp.linear", ".mlp.fc"): value for name, value in net.state_dict().items()}
    folder.mkdir(parents=True)
    torch.save({"epoch": 1, "state_dict": state | {"module.rotation_head.weight": torch.zeros(4, 128)}}, folder / "swin.pt")
    stated = {"name": "monai"}
    convert_swin(folder / "swin.pt", folder / "converted", legacy_merging=legacy_merging, legacy_relative_index=True, stated=stated)
    return folder / "converted"


def line(studies: Path, run: Path, *more: str, steps: int = 1) -> list[str]:
    return [
        "velvet", "--preset", "micro", "--manifest", str(studies / "studies.jsonl"), "--run", str(run), "--steps", str(steps),
        "--store", str(studies / "store"), "--seed", "3", "--device", "cpu", *more,
    ]  # fmt: skip


def weights(run: Path) -> dict[str, Tensor]:
    found = Checkpoints(run).load()
    assert found is not None
    return found.parts["weights"]


def assert_taken_over(held: dict[str, Tensor], text: Converted, depth: int) -> None:
    """The BERT's numbers where they belong, and [SEN_i] begins as [CLS]."""
    theirs = text.tensors
    for n in range(depth):
        for ours, name in (("attention.query", "attention.self.query"), ("ffn_out", "output.dense"), ("ffn_norm", "output.LayerNorm")):
            ours_name = f"model.tribert.text_layers.{n}.{ours}.weight"
            torch.testing.assert_close(held[ours_name], theirs[f"encoder.layer.{n}.{name}.weight"], atol=1e-7, rtol=0)
    words = theirs["embeddings.word_embeddings.weight"]
    torch.testing.assert_close(held["model.tribert.token.weight"][: len(words)], words, atol=1e-7, rtol=0)
    tokenizer = ReportTokenizer(text.tokenizer_json)
    for sentence in tokenizer.sentence_ids:
        torch.testing.assert_close(held["model.tribert.token.weight"][sentence], words[tokenizer.cls_id], atol=1e-7, rtol=0)


def test_a_run_begins_with_minilm_and_a_monai_swin_and_its_bundle_reads_text_with_the_berts_own_tokenizer(
    studies_folder: Path, tmp_path: Path, minilm_wheel: Path
) -> None:
    convert_bert(minilm_wheel, tmp_path / "bert", stated={"name": "all-MiniLM-L6-v2", "licence": "Apache-2.0"})
    vision = monai_swin(tmp_path / "swin")
    words = line(
        studies_folder, tmp_path / "run", "--text-from", str(tmp_path / "bert"), "--vision-from", str(vision), *STILL,
        "--set", "text_size=MLt", "--set", "vision_size=micro-monai", "--set", "mm=false", "--set", "txt=false",
    )  # fmt: skip
    assert pretrain.main(words) == 0
    text, swin = read_converted(tmp_path / "bert", "bert"), read_converted(vision, "swin")
    held = weights(tmp_path / "run")
    assert_taken_over(held, text, 6)
    for name, tensor in swin.tensors.items():
        torch.testing.assert_close(held[f"model.swin.{name}"], tensor, atol=1e-7, rtol=0)
    assert (tmp_path / "run/tokenizer.json").read_text(encoding="utf-8") == text.tokenizer_json
    started = json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))["started_from"]
    assert started["text"]["source"] == text.record["source"]
    assert started["vision"]["files"]["model.safetensors"] == swin.record["files"]["model.safetensors"]["sha256"]
    bundle = load_bundle(tmp_path / "run/bundle")
    assert bundle.config.architecture["swin"]["legacy_relative_index"] is True
    assert "all-MiniLM-L6-v2 (licence: Apache-2.0" in bundle.config.training_data and "image encoder" in bundle.config.training_data
    own = ReportTokenizer(text.tokenizer_json)
    assert bundle.tokenizer.encode("Small pleural effusion.") == own.encode("Small pleural effusion.")
    assert own.sentence_ids[0] == 30_522


def test_weights_of_another_size_are_refused_with_both_sizes_and_the_fitting_one_is_named(tmp_path: Path) -> None:
    start = read_start(small_bert(tmp_path / "a"), None)
    start.check(micro())
    with pytest.raises(TrainingError) as caught:
        start.check(micro().with_(text_size="tiny"))
    assert "1 layers of width 32, 2 heads" in caught.value.found and "3 layers of width 192, 4 heads" in caught.value.expected
    assert "text_size=micro" in caught.value.next_step
    # Equal shapes, other heads: the numbers would load, and mean something else.
    with pytest.raises(TrainingError, match="size of the recipe's text encoder") as caught:
        read_start(small_bert(tmp_path / "b", num_attention_heads=4), None).check(micro())
    assert "4 heads" in caught.value.found and "No text_size" in caught.value.next_step
    with pytest.raises(TrainingError, match="shorter texts") as caught:
        read_start(small_bert(tmp_path / "c", max_position_embeddings=48), None).check(micro())
    assert "48 positions" in caught.value.found and "64" in caught.value.expected


def test_swin_weights_of_another_size_or_another_merge_are_refused_with_the_setting_that_fits(tmp_path: Path) -> None:
    start = read_start(None, monai_swin(tmp_path / "a", legacy_merging=True))
    start.check(micro().with_(vision_size="micro-legacy"))
    for other in ("micro", "tiny"):
        with pytest.raises(TrainingError) as caught:
            start.check(micro().with_(vision_size=other))
        assert "embed_dim 8" in caught.value.found and "legacy_merging True" in caught.value.found
        assert "legacy_merging False" in caught.value.expected and "vision_size=micro-legacy" in caught.value.next_step
    with pytest.raises(TrainingError) as caught:
        read_start(None, monai_swin(tmp_path / "b", num_heads=(2, 2, 4, 8))).check(micro())
    assert "heads 2/2/4/8" in caught.value.found and "heads 1/2/4/8" in caught.value.expected


def test_a_second_tokenizer_and_a_folder_begun_with_another_one_are_refused(
    studies_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = small_bert(tmp_path / "bert")
    start = read_start(text, None)
    with pytest.raises(UsageError, match="Two tokenizers"):
        start.tokenizer_file(text, studies_folder / "tokenizer.json")
    assert start.tokenizer_file(text, None) == text / "tokenizer.json" and read_start(None, None).tokenizer_file(None, None) is None
    begun = line(studies_folder, tmp_path / "run", "--tokenizer", str(studies_folder / "tokenizer.json"), "--no-bundle")
    assert pretrain.main(begun) == 0
    assert pretrain.main(line(studies_folder, tmp_path / "run", "--text-from", str(text), "--no-bundle")) == 1
    assert "started_from.text" in capsys.readouterr().err


def test_a_run_stopped_after_its_first_step_goes_on_from_its_checkpoint_and_other_weights_are_noticed(
    studies_folder: Path, tmp_path: Path
) -> None:
    text = small_bert(tmp_path / "bert")
    recipe = overridden(micro(), ["loop.save_every=1"])

    def go(run: Path, source: Path | None = text, after_step: Any = None) -> int:
        options = running.Options(
            run=run, steps=3, seed=3, manifest=studies_folder / "studies.jsonl", store=studies_folder / "store", text_from=source,
            device="cpu", bundle=False,
        )  # fmt: skip
        return running.pretrain(recipe, options, Processes("cpu"), source=tmp_path, after_step=after_step)

    def stop(step: int) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    assert go(tmp_path / "whole") == 0
    assert go(tmp_path / "broken", after_step=stop) == 75
    with pytest.raises(TrainingError, match="other settings") as caught:
        go(tmp_path / "broken", source=None)
    assert "started_from" in caught.value.found
    other = small_bert(tmp_path / "other", seed=1)
    with pytest.raises(TrainingError, match="other settings") as caught:
        go(tmp_path / "broken", source=other)
    assert "started_from.text.files.model.safetensors" in caught.value.found
    # The same weights from another place are the same weights.
    text = text.rename(tmp_path / "moved")
    assert go(tmp_path / "broken", source=text) == 0
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert not [name for name in first if not torch.equal(first[name], second[name])]


def test_a_recipe_without_such_an_encoder_refuses_the_weights(tmp_path: Path) -> None:
    class Other:
        name = "other"

        def model(self, vocab_size: int) -> torch.nn.Module:
            return torch.nn.Linear(1, 1)

    start = read_start(small_bert(tmp_path / "bert"), None)
    for given in (start, replace(start, text=None, vision=start.text)):
        with pytest.raises(TrainingError, match="The recipe other has no encoder"):
            given.check(Other())  # type: ignore[arg-type]
