"""The source tree as the house tests see it: which files belong to it, and what each Python file imports."""

from __future__ import annotations

import ast
import gc
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_NOT_OURS = {".venv", ".git", "__pycache__", "node_modules", "demo", "runs", "build", "dist", "screenshots"}


@cache
def own_files() -> tuple[Path, ...]:
    """Every file that is, or would be, committed. Without git: every file outside the folders that are made."""
    try:
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=30).stdout.decode("utf-8").split("\0")
        paths = [ROOT / name for name in listed if name]
    except (OSError, subprocess.SubprocessError):
        paths = [path for path in ROOT.rglob("*") if not _NOT_OURS.intersection(path.relative_to(ROOT).parts)]
    return tuple(sorted(path for path in paths if path.is_file() and not path.is_symlink()))


def python_files(*folders: str) -> list[Path]:
    """The tree's Python files below the named folders (all of it without a name)."""
    roots = [ROOT / folder for folder in folders] or [ROOT]
    return [path for path in own_files() if path.suffix == ".py" and any(path.is_relative_to(root) for root in roots)]


def text_of(path: Path) -> str | None:
    """The text of a file, or None for a binary one."""
    data = path.read_bytes()
    if b"\0" in data[:8192]:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


@cache
def parsed(path: Path) -> ast.Module:
    # Python 3.11's parser fails if the garbage collector runs somebody's finaliser in the midst of it.
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=path.name)
    finally:
        gc.enable()


@dataclass(frozen=True)
class Import:
    """One imported module name, as written absolutely; `scope`: "file", "function" or "typing" (only for type checkers)."""

    name: str
    scope: str
    line: int

    @property
    def top(self) -> str:
        return self.name.split(".")[0]


def imports_of(path: Path) -> list[Import]:
    """All imports of a file, wherever they stand; `from a import b` gives `a.b` if that is a module of ours, else `a`."""
    return list(_walk(parsed(path), "file", path))


def _walk(node: ast.AST, scope: str, path: Path) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inner = scope
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inner = "typing" if scope == "typing" else "function"
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for statement in child.body:
                yield from _walk(ast.Module([statement], []), "typing", path)
            for statement in child.orelse:
                yield from _walk(ast.Module([statement], []), scope, path)
            continue
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, scope, child.lineno)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(child, path)
            for alias in child.names:
                full = f"{base}.{alias.name}"
                yield Import(full if _is_module(full) else base, scope, child.lineno)
        yield from _walk(child, inner, path)


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    if not node.level:
        return node.module or ""
    package = list(path.relative_to(ROOT).parent.parts)
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def module_name(path: Path) -> str:
    """`VelvetMedLib/ct/read.py` -> `VelvetMedLib.ct.read`."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_standard(name: str) -> bool:
    return name in sys.stdlib_module_names
