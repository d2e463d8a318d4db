"""Settings that every recipe has: views, report text, optimiser and schedule, the loop."""

from __future__ import annotations

from dataclasses import dataclass

from VelvetMedLib.models.config import Settings
from VelvetMedLib.shapes import Triple


@dataclass(frozen=True, kw_only=True)
class ViewSettings(Settings):
    """What is cut out of a scan.

    global_voxels: side of the global view, the body box squeezed. local_voxels: side of a local crop at fine_spacing_mm.
    hu_min, hu_max: the window that becomes 0..1.
    """

    global_voxels: int = 96
    local_voxels: int = 96
    fine_spacing_mm: Triple = (1.5, 1.5, 1.5)
    hu_min: float = -1000.0
    hu_max: float = 1000.0

    def __post_init__(self) -> None:
        for name in ("global_voxels", "local_voxels"):
            self.require(getattr(self, name) > 0 and getattr(self, name) % 32 == 0, name, "a multiple of 32")
        self.require(all(0.2 <= s <= 20 for s in self.fine_spacing_mm), "fine_spacing_mm", "three spacings of 0.2 to 20 mm")
        self.require(self.hu_min < self.hu_max, "hu_min", "less than hu_max")

    @property
    def hu_window(self) -> tuple[float, float]:
        return (self.hu_min, self.hu_max)


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """What is read of a report.

    max_tokens: positions of the sequence. max_sentences: more than that are sub-sampled. report_fields: titles of the
    sections used, empty = all. skip_irrelevant: leave out sections on technique, comparison and indication.
    mask_share: share of the tokens that masked-language losses ask for.
    """

    max_tokens: int = 512
    max_sentences: int = 50
    report_fields: tuple[str, ...] = ()
    skip_irrelevant: bool = True
    mask_share: float = 0.15

    def __post_init__(self) -> None:
        self.require(self.max_tokens >= 8, "max_tokens", "at least 8")
        self.require(1 <= self.max_sentences <= 50, "max_sentences", "1 to 50")
        self.require(0 < self.mask_share < 1, "mask_share", "more than 0, less than 1")


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings(Settings):
    """AdamW and its schedule: linear warm-up over warmup_share of the steps, then a cosine from learning_rate to last_rate.

    decay_all: weight decay on everything, as published; else norms, biases and the contrastive scale have none.
    clip_norm: largest norm of all gradients together, 0 = no clipping. average_decay: of the moving average of weights, 0 = none.
    """

    learning_rate: float = 2e-5
    last_rate: float = 1e-8
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.02
    decay_all: bool = False
    warmup_share: float = 0.02
    clip_norm: float = 1.0
    average_decay: float = 0.0

    def __post_init__(self) -> None:
        self.require(self.learning_rate > 0, "learning_rate", "more than 0")
        self.require(0 <= self.last_rate <= self.learning_rate, "last_rate", "0 to learning_rate")
        for name in ("beta1", "beta2", "average_decay"):
            self.require(0 <= getattr(self, name) < 1, name, "0 or more, less than 1")
        self.require(self.weight_decay >= 0, "weight_decay", "0 or more")
        self.require(0 <= self.warmup_share < 1, "warmup_share", "0 or more, less than 1")
        self.require(self.clip_norm >= 0, "clip_norm", "0 (no clipping) or more")


@dataclass(frozen=True, kw_only=True)
class LossWeights(Settings):
    """Base of the weights of a recipe's losses in their sum: numbers, none below 0."""

    def __post_init__(self) -> None:
        for name, value in self.to_dict().items():
            self.require(value >= 0, name, "0 or more")


@dataclass(frozen=True, kw_only=True)
class LoopSettings(Settings):
    """How a step is made and watched.

    batch: studies of one step, all processes and micro-batches together. micro_batches: pieces that each process takes its
    part in, one after the other. cached_gradients: the pieces then count as one batch, for contrast too (two passes).
    inexact_contrast: allow pieces without cached gradients, so that contrast sees only the negatives of a piece.
    precision: "bf16" autocast (losses stay float32) or "fp32". recompute_activations: less memory for more time.
    parallel: how several processes share the work: "ddp" (each holds everything), "sharded" (each holds the optimiser's
    state of its share of the parameters; the weights come out the same) or "fsdp" (weights and gradients are divided too).
    readers: threads that load ahead. save_every, validate_every, log_every: in steps. skips_in_a_row: non-finite steps
    before the run stops. quarantine_share: share of the studies that may be unusable before the run stops.
    """

    batch: int = 16
    micro_batches: int = 1
    cached_gradients: bool = False
    inexact_contrast: bool = False
    precision: str = "bf16"
    recompute_activations: bool = False
    deterministic: bool = False
    parallel: str = "ddp"
    readers: int = 1
    save_every: int = 100
    validate_every: int = 200
    log_every: int = 10
    skips_in_a_row: int = 5
    quarantine_share: float = 0.2

    def __post_init__(self) -> None:
        for name in ("batch", "micro_batches", "readers", "save_every", "validate_every", "log_every", "skips_in_a_row"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.batch % self.micro_batches == 0, "micro_batches", f"a divisor of batch ({self.batch})")
        self.require(self.precision in ("bf16", "fp32"), "precision", '"bf16" or "fp32"')
        self.require(self.parallel in ("ddp", "sharded", "fsdp"), "parallel", '"ddp", "sharded" or "fsdp"')
        self.require(0 <= self.quarantine_share <= 1, "quarantine_share", "0 to 1")
        many = self.micro_batches > 1
        self.require(many or not self.cached_gradients, "cached_gradients", "micro_batches of 2 or more")


FREE_ON_RESUME = frozenset(
    f"loop.{name}" for name in ("parallel", "readers", "save_every", "validate_every", "log_every", "skips_in_a_row", "quarantine_share")
)
"""Settings that may differ when a run is taken up again: they move no weight."""
