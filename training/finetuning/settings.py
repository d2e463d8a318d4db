"""Settings of a segmentation fine-tuning: the published setting (methods.md 2.6) and one for two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.swin import SwinConfig
from VelvetMedLib.recipes.parts import LoopSettings, OptimiserSettings
from VelvetMedLib.shapes import IntTriple, Triple


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """What is cut out of a scan.

    spacing_mm: of the grid that is learnt on, along R, A, S. hu_min, hu_max: the window that becomes 0..1. patch_voxels:
    crop and sliding window. crops_per_volume: of each volume of a batch. positive_share: of the crops centred in a
    structure, the others in the background. by_structure: a positive crop first draws a structure, all alike; False, as
    published, draws among all foreground voxels. val_share: of the cases, where the data set names no split. fold: of
    nnU-Net's splits_final.json. overlap: of the sliding windows in validation.
    train_cases, val_cases, test_cases: at most so many volumes of each split, 0 = all.
    """

    spacing_mm: Triple = (1.5, 1.5, 2.0)
    hu_min: float = -175.0
    hu_max: float = 250.0
    patch_voxels: IntTriple = (96, 96, 96)
    crops_per_volume: int = 2
    positive_share: float = 0.5
    by_structure: bool = False
    val_share: float = 0.2
    fold: int = 0
    overlap: float = 0.25
    train_cases: int = 0
    val_cases: int = 0
    test_cases: int = 0

    def __post_init__(self) -> None:
        self.require(all(0.2 <= s <= 20 for s in self.spacing_mm), "spacing_mm", "three spacings of 0.2 to 20 mm")
        self.require(self.hu_min < self.hu_max, "hu_min", "less than hu_max")
        self.require(all(n > 0 and n % 32 == 0 for n in self.patch_voxels), "patch_voxels", "three multiples of 32")
        self.require(self.crops_per_volume >= 1, "crops_per_volume", "at least 1")
        self.require(0 <= self.positive_share <= 1, "positive_share", "0 to 1")
        self.require(0 < self.val_share < 1, "val_share", "more than 0, less than 1")
        self.require(0 <= self.overlap < 1, "overlap", "0 or more, less than 1")
        for name in ("fold", "train_cases", "val_cases", "test_cases"):
            self.require(getattr(self, name) >= 0, name, "0 or more")


@dataclass(frozen=True, kw_only=True)
class AugmentSettings(Settings):
    """Chances of each change of a crop.

    flip_chance: along y and z, and along x where that is allowed. flip_x: None = only where no label has a side; True with
    flip_swap_pairs also where labels have sides: left and right labels then change places with the picture. A bare x-flip
    of a label set with sides is refused. rotate_chance: quarter turns in the axial plane, left out where labels have sides.
    shift_chance, shift: intensity moves by up to +-shift of the window. parity_augment: the published flips and turns,
    whatever the labels say; left and right are then taught wrong.
    """

    flip_chance: float = 0.1
    flip_x: bool | None = None
    flip_swap_pairs: bool = False
    rotate_chance: float = 0.1
    shift_chance: float = 0.5
    shift: float = 0.1
    parity_augment: bool = False

    def __post_init__(self) -> None:
        for name in ("flip_chance", "rotate_chance", "shift_chance"):
            self.require(0 <= getattr(self, name) <= 1, name, "0 to 1")
        self.require(self.shift >= 0, "shift", "0 or more")


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings(Settings):
    """Everything of a segmentation fine-tuning. swin: the encoder where none is given; a given one brings its own settings."""

    swin: SwinConfig = field(default_factory=SwinConfig.paper)
    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    optimiser: OptimiserSettings = field(
        default_factory=lambda: OptimiserSettings(learning_rate=1e-4, last_rate=1e-7, beta2=0.999, weight_decay=1e-5)
    )
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(batch=2, validate_every=250))


def paper() -> SegmentationSettings:
    """The published setting: 96-voxel crops at 1.5 x 1.5 x 2 mm, HU -175 to 250, positive and negative crops alike."""
    return SegmentationSettings()


def tiny() -> SegmentationSettings:
    """For two CPU cores and the synthetic cohort: 64-voxel crops at 4 mm, a window that shows lungs and bones."""
    base = SegmentationSettings(swin=SwinConfig(embed_dim=16, depths=(1, 2, 2, 2), heads=(2, 4, 8, 16), window=4))
    return replace(
        base,
        data=replace(
            base.data, spacing_mm=(4.0, 4.0, 4.0), patch_voxels=(64, 64, 64), hu_min=-1000.0, hu_max=1000.0, crops_per_volume=1,
            by_structure=True,
        ),
        optimiser=replace(base.optimiser, learning_rate=4e-3, last_rate=4e-6),
        loop=replace(base.loop, save_every=50, validate_every=100),
    )  # fmt: skip


PRESETS = {"paper": paper, "tiny": tiny}
