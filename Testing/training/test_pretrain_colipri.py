"""pretrain.py colipri as a person runs it: scans without reports go along, a kill loses no bit, masked images first and then everything."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pretrain
import pytest
import torch
from pretraining.run import Options
from pretraining.run import pretrain as pretrain_recipe
from safetensors.torch import load_file

from Testing.training.test_pretrain_resume import assert_same_bits, start
from VelvetMedLib.engine.checkpoints import Checkpoints
from VelvetMedLib.engine.log import read_log
from VelvetMedLib.engine.manifest import read_manifest
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.recipes import colipri, disruptive, velvet
from VelvetMedLib.recipes.mixed import mixed
from VelvetMedLib.recipes.overrides import overridden

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(studies_folder: Path, tmp_path: Path) -> Path:
    """Six pairs, one scan marked as such, one line whose report is missing, two validation pairs."""
    shutil.copytree(studies_folder, tmp_path / "studies")
    manifest = tmp_path / "studies" / "studies.jsonl"
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for n in (6, 7):
        del lines[n]["reports"]
    lines[6]["image_only"] = True
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return tmp_path / "studies"


def words(folder: Path, run: Path, *more: str, recipe: str = "colipri", steps: int = 7) -> list[str]:
    return [
        recipe, "--preset", "micro", "--manifest", str(folder / "studies.jsonl"), "--tokenizer", str(folder / "tokenizer.json"),
        "--run", str(run), "--store", str(folder / "store"), "--steps", str(steps), "--seed", "3", "--device", "cpu",
        "--set", f"{'encoders.' if recipe == 'disruptive' else ''}loop.quarantine_share=0.5", *more,
    ]  # fmt: skip


def test_a_scan_is_named_by_its_line_and_only_recipes_with_a_use_for_it_take_a_line_without_a_report(folder: Path) -> None:
    manifest = folder / "studies.jsonl"
    read = read_manifest(manifest)
    assert [s.study for s in read.scans] == ["s6"] and [b.study for b in read.quarantined] == ["s7"] and len(read.studies) == 8
    wider = read_manifest(manifest, unreported=True)
    assert [s.study for s in wider.scans] == ["s6", "s7"] and not wider.quarantined and all(not s.reports for s in wider.scans)
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    lines[6]["patient"] = lines[9]["patient"]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(TrainingError, match="leak"):
        read_manifest(manifest)
    lines[6] |= {"patient": "p6", "report": "No effusion."}
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert "image_only" in read_manifest(manifest).quarantined[0].reason


@pytest.mark.slow
def test_a_killed_run_with_scans_beside_its_pairs_goes_on_bit_for_bit_and_ends_in_encoders(folder: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = ("--set", "optimiser.average_decay=0.9", "--set", "loop.validate_every=3", "--set", "drop_path=0.1")
    assert start("none", words(folder, whole, *more)) == [0]
    assert start("step:5", words(folder, broken, *more)) == [-signal.SIGKILL]
    assert start("none", words(folder, broken, *more)) == [0]
    assert_same_bits(whole, broken)
    losses = [record["losses"] for record in read_log(whole) if "losses" in record]
    names = {"report_contrast", "report_generation", "opposite_sentences", "masked_image"}
    assert len(losses) == 7 and all({n.removesuffix("_loss") for n in step} >= names for step in losses)
    assert all(value > 0 for value in losses[0].values())
    assert not (whole / "quarantine.jsonl").exists(), "a line without a report is a scan here"
    facts = json.loads((whole / "bundle" / "encoders.json").read_text(encoding="utf-8"))
    assert facts["settings"]["masking"]["masked"] == 0.75 and facts["recipe"].startswith("colipri: CROM")
    tensors = load_file(whole / "bundle" / "encoders.safetensors")
    best = Checkpoints(whole).load_best()
    assert best is not None
    name = "image_encoder.backbone.down_projection.proj.weight"
    assert torch.equal(tensors[name], best.parts["weights"][f"model.{name}"])
    assert "softmax_temperature" in tensors and "logit_scale" not in tensors, "the released names"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("more", [(), ("--set", "loop.micro_batches=2", "--set", "loop.cached_gradients=true")])
def test_two_processes_killed_go_on_bit_for_bit(folder: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start("none", words(folder, whole, *more), count=2) == [0, 0]
    codes = start("step:3", words(folder, broken, *more), count=2)
    assert codes[0] == -signal.SIGKILL and codes[1] != 0
    assert start("none", words(folder, broken, *more), count=2) == [0, 0]
    assert_same_bits(whole, broken)


def test_masked_images_first_and_then_everything_from_their_weights(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    alone = ["contrast=none", "generation=false", "opposite_sentences=false"]
    settings = [word for setting in alone for word in ("--set", setting)]
    assert pretrain.main(words(folder, first, *settings, steps=2)) == 0
    said = capsys.readouterr().out
    assert "M_micro_micro: 8 studies" in said and "no validation by retrieval" in said
    then = words(
        folder, second, "--run-from", str(first), "--set", "optimiser.learning_rate=1e-30", "--set", "optimiser.last_rate=0", steps=1
    )
    assert pretrain.main(then) == 0
    assert "begin as step 2 of M_micro_micro left them" in capsys.readouterr().out
    before, after = Checkpoints(first).load(), Checkpoints(second).load()
    assert before is not None and after is not None
    name = "model.image_encoder.backbone.eva.blocks.0.attn.q_proj.weight"
    assert torch.allclose(after.parts["weights"][name], before.parts["weights"][name], atol=1e-7)
    assert "objectives.report_generation.decoder.bias" in after.parts["weights"]
    facts = json.loads((second / "run.json").read_text(encoding="utf-8"))["started_from_run"]
    assert facts["step"] == 2 and facts["key"] == "M_micro_micro"
    assert pretrain.main(words(folder, tmp_path / "third", "--run-from", str(tmp_path / "nowhere"), steps=1)) == 1
    assert "no earlier run" in capsys.readouterr().err


def test_too_few_scans_for_a_step_are_said_before_anything_is_trained(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain.main(words(folder, tmp_path / "run", "--set", "paired_scans_too=false", steps=1)) == 1
    said = capsys.readouterr().err
    assert "2 usable scans, 4 per step" in said and "image_only" in said


def test_the_dry_run_of_the_recipe_counts_its_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain.main(["colipri", "--preset", "micro", "--steps", "10", "--device", "cpu", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "image encoder" in said and "head of report generation" in said and "head of masked image" in said


MIXES = {
    "VELVET's hierarchy, COLIPRI's writer": lambda: mixed(velvet.micro(), colipri.micro(), "report_generation"),
    "COLIPRI's encoders, masked words": lambda: mixed(colipri.micro(), velvet.micro(), "masked_language_text"),
    "one objective more": lambda: mixed(velvet.micro().with_(vis=False, mm=False), disruptive.micro(), "disruptive_restoration"),
}


@pytest.mark.parametrize("which", MIXES)
def test_a_recipe_mixed_in_one_line_is_trained_by_the_engine_like_any_other(folder: Path, tmp_path: Path, which: str) -> None:
    recipe, run = MIXES[which](), tmp_path / "run"
    options = Options(
        run=run,
        steps=2,
        seed=3,
        manifest=folder / "studies.jsonl",
        tokenizer=folder / "tokenizer.json",
        store=folder / "store",
    )
    recipe = overridden(recipe, ["base.loop.quarantine_share=0.5"])
    assert pretrain_recipe(recipe, options, Processes("cpu"), source=tmp_path) == 0
    losses = [record["losses"] for record in read_log(run) if "losses" in record]
    assert len(losses) == 2 and {n.removesuffix("_loss") for n in losses[0]} >= set(recipe.take)
    assert all(value > 0 for step in losses for value in step.values())
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert record["recipe"]["take"] == list(recipe.take) and record["recipe"]["base"]["name"] == recipe.base.name
    again = overridden(recipe, ["base.loop.log_every=7"])
    assert pretrain_recipe(again, options, Processes("cpu"), source=tmp_path) == 0, "how often is said may change"
    is_velvet = recipe.base.name == "velvet"
    assert (run / "bundle" / ("bundle.json" if is_velvet else "encoders.json")).is_file()


def test_disruptive_restoration_trains_on_scans_with_and_without_reports(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain.main(words(folder, tmp_path / "run", recipe="disruptive", steps=2)) == 0
    said = capsys.readouterr().out
    assert "disruptive_micro: 8 studies to learn from" in said, "six with a report, two without"
