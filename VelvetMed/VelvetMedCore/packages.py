"""What the worker needs in Slicer's Python: looked up without importing anything, installed only on a press."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import slicer

TORCH_REQUIREMENT = ">=2.2,!=2.9.*"
SIZES_MB = {"torch": (200, 3000), "SimpleITK": (40, 60), "numpy": (15, 25), "tokenizers": (3, 10), "pydicom": (2, 3), "safetensors": (1, 1)}
"""Round download sizes, the smallest and the largest over platforms: CPU and CUDA builds of torch differ by more than ten times."""
SLICERS_OWN = ("numpy", "SimpleITK", "pydicom", "scipy", "requests", "torch")


class WorkerPackages:
    """Torch comes through the PyTorch extension, the rest through `slicer.packaging`; nothing through plain pip."""

    def __init__(self, requirements_file: Path) -> None:
        self._requirements_file = requirements_file

    def ready(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing()

    def missing(self) -> list[str]:
        """Names of the packages that are not there or too old.

        Reads metadata only: asking the PyTorch extension instead would import torch into Slicer.
        """
        wanted = [f"torch{TORCH_REQUIREMENT}", *self.requirements()]
        return [package_name(line) for line in wanted if not slicer.packaging.pip_check([line])]

    def requirements(self) -> list[str]:
        return list(map(str, slicer.packaging.load_requirements(str(self._requirements_file))))

    def install(self) -> bool:
        """Asks, installs, and says whether everything is there. Must be called from the main thread.

        The PyTorch extension ends by importing torch into Slicer; the caller recommends a restart after this. Raises
        ImportError where that extension is missing.
        """
        import PyTorchUtils  # an extension of its own, present only when it is installed

        torch = PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True, torchVersionRequirement=TORCH_REQUIREMENT)
        if torch is None:
            return False
        slicer.packaging.pip_ensure(
            slicer.packaging.load_requirements(str(self._requirements_file)),
            constraints=self.write_constraints(Path(slicer.app.temporaryPath)),
            requester="VelvetMed",
        )
        return self.ready()

    def write_constraints(self, folder: Path) -> str:
        """A file that holds Slicer's own packages at their versions: a replaced numpy or SimpleITK can stop Slicer."""
        lines = []
        for name in SLICERS_OWN:
            try:
                lines.append(f"{name}=={importlib.metadata.version(name)}")
            except importlib.metadata.PackageNotFoundError:
                continue
        path = folder / "velvetmed-constraints.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)


def package_name(requirement: str) -> str:
    """`torch>=2.2` gives torch."""
    return re.split(r"[\s<>=!~;\[]", requirement.strip(), maxsplit=1)[0]


def download_mb(names: list[str]) -> tuple[int, int]:
    """About how much is downloaded for these packages: least and most, in MB."""
    sizes = [SIZES_MB.get(name, (1, 10)) for name in names]
    return sum(low for low, _ in sizes), sum(high for _, high in sizes)
