"""Where VelvetMedLib lies: one level above the module in a source tree, beside VelvetMed.py once installed."""

from __future__ import annotations

import sys
from pathlib import Path

MODULE_FOLDER = Path(__file__).resolve().parents[1]


def library_root(module_folder: Path = MODULE_FOLDER) -> Path:
    """The folder that holds the package VelvetMedLib; FileNotFoundError when the installation is incomplete."""
    for candidate in (module_folder, module_folder.parent):
        if (candidate / "VelvetMedLib" / "__init__.py").is_file():
            return candidate
    raise FileNotFoundError("The library VelvetMedLib is not beside the VelvetMed module: install the extension again.")


def make_importable(module_folder: Path = MODULE_FOLDER) -> None:
    """From a source tree only the module's own folder is on sys.path, so the library has to be found first."""
    root = str(library_root(module_folder))
    if root not in sys.path:
        sys.path.append(root)
