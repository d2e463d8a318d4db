"""Write the file lists that the extension's CMake reads, from what is on disk; a test fails when they are stale.

python scripts/cmake_lists.py          (or: make cmake-lists)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IGNORED_FOLDERS = {"__pycache__"}
IGNORED_NAMES = {"CMakeLists.txt"}


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not IGNORED_FOLDERS.intersection(path.parts)
        and path.name not in IGNORED_NAMES
        and path.suffix != ".pyc"
        and not path.name.startswith(".")
    )


def _render(comment: str, scripts_name: str, resources_name: str, folder: Path, relative_to: Path) -> str:
    names = [path.relative_to(relative_to).as_posix() for path in _files(folder)]
    parts = [f"# {comment} Written by `make cmake-lists`: do not edit."]
    for variable, chosen in (
        (scripts_name, [name for name in names if name.endswith(".py")]),
        (resources_name, [name for name in names if not name.endswith(".py")]),
    ):
        parts.append("\n".join([f"set({variable}", *(f'  "{name}"' for name in chosen), "  )"]))
    return "\n\n".join(parts) + "\n"


def lists(root: Path = ROOT) -> dict[str, str]:
    """The wanted text of every generated file, by its path below the root."""
    return {
        "cmake/VelvetMedLib_files.cmake": _render(
            "Every file of the library.", "VelvetMedLib_SCRIPTS", "VelvetMedLib_RESOURCES", root / "VelvetMedLib", root
        ),
        "cmake/VelvetMed_files.cmake": _render(
            "Every file of the module.", "MODULE_PYTHON_SCRIPTS", "MODULE_PYTHON_RESOURCES", root / "VelvetMed", root / "VelvetMed"
        ),
    }


def main() -> int:
    for name, text in lists().items():
        path = ROOT / name
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(text, encoding="utf-8", newline="\n")
        os.replace(part, path)
        print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
