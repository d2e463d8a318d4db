"""`velvetmed doctor` answers in the very Python that lacks something: that is when it is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
lacking, words = sys.argv[1], sys.argv[2:]
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == lacking:
            raise ModuleNotFoundError(f"No module named {lacking!r}", name=lacking)
sys.meta_path.insert(0, Absent())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == lacking else found(name, package)
from VelvetMedLib.cli import main
sys.exit(main(words))
"""


def run(repository: Path, lacking: str, *words: str) -> tuple[int, dict]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, lacking, *words], capture_output=True, text=True, encoding="utf-8", check=False, cwd=repository
    )
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("lacking", ["torch", "numpy", "safetensors"])
def test_what_is_missing_is_listed_among_what_is_there(repository: Path, lacking: str) -> None:
    code, report = run(repository, lacking, "doctor", "--json")
    checks = {check["name"]: check for check in report["checks"]}
    assert code == 0 and report["ready"] is False
    assert checks[lacking]["ok"] is False and lacking in checks[lacking]["todo"]
    assert checks["Python"]["ok"] is True and checks["SimpleITK"]["ok"] is True


def test_a_verb_that_needs_what_is_missing_names_it(repository: Path) -> None:
    code, report = run(repository, "numpy", "models", "list", "--json")
    assert code != 0 and "numpy" in report["error"]["what"] and report["error"]["next_step"]
