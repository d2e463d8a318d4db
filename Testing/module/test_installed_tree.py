"""The module as a build installs it: only the files that CMake lists, library beside VelvetMed.py, opened in the host."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gui

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from pathlib import Path
tree, testing = Path(sys.argv[1]), sys.argv[2]
sys.path[:] = [testing, *(entry for entry in sys.path if entry not in ("", sys.argv[3]))]
from slicer_host.host import start
host = start()
module, instance = host.load_module(tree / "VelvetMed.py")
host.app.startupCompleted.emit()
widget, parent = host.open_widget(module)
import VelvetMedCore.logic, VelvetMedLib
assert Path(VelvetMedLib.__file__).resolve().parent == (tree / "VelvetMedLib").resolve(), VelvetMedLib.__file__
assert Path(VelvetMedCore.logic.__file__).resolve().parents[1] == tree.resolve()
assert "demo" in [entry.id for entry in widget.panels.analyze._models]
assert Path(instance.resourcePath("Icons/VelvetMed.png")).is_file()
widget.cleanup()
print("opened")
"""


def listed(name: str) -> list[str]:
    text = (REPOSITORY / "cmake" / name).read_text(encoding="utf-8")
    return re.findall(r'^\s*"([^"]+)"', text, re.MULTILINE)


def test_the_module_opens_in_a_tree_of_the_listed_files_alone(tmp_path: Path) -> None:
    tree = tmp_path / "qt-scripted-modules"
    for folder, names in ((REPOSITORY / "VelvetMed", listed("VelvetMed_files.cmake")), (REPOSITORY, listed("VelvetMedLib_files.cmake"))):
        assert names
        for name in names:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, tree / name)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tree), str(REPOSITORY / "Testing"), str(REPOSITORY)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout.strip().endswith("opened"), done.stderr[-3000:]
