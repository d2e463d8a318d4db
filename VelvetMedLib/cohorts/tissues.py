"""Hounsfield units of each tissue by contrast phase, and how coarse its texture is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.cohorts.options import PHASES

# Mean HU (low, high) without contrast; a second pair gives the enhancement in arterial, portal and delayed phase as a share of
# the draw "enhancement strength" (see ENHANCEMENT).
NATIVE: dict[str, tuple[float, float]] = {
    "air": (-1010, -985), "skin": (-60, 40), "fat_subcutaneous": (-118, -92), "fat_visceral": (-112, -80), "muscle": (38, 68),
    "muscle_fat": (-60, -10), "soft": (10, 55), "vessel_other": (32, 50), "bone_other_cortical": (350, 800),
    "bone_other_marrow": (60, 260), "lung": (-910, -790), "lung_dense": (-720, -600), "lung_vessel": (-420, -120),
    "airway": (-1000, -930), "airway_wall": (-300, 0), "heart_blood": (34, 50), "myocardium": (38, 56), "heart_fat": (-80, -20),
    "aorta_blood": (34, 50), "aorta_wall": (28, 50), "supraaortic": (34, 52), "vena_cava_superior": (34, 50),
    "brachiocephalic_vein": (34, 50), "vena_cava_inferior": (30, 48), "portal_vein": (32, 48), "pulmonary_vein": (30, 48),
    "liver": (48, 68), "liver_vessel": (38, 54), "spleen": (42, 56), "renal_cortex": (28, 42), "renal_medulla": (24, 40),
    "renal_sinus": (-60, 10), "pancreas": (30, 50), "pancreas_fat": (-90, -40), "adrenal": (10, 40), "stomach_wall": (28, 52),
    "stomach_gas": (-990, -800), "stomach_content": (0, 45), "bowel_wall": (20, 50), "bowel_gas": (-980, -750),
    "bowel_content": (-10, 50), "esophagus": (25, 50), "esophagus_gas": (-700, -250), "thyroid": (75, 130), "spinal_cord": (18, 42),
    "vertebra_cortical": (320, 700), "vertebra_trabecular": (70, 270), "rib_cortical": (350, 750), "rib_marrow": (60, 260),
    "cartilage": (70, 150), "sternum": (60, 260), "shoulder_cortical": (350, 800), "shoulder_marrow": (50, 240), "bladder": (-2, 15),
}  # fmt: skip
# Added HU (low, high) in arterial, portal, delayed phase.
ENHANCEMENT: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "aorta_blood": ((170, 420), (80, 150), (40, 90)), "aorta_wall": ((60, 200), (40, 110), (20, 70)),
    "heart_blood": ((120, 380), (80, 150), (40, 90)), "myocardium": ((30, 90), (45, 85), (25, 55)),
    "supraaortic": ((150, 420), (80, 150), (40, 90)), "vena_cava_superior": ((20, 900), (70, 150), (40, 90)),
    "brachiocephalic_vein": ((0, 700), (70, 150), (40, 90)), "vena_cava_inferior": ((0, 90), (60, 140), (40, 90)),
    "portal_vein": ((10, 110), (100, 160), (45, 95)), "pulmonary_vein": ((120, 380), (80, 150), (40, 90)),
    "vessel_other": ((100, 400), (75, 150), (40, 90)), "liver_vessel": ((5, 40), (80, 150), (45, 90)),
    "liver": ((8, 30), (40, 75), (25, 50)), "spleen": ((40, 110), (45, 80), (25, 52)), "renal_cortex": ((80, 190), (110, 190), (80, 150)),
    "renal_medulla": ((10, 70), (90, 170), (90, 200)), "renal_sinus": ((0, 20), (0, 40), (50, 700)),
    "pancreas": ((35, 85), (35, 65), (20, 45)),
    "adrenal": ((20, 60), (30, 60), (15, 40)), "stomach_wall": ((20, 60), (25, 60), (15, 40)), "bowel_wall": ((15, 60), (25, 65), (15, 45)),
    "esophagus": ((10, 40), (15, 40), (10, 30)), "thyroid": ((50, 130), (40, 90), (20, 60)), "muscle": ((2, 14), (8, 22), (8, 20)),
    "soft": ((0, 40), (10, 50), (5, 30)), "lung_vessel": ((20, 150), (20, 80), (10, 50)), "spinal_cord": ((0, 5), (0, 8), (0, 8)),
    "vertebra_trabecular": ((0, 30), (5, 35), (5, 25)), "bladder": ((0, 5), (0, 30), (0, 500)), "airway_wall": ((0, 40), (0, 40), (0, 25)),
}  # fmt: skip
TEXTURE = {
    "lung": 38.0, "lung_dense": 60.0, "lung_vessel": 110.0, "airway": 12.0, "airway_wall": 60.0, "vertebra_cortical": 120.0,
    "vertebra_trabecular": 45.0, "rib_cortical": 110.0, "rib_marrow": 60.0, "shoulder_cortical": 120.0, "shoulder_marrow": 60.0,
    "sternum": 60.0, "cartilage": 30.0, "bowel_wall": 26.0, "bowel_content": 40.0, "bowel_gas": 40.0, "stomach_content": 16.0,
    "stomach_gas": 30.0, "muscle": 11.0, "muscle_fat": 22.0, "soft": 22.0, "pancreas": 15.0, "pancreas_fat": 18.0, "liver": 6.0,
    "spleen": 6.0, "renal_sinus": 22.0, "renal_medulla": 18.0, "renal_cortex": 18.0, "skin": 30.0, "fat_visceral": 14.0,
    "fat_subcutaneous": 8.0, "bone_other_cortical": 110.0, "bone_other_marrow": 60.0, "esophagus_gas": 80.0, "esophagus": 15.0, "air": 0.0,
    "heart_fat": 20.0, "myocardium": 12.0, "heart_blood": 12.0,
}  # fmt: skip
DEFAULT_TEXTURE_HU = 9.0
LIVER_SPLEEN_ASSESSED = ("native", "portal", "delayed")
"""In the arterial phase the spleen is brighter than any liver: the difference then says nothing about fat."""


@dataclass(frozen=True, eq=False)
class TissueHu:
    """Mean HU and texture amplitude per tissue index, and the contrast phase they belong to."""

    phase: str
    mean_hu: NDArray[np.float32]
    texture_hu: NDArray[np.float32]

    def as_dict(self) -> dict[str, Any]:
        return {"phase": self.phase}


def draw_tissues(names: tuple[str, ...], rng: np.random.Generator) -> TissueHu:
    """Draws a phase and every tissue's mean. Blood pools of one side of the circulation share most of their draw."""
    phase = PHASES[int(rng.choice(4, p=(0.3, 0.25, 0.32, 0.13)))]
    strength, blood, density = rng.uniform(0, 1, 3)
    mean = np.empty(len(names), np.float32)
    for index, name in enumerate(names):
        low, high = NATIVE[name]
        own = rng.uniform()
        shared = {"vertebra_trabecular": density, "rib_marrow": density, "sternum": density}.get(name, own)
        value = low + (high - low) * (0.6 * shared + 0.4 * own)
        own = rng.uniform()
        if phase != "native" and name in ENHANCEMENT:
            low, high = ENHANCEMENT[name][PHASES.index(phase) - 1]
            shared = blood if name in ("aorta_blood", "heart_blood", "supraaortic", "pulmonary_vein", "vessel_other") else strength
            value += low + (high - low) * (0.7 * shared + 0.3 * own)
        mean[index] = value
    texture = np.array([TEXTURE.get(name, DEFAULT_TEXTURE_HU) for name in names], np.float32) * np.float32(rng.uniform(0.5, 1.3))
    return TissueHu(phase, mean, texture)
