"""`pretrain.py t3d` as a person runs it: killed and taken up again bit for bit, on one process and on two; and what comes after it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import probe
import pytest
import torch
from finetuning.encoders import encoder_start
from finetuning.settings import tiny as finetune_tiny
from probing.features import history_of, question_of, study_vectors
from probing.running import SPLITS, probed, recipe_of, write_results

from Testing.training.test_pretrain_resume import STEPS, figures, start, words
from VelvetMedLib.engine.body import body_of
from VelvetMedLib.engine.checkpoints import Checkpoints
from VelvetMedLib.engine.data import BatchMaker, Quarantine
from VelvetMedLib.engine.log import read_log
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.models.t3d import T3dModel
from VelvetMedLib.models.text_informed import cells
from VelvetMedLib.recipes.crops import cut, tile_starts
from VelvetMedLib.recipes.t3d import micro

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")


def line(folder: Path, run: Path, *more: str) -> list[str]:
    return ["t3d", *words(folder, run)[1:], *more]


def assert_same_bits(one: Path, two: Path) -> None:
    found = [Checkpoints(run).load() for run in (one, two)]
    assert all(kept is not None and kept.step == STEPS for kept in found)
    first, second = (
        {f"{part}/{key}": value for part, values in kept.parts.items() for key, value in values.items()} for kept in found if kept
    )
    assert first.keys() == second.keys() and not [key for key in first if not torch.equal(first[key], second[key])]
    assert figures(one) == figures(two)


@pytest.fixture(scope="module")
def finished(studies_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of the micro preset."""
    run = tmp_path_factory.mktemp("t3d") / "whole"
    assert start("none", line(studies_folder, run)) == [0]
    return run


@pytest.mark.slow
def test_killed_after_a_step_it_goes_on_bit_for_bit(finished: Path, studies_folder: Path, tmp_path: Path) -> None:
    broken = line(studies_folder, tmp_path / "broken")
    assert start("step:3", broken) == [-signal.SIGKILL]
    assert start("none", broken) == [0]
    assert_same_bits(finished, tmp_path / "broken")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["step:5", "write:2", "rename:1", "term:4"])
@pytest.mark.parametrize("more", [[], ["--set", "tma=true"]], ids=["first", "tma"])
def test_killed_anywhere_it_goes_on_bit_for_bit_in_both_versions(
    studies_folder: Path, tmp_path: Path, where: str, more: list[str]
) -> None:  # fmt: skip
    assert start("none", line(studies_folder, tmp_path / "whole", *more)) == [0]
    broken = line(studies_folder, tmp_path / "broken", *more)
    assert start(where, broken) == [75 if where.startswith("term") else -signal.SIGKILL]
    assert start("none", broken) == [0]
    assert_same_bits(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.slow
def test_killed_on_two_processes_both_go_on_bit_for_bit(studies_folder: Path, tmp_path: Path) -> None:
    assert start("none", line(studies_folder, tmp_path / "whole"), count=2) == [0, 0]
    broken = line(studies_folder, tmp_path / "broken")
    assert start("step:3", broken, count=2)[0] == -signal.SIGKILL
    assert start("none", broken, count=2) == [0, 0]
    assert_same_bits(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_have_the_losses_of_one(studies_folder: Path, tmp_path: Path, parallel: str) -> None:
    # Dropout is drawn by each process for itself, so without it: a text encoder that stays as it is has none.
    still = ["--set", "text_trainable=false", "--set", f"loop.parallel={parallel}"]
    assert start("none", line(studies_folder, tmp_path / "one", *still[:2])) == [0]
    assert start("none", line(studies_folder, tmp_path / "two", *still), count=2) == [0, 0]
    one, two = (read_log(tmp_path / name) for name in ("one", "two"))
    for first, second in zip(one, two, strict=True):
        assert first["losses"] == pytest.approx(second["losses"], rel=1e-3)


def test_the_log_says_what_the_report_is_worth_for_restoration(finished: Path) -> None:
    steps = [record for record in read_log(finished) if "text_informed_restoration_loss" in json.dumps(record)]
    looks = ["text_informed_restoration/true_report" in json.dumps(record) for record in steps]
    assert looks == [(n + 1) % 2 == 0 for n in range(STEPS)], "every second step, as the preset says"


def test_its_encoder_is_where_a_fine_tuning_can_start(finished: Path) -> None:
    begun = encoder_start(str(finished), scratch=finetune_tiny().swin)
    kept = Checkpoints(finished).load()
    assert kept is not None and begun.tensors is not None
    part = kept.parts.get("average", kept.parts["weights"])
    mine = {name.removeprefix("model.swin."): value for name, value in part.items() if name.startswith("model.swin.")}
    assert mine.keys() == begun.tensors.keys() and all(torch.equal(mine[name], begun.tensors[name]) for name in mine)
    assert begun.config.embed_dim == micro().swin().embed_dim


def test_the_run_names_its_recipe_and_a_folder_without_one_is_refused(finished: Path, tmp_path: Path) -> None:
    recipe, seed = recipe_of(finished)
    assert recipe.with_(optimiser=micro().optimiser, loop=micro().loop) == micro() and seed == 3
    with pytest.raises(TrainingError, match="T3D"):
        recipe_of(tmp_path)


FINDINGS = ["lung_nodule", "pleural_effusion"]


def test_study_vectors_are_the_mean_and_the_maximum_over_crops_of_pooled_tokens(opened: object, studies_folder: Path) -> None:
    stored, groups, tokenizer = opened  # type: ignore[misc]
    recipe = micro()
    torch.manual_seed(0)
    model = recipe.model(tokenizer.vocab_size).eval()
    assert isinstance(model, T3dModel)
    with torch.no_grad():
        model.text_informed.cross_gate.fill_(0.7)
    maker = BatchMaker(
        stored, groups, tokenizer, recipe.views, recipe.reports,
        keys=(), seed=1, sentence_tokens=True, quarantine=Quarantine(None, 0, 1.0),
    )  # fmt: skip
    names = [entry.study.study for entry in stored[:2]]
    found = study_vectors(model, recipe, maker, names, FINDINGS, torch.device("cpu"))
    size = (32, 32, 32)
    for row, entry in enumerate(stored[:2]):
        starts = tile_starts(body_of(entry, recipe.views.fine_spacing_mm), size, recipe.crops.least_body)
        assert found.crops[row] == len(starts)
        layout = tokenizer.layout([[question_of(FINDINGS[1])]], recipe.reports.max_tokens)
        plain, informed = [], []
        for start_at in starts:  # one crop at a time
            crop = torch.from_numpy(np.clip((cut(entry.fine(), start_at, size) + 1000.0) / 2000, 0, 1).astype(np.float32))[None, None]
            with torch.no_grad():
                x = cells(model.swin(crop)[-1])
                states = model.tribert.text(layout.ids, layout.type_ids, layout.pad_mask)
                kept = layout.pad_mask.clone()
                kept[:, 0] = False
                plain.append(x.mean(dim=1)[0].numpy())
                informed.append(model.text_informed(x, states, kept).mean(dim=1)[0].numpy())
        for pool, over in (("mean", np.mean), ("max", np.max)):
            assert np.allclose(found.without_text[pool][row], over(plain, axis=0), atol=1e-4)
            assert np.allclose(found.with_text[FINDINGS[1]][pool][row], over(informed, axis=0), atol=1e-4)
    assert not np.allclose(found.with_text[FINDINGS[0]]["mean"], found.with_text[FINDINGS[1]]["mean"])


def test_the_history_is_read_without_any_sentence_that_mentions_a_finding() -> None:
    sections = [
        ("Clinical history", ["Fever for three days.", "Known pulmonary nodule.", "No effusion on the last scan."]),
        ("Technique", ["Helical acquisition."]),
        ("Findings", ["The patient lay still."]),
    ]
    assert history_of(sections) == ["Fever for three days."]
    assert question_of("pleural_effusion") == "Is there a pleural effusion?"


def test_the_ways_are_probed_and_printed_side_by_side(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    truth = {split: (draw.random((60, 2)) < 0.5).astype(float) for split in SPLITS}

    class Made:
        def __init__(self, split: str) -> None:
            noise = draw.standard_normal((60, 3)).astype(np.float32)
            telling = noise + 3 * truth[split][:, :1].astype(np.float32)
            self.without_text = {"mean": noise, "max": noise}
            self.with_text = {FINDINGS[0]: {"mean": telling, "max": noise}, FINDINGS[1]: {"mean": noise, "max": noise}}
            self.crops = [1]

    results = probed(*({split: Made(split) for split in SPLITS} for _ in range(2)), truth, FINDINGS, draws=20)
    assert list(results) == [f"{way}, {pool}" for way in ("untrained", "without text", "with text") for pool in ("mean", "max")]
    told = results["with text, mean"][0].auroc
    assert told is not None and told > 0.95 and results["without text, mean"][0].auroc < 0.75
    said: list[str] = []
    write_results(tmp_path, results, {"step": 1}, said.append)
    assert all(way in said[0] for way in results) and "Research use only" in (tmp_path / "probe.md").read_text(encoding="utf-8")
    record = json.loads((tmp_path / "probe.json").read_text(encoding="utf-8"))
    assert set(record["mean"]) == set(results) and record["step"] == 1


def test_the_line_of_the_probe_helps_and_names_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert probe.main(["help"]) == 0 and "--cohort" in capsys.readouterr().out
    assert probe.main(["--run", str(tmp_path)]) == 2 and "--cohort is missing" in capsys.readouterr().err
    assert probe.main(["--run", str(tmp_path), "--cohort", str(tmp_path)]) == 1 and "no T3D-style run" in capsys.readouterr().err
