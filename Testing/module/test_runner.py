"""The worker's interpreter, command and environment, and where the library lies. Of Slicer only the translator is needed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def module_on_path(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "VelvetMed"))


def surroundings(**changes: Any) -> Any:
    from VelvetMedCore.runner import Surroundings

    values = {
        "own_env": {"PATH": "/slicer/bin", "PYTHONHOME": "/slicer/python", "LD_LIBRARY_PATH": "/slicer/lib"},
        "startup_env": lambda: {"PATH": "/usr/bin", "PYTHONHOME": "x", "PYTHONPATH": "y", "PYTHONSTARTUP": "z", "LANG": "de_DE.UTF-8"},
        "which": lambda name: f"/slicer/bin/{name}",
    }
    return Surroundings(**{**values, **changes})


def test_slicers_own_python_runs_in_slicers_own_environment() -> None:
    from VelvetMedCore.runner import worker_command

    command = worker_command(REPOSITORY, "", surroundings())
    assert command.argv[0] == "/slicer/bin/PythonSlicer"
    assert command.env == {
        "PATH": "/slicer/bin",
        "PYTHONHOME": "/slicer/python",
        "LD_LIBRARY_PATH": "/slicer/lib",
        "PYTHONUTF8": "1",
    }


def test_another_python_runs_in_a_cleaned_startup_environment() -> None:
    from VelvetMedCore.runner import worker_command

    command = worker_command(REPOSITORY, sys.executable, surroundings())
    assert command.argv[0] == sys.executable
    assert command.env == {"PATH": "/usr/bin", "LANG": "de_DE.UTF-8", "PYTHONNOUSERSITE": "1", "PYTHONUTF8": "1"}


def test_the_library_root_is_passed_as_an_argument_in_both_cases() -> None:
    from VelvetMedCore.runner import worker_command

    for own_python in ("", sys.executable):
        argv = worker_command(REPOSITORY, own_python, surroundings()).argv
        assert argv[argv.index("--library-root") + 1] == str(REPOSITORY)


def test_a_missing_pythonslicer_is_said_in_four_parts() -> None:
    from VelvetMedCore.runner import find_interpreter
    from VelvetMedLib.errors import WorkerError

    with pytest.raises(WorkerError) as caught:
        find_interpreter("", surroundings(which=lambda name: None))
    assert "PythonSlicer" in caught.value.found and caught.value.next_step


def test_a_chosen_python_that_is_not_there_is_refused_without_naming_its_path() -> None:
    from VelvetMedCore.runner import find_interpreter
    from VelvetMedLib.errors import WorkerError

    with pytest.raises(WorkerError) as caught:
        find_interpreter("/home/jane/secret/python", surroundings())
    assert "jane" not in str(caught.value)


def test_the_command_line_in_the_workers_python_imports_the_given_library(tmp_path: Path) -> None:
    from VelvetMedCore.runner import cli_command

    package = tmp_path / "VelvetMedLib"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "cli.py").write_text("def main(argv):\n    print('words', argv)\n    return 3\n", encoding="utf-8")
    command = cli_command(tmp_path, sys.executable, ("sample", "--json"), surroundings(startup_env=dict))
    done = subprocess.run(list(command.argv), capture_output=True, text=True, encoding="utf-8", check=False, env=command.env, cwd="/")
    assert (done.returncode, done.stdout.strip()) == (3, "words ['sample', '--json']")


@pytest.mark.parametrize("installed", [False, True])
def test_the_library_is_found_in_a_source_tree_and_in_an_installed_tree(tmp_path: Path, installed: bool) -> None:
    """Source: VelvetMed/ beside VelvetMedLib/. Installed: VelvetMed.py and VelvetMedLib/ in one folder."""
    module_folder = tmp_path / "VelvetMed" if not installed else tmp_path
    shutil.copytree(REPOSITORY / "VelvetMed" / "VelvetMedCore", module_folder / "VelvetMedCore")
    shutil.copytree(REPOSITORY / "VelvetMedLib", tmp_path / "VelvetMedLib", ignore=shutil.ignore_patterns("assets", "__pycache__"))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from VelvetMedCore.library import library_root, make_importable; make_importable();"
        "import VelvetMedLib, VelvetMedLib.worker.client; print(library_root()); print(VelvetMedLib.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(module_folder)], capture_output=True, text=True, encoding="utf-8", check=True, cwd="/"
    )
    root, library = done.stdout.split("\n")[:2]
    assert Path(root) == tmp_path.resolve() and Path(library).parent == tmp_path.resolve() / "VelvetMedLib"


def test_an_incomplete_installation_is_said_in_words(tmp_path: Path) -> None:
    from VelvetMedCore.library import library_root

    with pytest.raises(FileNotFoundError, match="install the extension again"):
        library_root(tmp_path)
