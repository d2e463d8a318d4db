"""The loop: it goes on bit for bit, stops in order, skips what is not finite, and keeps the best by its metric."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from VelvetMedLib.engine.checkpoints import Checkpoints
from VelvetMedLib.engine.data import BatchMaker, Quarantine
from VelvetMedLib.engine.learner import Learner
from VelvetMedLib.engine.loader import Loader
from VelvetMedLib.engine.log import RunLog, clock, draw_curves, progress_line, read_log
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.randomness import seed_torch
from VelvetMedLib.engine.sampler import StepSampler
from VelvetMedLib.engine.trainer import STOPPED, Selection, Trainer
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.objectives.base import IMAGE_LOCAL_A, StudyBatch
from VelvetMedLib.recipes.overrides import overridden
from VelvetMedLib.recipes.velvet import micro

# The text part alone: it has dropout, and a step takes milliseconds.
TEXT_ONLY = ["itc=none", "mm=false", "vis=false", "loop.batch=2", "loop.save_every=2", "loop.log_every=1"]


class Interrupted(BaseException):
    """Stands for a kill that leaves Python no chance to save."""


def trainer(
    opened: Any,
    run: Path,
    *,
    steps: int = 5,
    settings: list[str] = TEXT_ONLY,
    spoil: Callable[[StudyBatch, list[str], int], StudyBatch] | None = None,
    **others: Any,
) -> Trainer:
    stored, groups, tokenizer = opened
    recipe = overridden(micro(), settings)
    seed_torch(1, "weights")
    learner = Learner(recipe, tokenizer.vocab_size)
    train = [s for s in stored if s.study.split == "train"]
    quarantine = Quarantine(None, len(train), 1.0)
    maker = BatchMaker(
        train, groups, tokenizer, recipe.views, recipe.reports, keys=learner.keys, seed=1, sentence_tokens=True, quarantine=quarantine
    )
    if spoil is not None:
        plain = maker.batch
        maker.batch = lambda names, epoch: spoil(plain(names, epoch), names, epoch)  # type: ignore[method-assign]
    sampler = StepSampler([s.study.study for s in train], recipe.loop.batch, 1)

    def loader(first: int) -> Loader:
        return Loader(maker, sampler, first_step=first, last_step=steps, micro_batches=recipe.loop.micro_batches)

    run.mkdir(exist_ok=True)
    return Trainer(
        learner, run=run, steps=steps, seed=1, make_loader=loader, processes=Processes("cpu"), quarantine=quarantine, **others
    )  # fmt: skip


def state(run: Path) -> dict[str, torch.Tensor]:
    found = Checkpoints(run).load()
    assert found is not None
    return {f"{part}/{name}": value for part, tensors in found.parts.items() for name, value in tensors.items()}


def assert_same_bits(one: Path, two: Path) -> None:
    first, second = state(one), state(two)
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]

    def figures(run: Path) -> list[Any]:
        return [(r["step"], r.get("losses"), r.get("learning_rate"), r.get("event")) for r in read_log(run)]

    assert figures(one) == figures(two)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_broken_off_anywhere_goes_on_bit_for_bit(opened: Any, tmp_path: Path, at: int) -> None:
    settings = [*TEXT_ONLY, "optimiser.average_decay=0.9"]
    assert trainer(opened, tmp_path / "whole", settings=settings).run() == 0

    def broken(step: int) -> None:
        if step == at:
            raise Interrupted

    with pytest.raises(Interrupted):
        trainer(opened, tmp_path / "broken", settings=settings, after_step=broken).run()
    torch.rand(3)  # whatever the process drew in between must not matter
    assert trainer(opened, tmp_path / "broken", settings=settings).run() == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "broken")
    assert any(name.startswith("average/") for name in state(tmp_path / "whole"))


def test_dropout_and_order_differ_with_the_seed(opened: Any, tmp_path: Path) -> None:
    trainer(opened, tmp_path / "one").run()
    other = trainer(opened, tmp_path / "two")
    other.seed = 2
    other.run()
    assert not torch.equal(
        state(tmp_path / "one")["weights/model.tribert.token.weight"], state(tmp_path / "two")["weights/model.tribert.token.weight"]
    )


@pytest.mark.skipif(os.name == "nt", reason="signals of this kind are POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_saves_and_ends_with_its_own_code_and_the_run_goes_on_as_if_unbroken(
    opened: Any, tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    trainer(opened, tmp_path / "whole").run()
    asked = trainer(opened, tmp_path / "asked", after_step=lambda step: os.kill(os.getpid(), number) if step == 3 else None)
    assert asked.run() == STOPPED == 75
    found = Checkpoints(tmp_path / "asked").load()
    assert found is not None and found.step == 3
    assert signal.getsignal(number) is before
    assert trainer(opened, tmp_path / "asked").run() == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "asked")


def test_a_torn_checkpoint_costs_steps_but_no_bit(opened: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(opened, tmp_path / "whole").run()

    def torn(step: int) -> None:
        if step == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        trainer(opened, tmp_path / "torn", after_step=torn).run()
    weights = tmp_path / "torn/checkpoints/last/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert trainer(opened, tmp_path / "torn").run() == 0
    assert "damaged" in capsys.readouterr().err
    assert_same_bits(tmp_path / "whole", tmp_path / "torn")


def test_a_disk_that_is_full_when_the_log_is_written_ends_the_run_in_words_and_it_goes_on_when_there_is_space(
    opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(opened, tmp_path / "whole").run()
    record = RunLog.record

    def full(log: RunLog, entry: dict[str, Any]) -> None:
        if entry["step"] == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        record(log, entry)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "record", full)
        with pytest.raises(TrainingError) as caught:
            trainer(opened, tmp_path / "full").run()
    assert "No space left" in caught.value.found and "step 2" in caught.value.next_step
    assert trainer(opened, tmp_path / "full").run() == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "full")


def spoiled(study: str) -> Callable[[StudyBatch, list[str], int], StudyBatch]:
    def spoil(batch: StudyBatch, names: list[str], epoch: int) -> StudyBatch:
        if study in names or study == "*":
            batch.images[IMAGE_LOCAL_A][:] = torch.nan
        return batch

    return spoil


VISION_ONLY = ["itc=none", "mm=false", "txt=false", "loop.batch=2", "loop.save_every=2", "loop.log_every=1"]


def test_a_step_that_is_not_finite_changes_nothing_is_counted_and_names_its_studies(opened: Any, tmp_path: Path) -> None:
    weights: dict[int, torch.Tensor] = {}
    made = trainer(opened, tmp_path / "run", settings=VISION_ONLY, steps=4, spoil=spoiled("s3"))
    made.after_step = lambda step: weights.update({step: made.learner.model.swin.patch_embed.proj.weight.detach().clone()})
    assert made.run() == 0
    skipped = [record for record in read_log(tmp_path / "run") if record.get("event") == "skipped"]
    assert len(skipped) == made.progress.skipped == 1 and "s3" in skipped[0]["studies"]
    at = skipped[0]["step"]
    if at > 1:
        assert torch.equal(weights[at], weights[at - 1])
    assert not torch.equal(weights[at], weights[at % 4 + 1]) or at == 4
    assert all(bool(value.isfinite().all()) for value in state(tmp_path / "run").values() if value.is_floating_point())


def test_steps_that_stay_not_finite_stop_the_run_with_a_reason(opened: Any, tmp_path: Path) -> None:
    settings = [*VISION_ONLY, "loop.skips_in_a_row=2"]
    with pytest.raises(TrainingError, match="not finite") as caught:
        trainer(opened, tmp_path / "run", settings=settings, steps=6, spoil=spoiled("*")).run()
    assert "2 steps in a row" in caught.value.found and "precision" in caught.value.next_step


def test_best_is_the_first_of_the_highest_score_and_ties_go_to_the_second_metric(opened: Any, tmp_path: Path) -> None:
    figures = iter([{"R@1": 0.2, "R@10": 0.9}, {"R@1": 0.4, "R@10": 0.5}, {"R@1": 0.4, "R@10": 0.6}, {"R@1": 0.4, "R@10": 0.6}])
    made = trainer(
        opened, tmp_path / "run", steps=4, settings=[*TEXT_ONLY, "loop.validate_every=1"],
        selection=Selection(lambda learner: next(figures), ("R@1", "R@10")),
    )  # fmt: skip
    made.run()
    best = Checkpoints(tmp_path / "run").load_best()
    assert best is not None and best.step == 3 and best.facts["figures"] == {"R@1": 0.4, "R@10": 0.6}
    assert [r["best"] for r in read_log(tmp_path / "run") if r.get("event") == "validation"] == [True, True, True, False]


def test_a_remark_on_the_figures_is_said_once_for_each_validation_that_has_one(
    opened: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = iter([{"R@1": 0.0}, {"R@1": 0.4}])
    remark = lambda seen: "nothing was found" if seen["R@1"] == 0 else ""  # noqa: E731
    selection = Selection(lambda learner: next(figures), ("R@1",), remark)
    trainer(opened, tmp_path / "run", steps=2, settings=[*TEXT_ONLY, "loop.validate_every=1"], selection=selection).run()
    assert capsys.readouterr().err.count("nothing was found") == 1


def test_validation_moves_no_bit_of_the_training(opened: Any, tmp_path: Path) -> None:
    def drawing(learner: Learner) -> dict[str, float]:
        learner.eval()
        learner.train()
        return {"R@1": float(torch.rand(()))}

    trainer(opened, tmp_path / "without").run()
    trainer(
        opened, tmp_path / "with", settings=[*TEXT_ONLY, "loop.validate_every=1"], selection=Selection(drawing, ("R@1",))
    ).run()  # fmt: skip
    first, second = state(tmp_path / "without"), state(tmp_path / "with")
    assert not [name for name in first if not name.startswith("random/") and not torch.equal(first[name], second[name])]


def test_the_log_has_what_a_person_wants_to_know(opened: Any, tmp_path: Path) -> None:
    trainer(opened, tmp_path / "run", steps=2).run()
    records = read_log(tmp_path / "run")
    assert [record["step"] for record in records] == [1, 2]
    wanted = {
        "loss",
        "losses",
        "learning_rate",
        "gradient_norm",
        "seconds",
        "volumes_per_second",
        "waiting_share",
        "memory_mib",
        "skipped",
        "quarantined",
    }
    assert wanted <= set(records[0]) and 0 <= records[0]["waiting_share"] <= 1 and records[0]["memory_mib"] > 10
    assert (tmp_path / "run" / "training_curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_torn_last_line_of_the_log_is_left_out_and_later_steps_are_forgotten_on_resume(tmp_path: Path) -> None:
    lines = [json.dumps({"step": n, "losses": {"a_loss": 1.0}}) for n in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "los', encoding="utf-8")
    RunLog(tmp_path, first_step=2, stream=io.StringIO()).close()
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2]


def test_the_progress_line_names_losses_speed_waiting_time_left_and_memory() -> None:
    line = progress_line(3, 10, {"match_loss": 0.5}, 1.25, volumes=2.5, waiting=0.04, left=3725, memory_mib=512)
    assert line == "step 3/10  loss 1.250  match 0.500  2.5 volumes/s  waiting 4%  left 1:02:05  512 MiB"
    assert clock(59.6) == "0:01:00"


def test_a_terminal_gets_one_living_line_and_a_file_gets_lines(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, marks in ((Terminal(), "\r"), (io.StringIO(), "\n")):
        log = RunLog(tmp_path, first_step=0, stream=stream)
        log.progress("one")
        log.progress("two")
        log.say("stays")
        log.close()
        assert stream.getvalue().count(marks) == (2 if marks == "\r" else 3) and stream.getvalue().endswith("stays\n")


def test_no_curves_are_drawn_without_records(tmp_path: Path) -> None:
    assert draw_curves(tmp_path) is False
