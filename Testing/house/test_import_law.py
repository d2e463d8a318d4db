"""Who may import whom, and what may depend on what: the walls of the house, read from the source and tried by importing."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest

from Testing.house.tree import ROOT, Import, imports_of, is_standard, module_name, python_files

BASE = {"ct", "reports", "case"}
"""Rooms that everyone may use (as long as they are not above one another)."""

MAY_IMPORT = {
    "ct": set(),
    "reports": set(),
    "case": {"ct", "reports"},
    "cohorts": BASE,
    "models": BASE,
    "objectives": BASE | {"models"},
    "recipes": BASE | {"models", "objectives"},
    "engine": BASE | {"models", "objectives", "recipes"},
    "bundle": BASE | {"models"},
    "tasks": BASE | {"models", "bundle"},
    "exports": BASE | {"models", "bundle", "tasks"},
    "evaluation": BASE | {"models", "bundle", "tasks", "cohorts"},
    "worker": BASE | {"models", "bundle", "tasks"},
    "cli": None,  # all
}
COMMON = {"errors", "files", "shapes", ""}
"""Modules at the library's root that every room uses."""

LIGHT = {"numpy", "SimpleITK"}
RUNTIME = LIGHT | {"torch", "safetensors", "tokenizers"}
IN_SLICER = ("ct", "reports", "case", "worker.client", "worker.protocol", "worker.child", "worker.private", "worker.wording")
RUNTIME_ROOMS = ("models", "bundle", "tasks", "worker.server", "worker.handlers")
HEAVY = (
    "torch",
    "monai",
    "transformers",
    "safetensors",
    "tokenizers",
    "highdicom",
    "jinja2",
    "matplotlib",
    "psycopg",
    "rich",
    "scipy",
    "sklearn",
    "tyro",
)


def _room(module: str) -> str:
    """`VelvetMedLib.ct.read` -> `ct`; the package itself -> ``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def _within(module: str, places: tuple[str, ...]) -> bool:
    name = module.removeprefix("VelvetMedLib.")
    return any(name == place or name.startswith(place + ".") for place in places)


def _library() -> list[tuple[str, Import]]:
    return [(module_name(path), found) for path in python_files("VelvetMedLib") for found in imports_of(path)]


def test_every_room_is_known_to_the_law():
    rooms = {path.relative_to(ROOT).parts[1] for path in python_files("VelvetMedLib") if len(path.relative_to(ROOT).parts) > 2}
    assert rooms <= set(MAY_IMPORT), f"a new room needs its place in the law: {rooms - set(MAY_IMPORT)}"


def test_rooms_import_only_rooms_below_them():
    broken = []
    for module, found in _library():
        room, allowed = _room(module), MAY_IMPORT.get(_room(module))
        if found.top != "VelvetMedLib" or room in COMMON or allowed is None:
            continue
        other = _room(found.name)
        if other not in COMMON | allowed | {room}:
            broken.append(f"{module}:{found.line} imports {found.name}")
    assert not broken


def test_the_root_modules_import_no_room_except_for_type_checkers():
    broken = [
        f"{module}:{found.line} imports {found.name}"
        for module, found in _library()
        if module in {"VelvetMedLib", "VelvetMedLib.errors", "VelvetMedLib.files", "VelvetMedLib.shapes"} and found.scope != "typing"
        if found.top == "VelvetMedLib" and _room(found.name) not in COMMON
    ]
    assert not broken


def test_the_library_never_imports_training_tests_benchmarks_or_the_slicer_side():
    forbidden = {
        "training",
        "Testing",
        "benchmarks",
        "VelvetMed",
        "VelvetMedCore",
        "VelvetMedPanels",
        "slicer",
        "qt",
        "ctk",
        "vtk",
        "PySide6",
    }
    broken = [f"{module}:{found.line} imports {found.name}" for module, found in _library() if found.top in forbidden]
    assert not broken


def test_nothing_imports_the_command_line_but_python_dash_m():
    broken = [
        f"{module}:{found.line}"
        for module, found in _library()
        if found.name.startswith("VelvetMedLib.cli") and _room(module) != "cli" and module != "VelvetMedLib.__main__"
    ]
    assert not broken


def test_the_slicer_module_uses_only_the_light_side_of_the_library():
    allowed = ("ct", "reports", "case", "worker.client", "errors", "shapes")
    broken = [
        f"{path.name}:{found.line} imports {found.name}"
        for path in python_files("VelvetMed")
        for found in imports_of(path)
        if found.top == "VelvetMedLib" and found.name != "VelvetMedLib" and not _within(found.name, allowed)
    ]
    assert not broken


def test_the_slicer_module_imports_at_file_scope_only_what_slicer_ships():
    allowed = {"slicer", "vtk", "qt", "ctk", "numpy", "SimpleITK", "VelvetMedLib", "VelvetMedCore", "VelvetMedPanels", "VelvetMed"}
    broken = [
        f"{path.name}:{found.line} imports {found.name}"
        for path in python_files("VelvetMed")
        for found in imports_of(path)
        if found.scope == "file" and found.top not in allowed and not is_standard(found.top)
    ]
    assert not broken


@pytest.mark.parametrize(
    ("places", "at_file_scope", "in_functions"),
    [
        (IN_SLICER, LIGHT, {"pydicom"}),
        (RUNTIME_ROOMS, RUNTIME, {"pydicom", "transformers", "peft", "psycopg"}),
    ],
    ids=["in Slicer's process", "runtime"],
)
def test_each_layer_depends_only_on_the_packages_it_may(places, at_file_scope, in_functions):
    broken = []
    for module, found in _library():
        if not _within(module, places) or found.scope == "typing" or found.top == "VelvetMedLib" or is_standard(found.top):
            continue
        allowed = at_file_scope if found.scope == "file" else at_file_scope | in_functions
        if found.top not in allowed:
            broken.append(f"{module}:{found.line} imports {found.name} at {found.scope} scope")
    assert not broken


def test_every_package_that_the_library_imports_is_declared_and_optional_ones_only_inside_functions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    runtime = {_import_name(line) for line in project["dependencies"]}
    optional = {_import_name(line) for extra, lines in project["optional-dependencies"].items() if extra != "dev" for line in lines}
    broken = []
    for module, found in _library():
        if found.top == "VelvetMedLib" or is_standard(found.top) or found.scope == "typing":
            continue
        # Recipes, engine and evaluation are only ever used with their extra installed.
        wide = _room(module) in {"objectives", "recipes", "engine", "evaluation"}
        if found.top not in (runtime | optional if wide or found.scope == "function" else runtime):
            broken.append(f"{module}:{found.line} imports {found.name} at {found.scope} scope")
    assert not broken


def _import_name(requirement: str) -> str:
    name = requirement
    for mark in "<>=!~[; ":
        name = name.split(mark)[0]
    return {"scikit-learn": "sklearn"}.get(name, name)


BLOCKER = """
import importlib, sys
blocked = set(sys.argv[1].split(","))
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by the test)", name=name)
sys.meta_path.insert(0, Wall())
sys.path.insert(0, sys.argv[2])
for name in sys.argv[3:]:
    importlib.import_module(name)
print(",".join(sorted(m for m in sys.modules if "." not in m)))
"""


def _import_in_a_fresh_python(modules: list[str], blocked: tuple[str, ...]) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER, ",".join(blocked), str(ROOT), *modules], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stdout.strip().split(","))


def test_importing_the_library_is_light_and_pulls_no_torch_and_no_numpy():
    loaded = _import_in_a_fresh_python(["VelvetMedLib", "VelvetMedLib.errors"], ())
    assert not loaded & {*HEAVY, "numpy", "SimpleITK", "pydicom"}


def test_what_runs_inside_slicer_imports_with_everything_heavy_blocked():
    modules = [module_name(path) for path in python_files("VelvetMedLib") if _within(module_name(path), IN_SLICER)]
    loaded = _import_in_a_fresh_python(modules, (*HEAVY, "pydicom", "slicer", "qt", "vtk"))
    assert "torch" not in loaded


def test_the_runtime_imports_with_training_and_review_packages_blocked():
    modules = [module_name(path) for path in python_files("VelvetMedLib") if _within(module_name(path), RUNTIME_ROOMS)]
    blocked = ("monai", "transformers", "peft", "highdicom", "jinja2", "matplotlib", "scipy", "sklearn", "tyro", "slicer", "qt", "vtk")
    _import_in_a_fresh_python(modules, blocked)


def test_the_worker_client_and_server_start_without_torch():
    loaded = _import_in_a_fresh_python(["VelvetMedLib.worker.client", "VelvetMedLib.worker.server", "VelvetMedLib.worker.handlers"], HEAVY)
    assert "SimpleITK" not in loaded
