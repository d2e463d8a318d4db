"""Packaging of the Slicer extension: CMake lists against the disk, the catalogue entry, source and installed trees."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from Testing.house.tree import ROOT, own_files

URL = "https://example.org/SlicerVelvetMed"
REQUIRED = {"$schema", "category", "scm_url"}
ALLOWED = REQUIRED | {"scm_revision", "scm_type", "build_dependencies", "build_subdirectory", "enabled", "tier"}


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cmake_lists", ROOT / "scripts" / "cmake_lists.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _listed(name: str) -> set[str]:
    return set(re.findall(r'"([^"]+)"', (ROOT / "cmake" / name).read_text(encoding="utf-8")))


def _cmake_value(variable: str) -> str:
    found = re.search(rf'set\({variable} "([^"]*)"', (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"))
    assert found, f"CMakeLists.txt does not set {variable}"
    return found.group(1)


def problems_of(entry: dict[str, object]) -> list[str]:
    """What the extensions index would refuse in a catalogue entry, in our own words."""
    problems = [f"{name} is missing" for name in sorted(REQUIRED - set(entry))]
    problems += [f"{name} is not allowed" for name in sorted(set(entry) - ALLOWED)]
    schema = str(entry.get("$schema", ""))
    if not re.search(r"slicer-extension-catalog-entry-schema-v1\.0\.[012]\.json#?$", schema):
        problems.append("$schema is not the index's schema")
    if not re.fullmatch(r"(https|git)://[\w.-]+/[\w./-]+\.git", str(entry.get("scm_url", ""))):
        problems.append("scm_url is not the address of a git repository")
    for name in ("category", "scm_revision", "build_subdirectory"):
        if name in entry and not (isinstance(entry[name], str) and entry[name]):
            problems.append(f"{name} is not a text")
    if entry.get("scm_type", "git") not in {"git", "local"}:
        problems.append("scm_type is neither git nor local")
    dependencies = entry.get("build_dependencies", [])
    if not isinstance(dependencies, list) or not all(isinstance(item, str) and item for item in dependencies):
        problems.append("build_dependencies is not a list of names")
    if "enabled" in entry and not isinstance(entry["enabled"], bool):
        problems.append("enabled is neither true nor false")
    if entry.get("tier", 1) not in (1, 3, 5) or isinstance(entry.get("tier"), bool):
        problems.append("tier is not 1, 3 or 5")
    return problems


def _entry() -> dict[str, object]:
    text = (ROOT / "VelvetMed.json.in").read_text(encoding="utf-8").replace("@VelvetMed_REPOSITORY_URL@", URL)
    return json.loads(text)


def test_the_catalogue_entry_made_from_the_one_repository_address_is_accepted():
    assert problems_of(_entry()) == []
    assert _entry()["scm_url"] == URL + ".git"


@pytest.mark.parametrize(
    "change",
    [
        {"scm_url": ".git"},
        {"tier": 2},
        {"tier": True},
        {"homepage": "x"},
        {"build_dependencies": "PyTorch"},
        {"category": ""},
        {"$schema": "x"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_wrong_catalogue_entry_is_refused(change):
    assert problems_of(_entry() | change)


def test_the_catalogue_and_cmake_name_the_same_dependencies():
    assert _entry()["build_dependencies"] == _cmake_value("EXTENSION_DEPENDS").split(";")


def test_every_address_in_cmake_comes_from_the_one_variable():
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert "http" not in text
    for variable in ("EXTENSION_HOMEPAGE", "EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS"):
        assert _cmake_value(variable).startswith("${VelvetMed_REPOSITORY_URL}")


def test_pictures_that_cmake_names_exist():
    for variable in ("EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS"):
        name = _cmake_value(variable).split("/raw/main/")[1]
        assert (ROOT / name).is_file(), name


def test_the_project_is_not_called_slicer_something():
    name = re.search(r"^project\((\w+)", (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert name and name.group(1) == "VelvetMed"


def test_the_cmake_lists_name_exactly_the_files_on_disk():
    """`make cmake-lists` rewrites them."""
    tool = _tool()
    stale = [name for name, text in tool.lists().items() if (ROOT / name).read_text(encoding="utf-8") != text]
    assert not stale, f"run `make cmake-lists`: {stale}"


def test_every_listed_file_would_be_committed():
    committed = {path.relative_to(ROOT).as_posix() for path in own_files()}
    library = _listed("VelvetMedLib_files.cmake")
    module = {"VelvetMed/" + name for name in _listed("VelvetMed_files.cmake")}
    assert not (library | module) - committed


def test_an_installed_tree_made_from_the_lists_is_importable_beside_the_module(tmp_path: Path):
    """Slicer installs the library as a sibling of VelvetMed.py; only what is listed is there."""
    for name in _listed("VelvetMedLib_files.cmake"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    program = (
        "import VelvetMedLib, VelvetMedLib.ct, VelvetMedLib.case, VelvetMedLib.worker.client\n"
        "from VelvetMedLib.reports import ontology\n"
        "print(len(ontology().structures), VelvetMedLib.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[0] == "32" and str(tmp_path) in done.stdout
