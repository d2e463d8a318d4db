"""Settings of a report fine-tuning: the published setting (methods.md 2.6) and one for a CPU core."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from VelvetMedLib.models.config import Settings
from VelvetMedLib.recipes.parts import LoopSettings, OptimiserSettings
from VelvetMedLib.tasks.writers.soft_prompt import FUSED, LoraSettings, PromptSettings, SearchSettings


@dataclass(frozen=True, kw_only=True)
class WritingData(Settings):
    """sentences_per_study: of each study of a batch, half of them on what is present or uncertain, where there is enough of both.
    train_cases, val_cases, test_cases: at most so many studies of each split, 0 = all."""

    sentences_per_study: int = 4
    train_cases: int = 0
    val_cases: int = 0
    test_cases: int = 0

    def __post_init__(self) -> None:
        self.require(self.sentences_per_study >= 1, "sentences_per_study", "at least 1")
        for name in ("train_cases", "val_cases", "test_cases"):
            self.require(getattr(self, name) >= 0, name, "0 or more")


@dataclass(frozen=True, kw_only=True)
class WritingSettings(Settings):
    """Everything of a report fine-tuning. prompt_rate: factor on the learning rate of the Linear, which begins with nothing."""

    data: WritingData = field(default_factory=WritingData)
    prompt: PromptSettings = field(default_factory=PromptSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    prompt_rate: float = 1.0
    optimiser: OptimiserSettings = field(
        default_factory=lambda: OptimiserSettings(learning_rate=2e-5, last_rate=1e-7, beta2=0.99, weight_decay=1e-4)
    )
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(batch=4, validate_every=250))

    def __post_init__(self) -> None:
        self.require(self.prompt_rate > 0, "prompt_rate", "more than 0")


def paper() -> WritingSettings:
    """The published optimiser, LoRA and search; the prompt is what the bundle has."""
    return WritingSettings()


def tiny() -> WritingSettings:
    """For one CPU core and a small language model: few steps at a high rate, the instruction's fused states alone, two beams."""
    base = WritingSettings()
    return replace(
        base,
        data=replace(base.data, sentences_per_study=6, train_cases=60, val_cases=8, test_cases=24),
        prompt=PromptSettings(sources=(FUSED,)),
        search=replace(base.search, beams=2, no_repeat=0),
        optimiser=replace(base.optimiser, learning_rate=1e-3, last_rate=1e-5, weight_decay=0.0, warmup_share=0.05),
        loop=replace(base.loop, batch=2, save_every=25, validate_every=50, log_every=5),
    )


PRESETS = {"tiny": tiny, "paper": paper}
