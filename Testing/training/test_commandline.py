"""What the training scripts share: light to import, errors in words, exit codes, settings printed as they are read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import commandline
import demo_model
import pytest
from commandline import PROBLEM, USAGE

from VelvetMedLib.engine.trainer import STOPPED
from VelvetMedLib.errors import TrainingError, UsageError
from VelvetMedLib.recipes.overrides import overridden
from VelvetMedLib.recipes.velvet import micro

FOLDER = Path(commandline.__file__).parent


@pytest.mark.parametrize("script", ["pretrain", "finetune", "ablation", "demo_model"])
def test_a_script_imports_nothing_but_the_standard_library_until_it_trains(script: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import {script}; print(','.join(sys.modules))"
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=True)
    assert not {"torch", "numpy", "SimpleITK", "slicer"} & set(done.stdout.decode("utf-8").strip().split(","))


def _raise(error: Exception) -> Any:
    raise error


def test_errors_of_the_user_become_codes_and_four_parts_and_others_are_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    parts: dict[str, str] = {"found": "a", "expected": "b", "next_step": "c"}
    assert commandline.carry_out(lambda: 75, traceback=False) == 75
    assert commandline.carry_out(lambda: _raise(TrainingError("It stopped.", **parts)), traceback=False) == PROBLEM
    assert commandline.carry_out(lambda: _raise(UsageError("Wrong words.", **parts)), traceback=False) == USAGE
    said = capsys.readouterr().err
    assert "It stopped." in said and "Wrong words." in said and "Next:" in said and "Traceback" not in said
    with pytest.raises(TrainingError):
        commandline.carry_out(lambda: _raise(TrainingError("It stopped.", **parts)), traceback=True)
    with pytest.raises(ZeroDivisionError):
        commandline.carry_out(lambda: 1 // 0, traceback=False)
    assert commandline.carry_out(lambda: 0, traceback=False, also_needed=["no_such_package"]) == PROBLEM
    assert "no_such_package" in capsys.readouterr().err


def test_printed_settings_can_be_given_back_as_changes(capsys: pytest.CaptureFixture[str]) -> None:
    changed = overridden(micro(), ["views.fine_spacing_mm=2,2,3", "loop.batch=4"])
    commandline.print_settings(changed)
    lines = [line for line in capsys.readouterr().out.splitlines() if "None" not in line and not line.endswith("=")]
    assert "views.fine_spacing_mm=2.0,2.0,3.0" in lines
    assert overridden(micro(), lines) == changed


def test_the_demo_training_says_what_is_wrong_with_its_cohort(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    line = ["--cohort", str(tmp_path / "none"), "--run", str(tmp_path / "run"), "--out", str(tmp_path / "bundle")]
    assert demo_model.main(line) in (PROBLEM, USAGE)
    said = capsys.readouterr().err
    assert "Next:" in said and "Traceback" not in said and str(tmp_path) not in said


def test_a_stage_that_stopped_on_request_ends_the_demo_training_with_the_code_of_an_orderly_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    from demo import training
    from demo.stages import StoppedOnRequest

    monkeypatch.setattr(training, "_stages", lambda options: _raise(StoppedOnRequest()))
    line = ["--cohort", str(tmp_path), "--run", str(tmp_path / "run"), "--out", str(tmp_path / "bundle")]
    assert demo_model.main(line) == STOPPED


def test_a_training_takes_its_freed_memory_again_instead_of_asking_the_system_for_pages():
    code = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from commandline import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit(3)
def fill():
    bytearray(b"x") * (1 << 26)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    runs = {
        name: subprocess.run([sys.executable, "-c", code, name, str(FOLDER)], capture_output=True, text=True) for name in ("plain", "kept")
    }
    if runs["kept"].returncode == 3:
        pytest.skip("not glibc: nothing can be asked of it")
    faults = {name: int(run.stdout) for name, run in runs.items()}
    assert faults["kept"] < faults["plain"] / 10
