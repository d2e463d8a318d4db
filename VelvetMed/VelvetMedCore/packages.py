"""What the worker needs in Slicer's Python: looked up without importing anything, installed only on a press."""

from __future__ import annotations

from pathlib import Path

import slicer

TORCH_REQUIREMENT = ">=2.2,!=2.9.*"


class WorkerPackages:
    """Torch comes through the PyTorch extension, the rest through `slicer.packaging`; nothing through plain pip."""

    def __init__(self, requirements_file: Path) -> None:
        self._requirements_file = requirements_file

    def ready(self) -> bool:
        """Reads metadata only: asking the PyTorch extension instead would import torch into Slicer."""
        return bool(slicer.packaging.pip_check([*self.requirements(), f"torch{TORCH_REQUIREMENT}"]))

    def requirements(self) -> list[str]:
        return list(map(str, slicer.packaging.load_requirements(str(self._requirements_file))))

    def install(self) -> bool:
        """Asks, installs, and says whether everything is there. Must be called from the main thread.

        The PyTorch extension ends by importing torch into Slicer; the caller recommends a restart after this.
        """
        import PyTorchUtils  # an extension of its own, present only when it is installed

        torch = PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True, torchVersionRequirement=TORCH_REQUIREMENT)
        if torch is None:
            return False
        slicer.packaging.pip_ensure(slicer.packaging.load_requirements(str(self._requirements_file)), requester="VelvetMed")
        return self.ready()
