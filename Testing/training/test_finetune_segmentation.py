"""Segmentation fine-tuning: it learns, resumes bit for bit, keeps the best, starts from any encoder, evaluates on the scans' grids."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("monai", reason="losses and sliding windows are MONAI's")
pytest.importorskip("sklearn")

import finetune
from commandline import PROBLEM, USAGE
from converted import write_converted
from finetuning.batches import CropMaker
from finetuning.coding import OneOf
from finetuning.common import QUARANTINE, RESULTS
from finetuning.encoders import encoder_start
from finetuning.learning import dice_ce_loss, overlapping_loss, predict_array
from finetuning.running import TABLE, Outcome, finetune_segmentation
from finetuning.settings import AugmentSettings, SegmentationSettings, paper, tiny
from finetuning.tasks import read_task
from pretraining.child import SLICER_OPTIONS
from pretraining.export import ENCODERS, export_encoders
from torch import Tensor, nn

import VelvetMedLib
from VelvetMedLib.ct import read_labels, write_nifti
from VelvetMedLib.engine.checkpoints import Checkpoints, read_checkpoint
from VelvetMedLib.engine.learner import Learner
from VelvetMedLib.engine.trainer import STOPPED
from VelvetMedLib.errors import TrainingError, UsageError
from VelvetMedLib.models.image_encoders import EncoderPlace, segmenter, take_over
from VelvetMedLib.models.primus import Primus, PrimusConfig
from VelvetMedLib.models.swin import SwinConfig, SwinEncoder
from VelvetMedLib.recipes import colipri, disruptive, t3d, velvet
from VelvetMedLib.recipes.mixed import mixed

SWIN = SwinConfig(embed_dim=4, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=2)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def small(**loop: Any) -> SegmentationSettings:
    base = paper()
    return replace(
        base,
        swin=SWIN,
        data=replace(base.data, spacing_mm=(3.0, 3.0, 3.0), patch_voxels=(32, 32, 32), crops_per_volume=1, positive_share=0.8),
        augment=replace(base.augment, flip_swap_pairs=True),
        optimiser=replace(base.optimiser, learning_rate=3e-2, last_rate=3e-3, weight_decay=0.0),
        loop=replace(base.loop, batch=2, precision="fp32", save_every=2, validate_every=100, log_every=1, **loop),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scans of a block with a bright left and a dark right lump at drawn places."""
    folder = tmp_path_factory.mktemp("task")
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    matrix = np.diag([-3.0, -3.0, 3.0, 1.0])
    for n in range(6):
        hu = rng.normal(20, 10, (32, 34, 36)).astype(np.int16)
        labels = np.zeros(hu.shape, np.uint8)
        k, j = rng.integers(4, 18, 2)
        labels[k : k + 9, j : j + 9, 22:32], labels[k : k + 9, j : j + 9, 4:14] = 1, 2
        hu[labels == 1] += 180
        hu[labels == 2] -= 150
        write_nifti(folder / "imagesTr" / f"c{n}_0000.nii.gz", hu, matrix)
        write_nifti(folder / "labelsTr" / f"c{n}.nii.gz", labels, matrix)
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "lump_left": 1, "lump_right": 2}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(described), "utf-8")
    return folder


def run(data: Path, folder: Path, settings: SegmentationSettings, steps: int, **options: Any) -> Outcome:
    start = encoder_start(options.pop("encoder", "scratch"), scratch=settings.swin)
    given: dict[str, Any] = {"run": folder, "steps": steps, "seed": 5, "store": data.parent / "store", "say": lambda line: None} | options
    return finetune_segmentation(read_task(data), start, settings, **given)


def test_it_learns_two_lumps_and_writes_the_table_of_the_best_weights(data: Path, tmp_path: Path) -> None:
    outcome = run(data, tmp_path / "run", small(), 30, save_predictions=True)
    assert outcome.code == 0 and outcome.split == "val" and outcome.dice > 0.6
    results = json.loads((tmp_path / "run" / RESULTS).read_text("utf-8"))
    assert results["mean_dice"] == pytest.approx(outcome.dice) and results["encoder"] == {"kind": "scratch"}
    assert [line["structure"] for line in results["structures"]] == ["lump_left", "lump_right"]
    assert "Research use only" in (tmp_path / "run" / TABLE).read_text("utf-8")
    best = Checkpoints(tmp_path / "run").load_best()
    assert best is not None and best.facts["classes"] == ["background", "lump_left", "lump_right"]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text("utf-8").splitlines()]
    losses = [record["loss"] for record in log if "loss" in record]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    # Predictions lie on the scan's own grid with the data set's values, left where left is.
    name = outcome.scores[0].case
    found, grid = read_labels(tmp_path / "run" / "predictions" / f"{name}.nii.gz")
    truth, own = read_labels(data / "labelsTr" / f"{name}.nii.gz")
    assert grid.equals(own) and set(np.unique(found).tolist()) <= {0, 1, 2}
    dice = 2 * ((found == 1) & (truth == 1)).sum() / ((found == 1).sum() + (truth == 1).sum())
    assert outcome.scores[0].dice == pytest.approx(float(dice))


def test_structures_that_share_voxels_are_learnt_one_by_one(data: Path, tmp_path: Path) -> None:
    described = json.loads((data / "dataset.json").read_text("utf-8")) | {"labels": {"background": 0, "lump_right": 2, "lumps": [1, 2]}}
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / "task" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "task" / name).symlink_to(data / name)
    (tmp_path / "task" / "dataset.json").write_text(json.dumps(described), "utf-8")
    outcome = run(tmp_path / "task", tmp_path / "run", replace(small(), augment=AugmentSettings()), 30, save_predictions=True)
    dice = {score.structure: score.dice for score in outcome.scores}
    assert set(dice) == {"lump_right", "lumps"} and min(dice.values()) > 0.6
    found, _ = read_labels(next((tmp_path / "run" / "predictions").glob("*.nii.gz")))
    # Both lumps have the bit of "lumps", the right one its own beside it.
    assert np.count_nonzero(found == 1) > 0 and np.count_nonzero(found == 3) > 0


class _Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 3])
def test_a_run_that_was_cut_off_goes_on_bit_for_bit(data: Path, tmp_path: Path, at: int) -> None:
    settings = small()
    run(data, tmp_path / "whole", settings, 4)

    def kill(step: int) -> None:
        if step == at:
            raise _Killed

    with pytest.raises(_Killed):
        run(data, tmp_path / "cut", settings, 4, after_step=kill)
    assert run(data, tmp_path / "cut", settings, 4).code == 0
    for name in ("last", "best"):
        a, b = (read_checkpoint(tmp_path / folder / "checkpoints" / name) for folder in ("whole", "cut"))
        assert a.parts.keys() == b.parts.keys()
        for part, tensors in a.parts.items():
            assert all(torch.equal(value, b.parts[part][key]) for key, value in tensors.items()), (name, part)


def test_a_request_to_stop_saves_and_the_same_line_goes_on(data: Path, tmp_path: Path) -> None:
    def ask(step: int) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = run(data, tmp_path / "run", small(), 2, after_step=ask)
    assert outcome.code == STOPPED and outcome.scores == ()
    saved = Checkpoints(tmp_path / "run").load()
    assert saved is not None and saved.step == 1
    assert run(data, tmp_path / "run", small(), 2).code == 0


def test_another_setting_in_the_same_run_folder_is_refused(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "run", small(), 1)
    with pytest.raises(TrainingError, match="other settings"):
        run(data, tmp_path / "run", replace(small(), optimiser=replace(small().optimiser, learning_rate=2e-2)), 1)


def test_the_encoder_of_converted_weights_a_run_and_a_checkpoint_is_taken_over_exactly(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = SwinEncoder(replace(SWIN, legacy_merging=True)).state_dict()
    config = replace(SWIN, legacy_merging=True).to_dict()
    write_converted(tmp_path / "swin", "swin", config, source, facts={"source": {}}, came_from={name: name for name in source})
    start = encoder_start(str(tmp_path / "swin"), scratch=tiny().swin)
    assert start.config == replace(SWIN, legacy_merging=True) and start.tensors is not None
    assert all(torch.equal(value, source[name]) for name, value in start.tensors.items())
    run(data, tmp_path / "run", small(), 1, encoder=str(tmp_path / "swin"))
    for place in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "last"):
        again = encoder_start(str(place), scratch=tiny().swin)
        assert again.config == start.config and again.origin["kind"] == "checkpoint" and again.tensors is not None
        weights = read_checkpoint(tmp_path / "run" / "checkpoints" / "last").parts["weights"]
        assert all(torch.equal(value, weights[f"network.swinViT.{name}"]) for name, value in again.tensors.items())


RECIPES = {
    "velvet, MONAI's old rules": lambda: velvet.micro().with_(vision_size="micro-legacy"),
    "colipri": colipri.micro,
    "t3d": t3d.micro,
    "disruptive": disruptive.micro,
    "mixed": lambda: mixed(colipri.micro(), velvet.micro(), "masked_language_text"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_pre_training_of_any_recipe_says_which_encoder_it_has_and_a_decoder_fits_it(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    learner = Learner(RECIPES[name](), vocab_size=40)
    Checkpoints(tmp_path).save(3, {"weights": learner.state_dict()}, learner.facts)
    start = encoder_start(str(tmp_path), scratch=SWIN)
    own = next(part for part in learner.modules() if type(part) in (SwinEncoder, Primus))
    assert start.config == own.config and start.tensors is not None and start.origin["step"] == 3
    network = segmenter(start.config, 3)
    take_over(network.encoder, start.tensors)
    assert all(torch.equal(value, own.state_dict()[key]) for key, value in network.encoder.state_dict().items())
    x = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert network.eval()(x).shape == (1, 3, 32, 32, 32)
    assert start.at_random().tensors is None and start.at_random().config == start.config


def test_plain_encoders_of_a_finished_run_are_a_start_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = (Path(VelvetMedLib.__file__).parent / "assets" / "bundles" / "demo" / "tokenizer.json").read_text("utf-8")
    learner = Learner(colipri.micro(), vocab_size=40)
    export_encoders(tmp_path / "out", learner, tokenizer, name="x", training_data="", licence="", results={})
    start = encoder_start(str(tmp_path / "out"), scratch=SWIN)
    own = learner.model.state_dict()
    assert start.origin["kind"] == "encoders" and start.tensors is not None
    assert all(torch.equal(value, own[f"image_encoder.backbone.{name}"]) for name, value in start.tensors.items())
    (tmp_path / "out" / ENCODERS).write_bytes(b"nothing")
    with pytest.raises(TrainingError, match="damaged"):
        encoder_start(str(tmp_path / "out"), scratch=SWIN)


def test_an_older_checkpoint_is_told_by_its_shapes_and_an_unknown_encoder_is_refused(tmp_path: Path) -> None:
    weights = {f"model.swin.{name}": value for name, value in SwinEncoder(SWIN).state_dict().items()}
    Checkpoints(tmp_path / "older").save(1, {"weights": weights}, {})
    assert encoder_start(str(tmp_path / "older"), scratch=tiny().swin).config == SWIN
    Checkpoints(tmp_path / "other").save(1, {"weights": {"model.resnet.weight": torch.zeros(1)}}, {})
    with pytest.raises(TrainingError, match="No decoder fits"):
        encoder_start(str(tmp_path / "other"), scratch=SWIN)
    with pytest.raises(UsageError, match="does not know"):
        EncoderPlace.from_dict({"kind": "resnet", "front": "", "config": {}})


def test_the_demo_bundles_encoder_is_taken_by_name() -> None:
    start = encoder_start("demo", scratch=SWIN)
    assert start.origin["kind"] == "bundle" and start.origin["id"] == "demo" and start.config == tiny().swin


def test_a_folder_without_an_encoder_and_a_run_that_never_saved_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no pre-trained encoder"):
        encoder_start(str(tmp_path), scratch=SWIN)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(TrainingError, match="no checkpoint yet"):
        encoder_start(str(tmp_path), scratch=SWIN)


def test_the_loss_is_soft_dice_plus_cross_entropy_in_float64() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 1, 4, 4, 4))
    p = logits.softmax(1)
    ce, dice = [], []
    for b in range(2):
        for c in range(3):
            own = (labels[b, 0] == c).double()
            dice.append(1 - (2 * (p[b, c] * own).sum() + 1e-5) / (p[b, c].sum() + own.sum() + 1e-5))
        ce.append(-p[b].gather(0, labels[b]).log().mean())
    expected = torch.stack(dice).mean() + torch.stack(ce).mean()
    torch.testing.assert_close(dice_ce_loss()(logits, labels), expected, atol=1e-8, rtol=0)


def test_the_loss_of_structures_that_overlap_is_dice_of_those_in_the_batch_plus_focal_cross_entropy_in_float64() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64), (torch.rand(2, 3, 4, 4, 4) > 0.7).double()
    targets[:, 1] = 0  # a structure that the batch does not show has no Dice, and its false alarms still cost
    p, dice = logits.sigmoid(), 0.0
    for c in (0, 2):
        dice += float(1 - (2 * (p[:, c] * targets[:, c]).sum() + 1) / (p[:, c].square().sum() + targets[:, c].sum() + 1)) / 2
    crossed = -(targets * (1 - p).square() * p.log() + (1 - targets) * p.square() * (1 - p).log()).sum() / (targets.sum() + 200)
    assert float(overlapping_loss(logits, targets)) == pytest.approx(dice + float(crossed), abs=1e-8)


@pytest.mark.parametrize("encoder", [SwinConfig(embed_dim=16, depths=(0, 1, 1, 1)), PrimusConfig(width=48, depth=1, heads=4, patch=8)])
def test_the_constants_of_the_logits_are_where_every_voxel_gets_them_from(encoder: Any) -> None:
    network = segmenter(encoder, 3).eval()
    x = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        before = network(x)
        network.class_bias.add_(torch.tensor([1.0, -2.0, 0.5]))
        moved = network(x) - before
    torch.testing.assert_close(moved, torch.tensor([1.0, -2.0, 0.5])[None, :, None, None, None].expand_as(moved), atol=1e-4, rtol=0)


def test_a_rare_structure_still_moves_a_network_that_predicts_nothing() -> None:
    logits = torch.full((1, 2, 16, 16, 16), -7.0, requires_grad=True)
    targets = torch.zeros(1, 2, 16, 16, 16)
    targets[0, 0, 3:6, 3:6, 3:6] = 1
    overlapping_loss(logits, targets).backward()
    assert logits.grad is not None
    there, elsewhere = logits.grad[targets > 0], logits.grad[targets == 0]
    assert float(there.sum()) < -0.1 and float(elsewhere.sum()) < 1e-3, "mean cross-entropy would pull by 27 of 8192 voxels"


def test_sliding_windows_of_a_voxelwise_network_equal_one_pass_also_on_small_scans() -> None:
    class Voxelwise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([0.5 - x, x - 0.5], dim=1)

    settings = small()
    for shape in ((40, 33, 50), (20, 40, 10)):
        hu = np.random.default_rng(0).integers(-300, 400, shape).astype(np.int16)
        found = predict_array(Voxelwise(), hu, settings.data, settings.loop, OneOf(1), torch.device("cpu"))
        middle = (settings.data.hu_min + settings.data.hu_max) / 2
        sure = np.abs(hu - middle) > 2
        assert found.shape == shape and np.array_equal(found[sure], (hu > middle)[sure])


def test_a_loss_that_is_not_finite_skips_the_step_and_stops_the_run_after_a_set_number(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = CropMaker.batch

    def broken(self: CropMaker, names: Any, epoch: int) -> Any:
        batch = whole(self, names, epoch)
        batch.images[:] = float("nan")
        return batch

    monkeypatch.setattr(CropMaker, "batch", broken)
    with pytest.raises(TrainingError, match="not finite any more"):
        run(data, tmp_path / "run", small(skips_in_a_row=2), 5)
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text("utf-8").splitlines()]
    assert [event["event"] for event in events] == ["skipped", "skipped"] and len(events[0]["studies"]) == 2


def test_unusable_cases_are_listed_and_without_any_the_run_is_refused(data: Path, tmp_path: Path) -> None:
    task = read_task(data)
    lost = replace(task, cases=(*task.cases, replace(task.cases[0], name="lost", group="lost", image=tmp_path / "none.nii.gz")))
    said: list[str] = []
    start = encoder_start("scratch", scratch=SWIN)
    options: dict[str, Any] = {"steps": 1, "seed": 5, "store": data.parent / "store", "say": said.append}
    finetune_segmentation(lost, start, small(), run=tmp_path / "run", **options)
    assert json.loads((tmp_path / "run" / QUARANTINE).read_text("utf-8"))["study"] == "lost"
    assert any("1 of 7 cases were left out" in line for line in said)
    with pytest.raises(TrainingError, match="no usable case"):
        finetune_segmentation(replace(task, cases=task.cases[:1]), start, small(), run=tmp_path / "alone", **options)


def test_the_command_line_prints_its_settings_and_refuses_in_four_parts(data: Path, tmp_path: Path, capsys: Any) -> None:
    assert finetune.main(["segmentation", "settings", "--preset", "tiny"]) == 0
    said = capsys.readouterr().out
    assert "data.patch_voxels=64,64,64" in said and "augment.flip_swap_pairs=False" in said
    line = ["segmentation", "--data", str(data), "--run", str(tmp_path / "run"), "--steps", "1"]
    assert finetune.main([*line, "--encoder", "demo", "--set", "swin.embed_dim=8"]) == USAGE
    assert finetune.main([*line, "--set", "augment.flip_x=true"]) == USAGE
    assert finetune.main([*line[:3], "--run", str(tmp_path / "run")]) == USAGE
    assert finetune.main(["segmentation", "--data", str(tmp_path), *line[3:]]) == PROBLEM
    assert "Next:" in capsys.readouterr().err
    assert finetune.main(["dreaming"]) == USAGE and finetune.main([]) == 0
    with pytest.raises(UsageError, match="no setting of this name"):
        finetune.chosen_settings("paper", ["data.patch=3"], "scratch")


def test_no_option_is_one_that_slicer_reads_itself() -> None:
    options = {word for action in finetune.parser()._actions for word in action.option_strings}
    assert options and not options & SLICER_OPTIONS


def test_the_command_line_trains_one_step(data: Path, tmp_path: Path) -> None:
    words = ["segmentation", "--data", str(data), "--run", str(tmp_path / "run"), "--steps", "1", "--store", str(data.parent / "store")]
    changes = [word for change in SMALL_CHANGES for word in ("--set", change)]
    assert finetune.main([*words, "--structures", "lump_left", "--preset", "tiny", *changes]) == 0
    results = json.loads((tmp_path / "run" / RESULTS).read_text("utf-8"))
    assert [line["structure"] for line in results["structures"]] == ["lump_left"]


SMALL_CHANGES = (
    "swin.embed_dim=4", "swin.depths=1,1,1,1", "swin.heads=1,1,2,2", "swin.window=2", "data.patch_voxels=32,32,32",
    "data.spacing_mm=3,3,3",
)  # fmt: skip
