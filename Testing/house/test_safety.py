"""What the source must never do: unpickle, run text as code, open a socket, start work at import."""

from __future__ import annotations

import ast
from pathlib import Path

from Testing.house.tree import ROOT, imports_of, parsed, python_files

PRODUCT = ("VelvetMedLib", "VelvetMed")
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
NETWORK = {
    "socket",
    "socketserver",
    "ssl",
    "http",
    "urllib.request",
    "ftplib",
    "smtplib",
    "xmlrpc",
    "requests",
    "httpx",
    "aiohttp",
    "websockets",
}
CONVERTER = ROOT / "training" / "convert_weights.py"
DOWNLOADER = ROOT / "VelvetMedLib" / "bundle" / "download.py"
"""The one file that may open a connection, for a model that the user has asked for and agreed to."""


def _calls(path: Path) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]


def _where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT).as_posix()}:{getattr(node, 'lineno', 0)}"


def test_no_product_or_training_file_imports_a_pickler():
    files = [path for path in python_files(*PRODUCT, "training") if path != CONVERTER]
    assert not [f"{path.name}:{found.line} {found.name}" for path in files for found in imports_of(path) if found.top in PICKLERS]


def test_no_product_or_training_file_calls_torch_load():
    files = [path for path in python_files(*PRODUCT, "training") if path != CONVERTER]
    assert not [
        _where(path, node) for path in files for name, node in _calls(path) if name in {"torch.load", "torch.jit.load", "torch.hub.load"}
    ]


def test_numpy_files_are_never_read_with_objects_allowed():
    broken = []
    for path in python_files(*PRODUCT, "training"):
        for name, node in _calls(path):
            allow = [keyword.value for keyword in node.keywords if keyword.arg == "allow_pickle"]
            if any(not (isinstance(value, ast.Constant) and value.value is False) for value in allow):
                broken.append(f"{_where(path, node)} {name}")
            if name in {"np.load", "numpy.load"} and not allow and not path.is_relative_to(ROOT / "training"):
                broken.append(f"{_where(path, node)} does not say allow_pickle=False")
    assert not broken


def test_no_text_is_ever_run_as_code():
    forbidden = {"eval", "exec", "compile", "__import__", "yaml.load", "os.system", "os.popen"}
    assert not [_where(path, node) for path in python_files(*PRODUCT) for name, node in _calls(path) if name in forbidden]


def test_no_process_is_started_through_a_shell():
    broken = [
        _where(path, node)
        for path in python_files(*PRODUCT, "training", "scripts")
        for _, node in _calls(path)
        for keyword in node.keywords
        if keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
    ]
    assert not broken


def test_the_library_and_the_module_open_no_socket():
    broken = [
        f"{path.name}:{found.line} {found.name}"
        for path in python_files(*PRODUCT)
        for found in imports_of(path)
        if (found.top in NETWORK or found.name in NETWORK) and path != DOWNLOADER
    ]
    assert not broken


def test_only_the_command_that_adds_a_model_reaches_the_downloader():
    """download <- bundle.published <- cli: neither Slicer's process nor the worker can come near it."""
    users = {"VelvetMedLib.bundle.download": {"published.py"}, "VelvetMedLib.bundle.published": {"models.py"}}
    for module, allowed in users.items():
        leaf = module.rsplit(".", 1)[-1]
        found = {
            path.name
            for path in python_files(*PRODUCT)
            if any(f"import {leaf}" in line or module in line for line in path.read_text(encoding="utf-8").splitlines() if "import" in line)
        }
        assert found == allowed, f"{module} is used by {sorted(found)}"


def test_module_files_do_no_work_when_they_are_imported():
    """Calls at file scope are limited to ones that only make names: loggers, aliases, dataclass machinery."""
    working = {
        "open",
        "print",
        "subprocess.run",
        "subprocess.Popen",
        "os.makedirs",
        "os.mkdir",
        "slicer.packaging.pip_ensure",
        "slicer.util.pip_install",
    }
    broken = []
    for path in python_files("VelvetMed"):
        for statement in parsed(path).body:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.If):
                continue
            for node in ast.walk(statement):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in working:
                    broken.append(_where(path, node))
    assert not broken


def test_text_files_are_opened_with_a_named_encoding():
    """A Windows code page must never decide what a report says."""
    broken = []
    for path in python_files(*PRODUCT, "training", "scripts"):
        for name, node in _calls(path):
            keywords = {keyword.arg for keyword in node.keywords}
            if (
                name.endswith((".read_text", ".write_text"))
                and "encoding" not in keywords
                and len(node.args) < (2 if name.endswith("write_text") else 1)
            ):
                broken.append(f"{_where(path, node)} {name}")
            if name == "open" or name.endswith(".open"):
                mode = next((keyword.value for keyword in node.keywords if keyword.arg == "mode"), None)
                position = 1 if name == "open" else 0
                mode = mode or (node.args[position] if len(node.args) > position else None)
                binary = isinstance(mode, ast.Constant) and isinstance(mode.value, str) and "b" in mode.value
                opens_text = isinstance(mode, ast.Constant) and isinstance(mode.value, str) and set(mode.value) <= set("rwax+t")
                if opens_text and not binary and "encoding" not in keywords:
                    broken.append(f"{_where(path, node)} {name}")
    assert not broken
