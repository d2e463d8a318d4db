"""Resumable stages: weights, moving average and AdamW moments as safetensors, the step count as JSON, both atomic."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from VelvetMedLib.engine.optimiser import MovingAverage


class StageState:
    """One stage's module, optimiser and moving average, saved and restored together."""

    def __init__(self, folder: Path, module: nn.Module, optimiser: torch.optim.AdamW, average: MovingAverage) -> None:
        self.folder, self.module, self.optimiser, self.average = folder, module, optimiser, average
        folder.mkdir(parents=True, exist_ok=True)

    def _moments(self) -> dict[str, Tensor]:
        moments = {}
        for name, parameter in self.module.named_parameters():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                moments[f"{name}/{key}"] = value.detach().clone()
        return moments

    def save(self, step: int, seconds: float) -> None:
        """Write everything under a new name, then let state.json point at it: a kill leaves the last good one."""
        name = f"step{step:06d}.safetensors"
        tensors = {f"module/{key}": value for key, value in self.module.state_dict().items()}
        tensors |= {f"average/{key}": value for key, value in self.average.tensors.items()}
        tensors |= {f"moment/{key}": value for key, value in self._moments().items()}
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, self.folder / (name + ".part"))
        os.replace(self.folder / (name + ".part"), self.folder / name)
        temporary = self.folder / "state.json.part"
        temporary.write_text(json.dumps({"step": step, "seconds": seconds, "file": name}), encoding="utf-8")
        os.replace(temporary, self.folder / "state.json")
        for old in self.folder.glob("step*.safetensors"):
            if old.name != name:
                old.unlink()

    def restore(self) -> tuple[int, float]:
        """(step, seconds spent) of the last checkpoint, or (0, 0.0) where there is none."""
        state_file = self.folder / "state.json"
        if not state_file.exists():
            return 0, 0.0
        state = json.loads(state_file.read_text(encoding="utf-8"))
        tensors = load_file(self.folder / state["file"])
        self.module.load_state_dict({k.removeprefix("module/"): v for k, v in tensors.items() if k.startswith("module/")})
        self.average.tensors = {k.removeprefix("average/"): v for k, v in tensors.items() if k.startswith("average/")}
        for name, parameter in self.module.named_parameters():
            found = {k.rsplit("/", 1)[1]: v for k, v in tensors.items() if k.startswith(f"moment/{name}/")}
            if found:
                self.optimiser.state[parameter] = found
        return int(state["step"]), float(state["seconds"])
