"""A pre-training that begins with the weights of an earlier one: masked images first, then everything (methods.md 3.6)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretraining.cohort import TOKENIZER
from VelvetMedLib.engine.checkpoints import Checkpoints
from VelvetMedLib.engine.runfolder import RUN_FILE
from VelvetMedLib.errors import TrainingError, UsageError
from VelvetMedLib.files import read_json


@dataclass(frozen=True)
class Warm:
    """tensors: weights of the earlier run by name, of its best checkpoint, else of its last (there the moving average, if it kept one)."""

    tensors: dict[str, Tensor]
    step: int
    key: str
    tokenizer: Path

    def facts(self) -> dict[str, Any]:
        """JSON-ready; what two calls of one run must agree on. The sum of all numbers stands for them."""
        numbers = float(sum(value.double().sum() for value in self.tensors.values()))
        return {"key": self.key, "step": self.step, "numbers": repr(numbers)}

    def tokenizer_file(self, given: Path | None) -> Path:
        """The earlier run's: its word rows mean nothing under another one. Raises UsageError where another is given."""
        if given is not None and given.read_text(encoding="utf-8") != self.tokenizer.read_text(encoding="utf-8"):
            raise UsageError(
                "Two tokenizers were given.",
                found="--tokenizer, and the one of the run to begin with",
                expected="one of them: an earlier run brings its own tokenizer",
                next_step="Leave out --tokenizer.",
            )
        return self.tokenizer

    @torch.no_grad()
    def load(self, learner: nn.Module) -> tuple[int, int]:
        """Take what has the same name and shape; (taken, all tensors of the learner). Raises TrainingError where nothing fits."""
        own = learner.state_dict()
        fitting = {name: self.tensors[name] for name in own if name in self.tensors and self.tensors[name].shape == own[name].shape}
        if not fitting:
            raise TrainingError(
                "The earlier run has no weights that fit this recipe.",
                found=f"a run of {self.key}",
                expected="a run with the same encoders",
                next_step="Leave out --run-from, or give a run of the same sizes.",
            )
        learner.load_state_dict(own | fitting)
        return len(fitting), len(own)


def read_warm(run: Path | None) -> Warm | None:
    """The weights of a run folder. Raises TrainingError where there are none."""
    if run is None:
        return None
    checkpoints, told = Checkpoints(run), read_json(run / RUN_FILE)
    found = checkpoints.load_best() or checkpoints.load()
    if found is None or told is None or not (run / TOKENIZER).is_file():
        raise TrainingError(
            "There is no earlier run to begin with.",
            found="a folder without run.json, tokenizer.json or checkpoint",
            expected="the run folder of a pre-training that has saved at least once",
            next_step="Correct --run-from.",
        )
    tensors = found.parts.get("average", found.parts["weights"])
    return Warm(tensors, found.step, str(told.get("key", "unknown")), run / TOKENIZER)
