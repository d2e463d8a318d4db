"""What may and may not be in the repository: sizes, kinds of files, words, first lines, one version."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import VelvetMedLib
from Testing.house.tree import ROOT, own_files, parsed, python_files, text_of

MEBIBYTE = 1 << 20
NEVER = {".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin", ".whl", ".dcm", ".joblib", ".onnx", ".zip", ".tgz", ".exe", ".so", ".dll"}
ONLY_IN_ASSETS = (".safetensors", ".nii", ".nii.gz", ".nrrd", ".npz", ".npy")
LONGEST_PYTHON_FILE = 450
SHARED_TEXT = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "CMakeLists.txt", "pyproject.toml")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _size(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def test_no_wheel_pickle_scan_or_program_is_in_the_repository():
    assert not [_name(path) for path in own_files() if path.suffix.lower() in NEVER]


def test_weights_and_volumes_are_only_among_the_librarys_assets():
    assets = ROOT / "VelvetMedLib" / "assets"
    assert not [_name(path) for path in own_files() if path.name.lower().endswith(ONLY_IN_ASSETS) and not path.is_relative_to(assets)]


def test_the_demo_bundle_and_the_atlas_keep_their_sizes():
    assets = ROOT / "VelvetMedLib" / "assets"
    bundles = {path for path in assets.glob("bundles/*") if path.is_dir()}
    for bundle in bundles:
        assert _size([path for path in own_files() if path.is_relative_to(bundle)]) <= 20 * MEBIBYTE, _name(bundle)
    assert _size([path for path in own_files() if path.is_relative_to(assets / "atlas")]) <= 1 * MEBIBYTE


def test_every_other_file_is_small():
    bundles = ROOT / "VelvetMedLib" / "assets" / "bundles"
    pictures = (".png", ".jpg", ".webp")
    broken = []
    for path in own_files():
        limit = 2 * MEBIBYTE if path.suffix in pictures else MEBIBYTE
        if not path.is_relative_to(bundles) and path.stat().st_size > limit:
            broken.append(f"{_name(path)}: {path.stat().st_size}")
    assert not broken


def test_every_python_file_begins_by_saying_what_it_is_for():
    broken = []
    for path in python_files():
        first = next((line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#!")), "")
        if ast.get_docstring(parsed(path)) is None or not re.match(r'r?"""\S', first):
            broken.append(_name(path))
    assert not broken


def test_python_files_stay_small_enough_to_hold_in_the_head():
    lengths = {
        _name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in python_files("VelvetMedLib", "VelvetMed", "training")
    }
    assert not {name: length for name, length in lengths.items() if length > LONGEST_PYTHON_FILE}


def test_every_folder_of_the_library_with_python_in_it_is_a_package():
    folders = {path.parent for path in python_files("VelvetMedLib")}
    assert not [_name(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def test_nothing_is_marked_as_left_undone():
    marks = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")
    broken = [
        f"{_name(path)}:{number}"
        for path in own_files()
        if (text := text_of(path)) is not None
        and path.suffix in {".py", ".md", ".toml", ".txt", ".sh", ".cmake", ".ui", ".html", ".js", ".yml"}
        for number, line in enumerate(text.splitlines(), 1)
        if marks.search(line)
    ]
    assert not broken


def test_no_file_names_a_folder_of_the_machine_it_was_written_on():
    here = {str(ROOT), str(Path.home()), sys.base_prefix, sys.prefix} - {"/", "/usr", "/usr/local"}
    # Made-up homes and program folders are fine in tests and examples; the build machine's own places are not.
    personal = ["/" + folder + "/" for folder in ("root", "work")]
    pattern = re.compile(
        "|".join([rf"(?<![\w.\-:>])(?:{'|'.join(map(re.escape, personal))})\w", *(re.escape(path) + r"\b" for path in here)])
    )
    broken = [
        f"{_name(path)}:{number}"
        for path in own_files()
        if (text := text_of(path)) is not None
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert not broken


def test_no_file_names_the_host_of_a_package_registry():
    hosts = [
        ".".join(parts)
        for parts in (
            ("pypi", "org"),
            ("pythonhosted", "org"),
            ("registry", "npmjs"),
            ("npmjs", "com"),
            ("deb", "debian", "org"),
            ("download", "pytorch"),
            ("anaconda", "org"),
            ("crates", "io"),
            ("unpkg", "com"),
            ("jsdelivr", "net"),
        )
    ]
    broken = [f"{_name(path)}: {host}" for path in own_files() if (text := text_of(path)) is not None for host in hosts if host in text]
    assert not broken


def test_no_text_of_the_product_claims_what_research_software_may_not():
    claims = re.compile(r"\bdiagnos(?:e|es|ed)\b|\bFDA\b|\bCE[- ]marked\b|\bclinical[- ]grade\b|\bproven\b", re.IGNORECASE)
    broken = [
        f"{_name(path)}:{number}: {line.strip()[:80]}"
        for path in own_files()
        if not path.is_relative_to(ROOT / "Testing") and path.name != "LICENSE.txt" and path.suffix not in {".safetensors", ".nii", ".gz"}
        if (text := text_of(path)) is not None
        for number, line in enumerate(text.splitlines(), 1)
        if claims.search(line)
    ]
    assert not broken


def test_the_readme_says_research_use_only_on_its_first_screen():
    first_screen = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:15])
    assert VelvetMedLib.RESEARCH_USE_ONLY in first_screen


def test_one_version_stands_everywhere():
    version = VelvetMedLib.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "VelvetMedLib.__version__"}
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_citation_names_the_three_methods():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert all(number in text for number in ("2508.12108", "2510.15042", "2312.01529"))


def test_the_licence_is_apache_2_and_every_page_that_must_exist_does():
    assert "Apache License" in (ROOT / "LICENSE.txt").read_text(encoding="utf-8")
    assert not [name for name in SHARED_TEXT if not (ROOT / name).is_file()]


def test_the_entry_point_of_the_command_line_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, function = project["scripts"]["velvetmed"].split(":")
    place = ROOT.joinpath(*module.split("."))
    path = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
    defined = {node.name for node in parsed(path).body if isinstance(node, ast.FunctionDef)}
    imported = {alias.asname or alias.name for node in parsed(path).body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert function in defined | imported


def test_every_section_of_the_methods_page_that_the_code_names_exists():
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^#+ (\d(?:\.\d+)?)", page, re.MULTILINE)) | set(re.findall(r"^\*\*(\d\.\d+[a-z]) ", page, re.MULTILINE))
    named = [(path, n) for path in python_files() for n in re.findall(r"\bmethods\.md`? (\d(?:\.\d+[a-z]?)?)", text_of(path) or "")]
    assert len(named) > 20
    assert not [f"{_name(path)}: {n}" for path, n in named if n not in sections]
