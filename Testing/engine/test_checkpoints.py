"""Checkpoints: whole or absent, verified, never fewer than one good one; and the run folder around them."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch

from VelvetMedLib.engine import checkpoints, files
from VelvetMedLib.engine.checkpoints import Checkpoints, read_checkpoint
from VelvetMedLib.engine.runfolder import RunFolder, environment
from VelvetMedLib.errors import TrainingError


def parts(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"weights": {"a": torch.full((64, 64), value)}, "optimiser": {"a/step": torch.tensor(value)}}


def saved(run: Path, steps: int) -> Checkpoints:
    made = Checkpoints(run)
    for step in range(1, steps + 1):
        made.save(step, parts(step), {"note": step})
    return made


def test_the_last_and_the_one_before_are_kept(tmp_path: Path) -> None:
    made = saved(tmp_path, 3)
    found = made.load()
    assert found is not None and found.step == 3 and found.facts == {"note": 3} and not found.note
    assert found.parts["weights"]["a"][0, 0] == 3.0
    assert read_checkpoint(tmp_path / "checkpoints" / "previous").step == 2
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["last", "previous"]


def test_a_run_without_checkpoints_begins_anew(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).load() is None


@pytest.mark.parametrize("damage", ["cut", "bit", "gone", "mark", "mark cut"])
def test_a_damaged_last_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, damage: str) -> None:
    made = saved(tmp_path, 2)
    weights, mark = tmp_path / "checkpoints/last/weights.safetensors", tmp_path / "checkpoints/last/state.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "bit":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(bytes(data))
    elif damage == "gone":
        weights.unlink()
    elif damage == "mark":
        mark.unlink()
    else:
        mark.write_text(mark.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    found = made.load()
    assert found is not None and found.step == 1 and "damaged" in found.note


def test_when_every_checkpoint_is_damaged_the_run_says_so_and_does_not_begin_anew(tmp_path: Path) -> None:
    made = saved(tmp_path, 2)
    for name in ("last", "previous"):
        (tmp_path / "checkpoints" / name / "weights.safetensors").unlink()
    with pytest.raises(TrainingError) as caught:
        made.load()
    assert "last" in caught.value.found and "previous" in caught.value.found


@pytest.mark.parametrize("stage", ["weights", "mark", "rename"])
def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_how_much_space_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    made = saved(tmp_path, 2)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    place = {"weights": (checkpoints, "save_tensors"), "mark": (checkpoints, "write_json"), "rename": (checkpoints, "put_folder")}[stage]
    with monkeypatch.context() as patch:
        patch.setattr(*place, full)
        with pytest.raises(TrainingError) as caught:
            made.save(3, parts(3), {})
    assert "No space left" in caught.value.found and "MiB" in caught.value.expected and "step 2" in caught.value.next_step
    found = made.load()
    assert found is not None and found.step == 2
    made.save(3, parts(3), {})
    again = made.load()
    assert again is not None and again.step == 3


class Killed(BaseException):
    pass


@pytest.mark.parametrize("renames", range(5))
def test_a_kill_between_any_two_renames_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    made = saved(tmp_path, 3)
    real, done = files.os.replace, []

    def counted(source: Path, target: Path) -> None:
        # The renames of folders only: those of single files are inside the hidden folder.
        if Path(source).is_dir():
            if len(done) == renames:
                raise Killed
            done.append(target)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", counted)
        try:
            made.save(4, parts(4), {})
            finished = True
        except Killed:
            finished = False
    found = Checkpoints(tmp_path).load()
    assert found is not None and found.step == (4 if finished else 3)
    assert found.parts["weights"]["a"][0, 0] == found.step
    Checkpoints(tmp_path).save(5, parts(5), {})
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith(".new")]


def test_best_is_kept_apart_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    made = saved(tmp_path, 2)
    made.save_best(1, {"weights": parts(7)["weights"]}, {"figures": {"R@1": 0.5}})
    made.save_best(2, {"weights": parts(8)["weights"]}, {"figures": {"R@1": 0.7}})
    best = made.load_best()
    assert best is not None and best.step == 2 and best.facts["figures"]["R@1"] == 0.7
    (tmp_path / "checkpoints/best/state.json").unlink()
    assert made.load_best() is None
    last = made.load()
    assert last is not None and last.step == 2


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    mark = tmp_path / "checkpoints/last/state.json"
    mark.write_text(json.dumps(json.loads(mark.read_text(encoding="utf-8")) | {"format_version": 99}), encoding="utf-8")
    with pytest.raises(TrainingError, match="99"):
        Checkpoints(tmp_path).load()


def test_a_run_folder_remembers_its_settings_and_refuses_others(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    settings = {"recipe": {"loop": {"batch": 4, "log_every": 1}, "itc": "all"}, "seed": 1}
    assert folder.check(settings) is False
    assert folder.check(settings) is True
    assert folder.check({**settings, "recipe": {"loop": {"batch": 4, "log_every": 9}, "itc": "all"}}) is True
    with pytest.raises(TrainingError) as caught:
        folder.check({**settings, "recipe": {"loop": {"batch": 8, "log_every": 1}, "itc": "top"}})
    assert "recipe.itc" in caught.value.found and "recipe.loop.batch" in caught.value.found
    folder.close()


def test_two_trainings_cannot_share_a_run_folder(tmp_path: Path) -> None:
    first = RunFolder(tmp_path)
    with pytest.raises(TrainingError, match="Another training"):
        RunFolder(tmp_path)
    first.close()
    RunFolder(tmp_path).close()


def test_a_run_folder_that_cannot_be_made_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(TrainingError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run")


def test_a_start_notes_versions_and_code_but_no_path_and_no_host(tmp_path: Path, repository: Path) -> None:
    facts = environment("cpu", repository)
    assert {"velvetmed", "python", "torch", "safetensors"} <= set(facts["versions"])
    text = json.dumps(facts)
    assert (str(repository) not in text and str(Path.home()) not in text.replace(str(Path.home().anchor), "", 0)) or Path.home() == Path(
        "/"
    )
    if shutil.which("git") and (repository / ".git").exists():
        assert len(facts["code"]["commit"]) == 40
    assert environment("cpu", tmp_path)["code"] == {}
