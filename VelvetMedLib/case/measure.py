"""All measurements under one roof: the generator's truth and the tasks' answers come from the same functions.

Masks are indexed (k, j, i); `geometry` is a 4x4 ijk->RAS matrix or anything with `.ijk_to_ras`. Volumes, centres,
boxes and lengths along S work for any affine. Axial diameters need a grid parallel to the patient's axes
(permuted and flipped axes are fine) and raise ValueError otherwise.
"""

from __future__ import annotations

import numpy as np

from VelvetMedLib.case.diameters import AxialAxes, axial_axes, longest_axial_diameter_mm, short_axis_mm
from VelvetMedLib.case.geometry import (
    BoxRAS,
    Geometry,
    box_ras,
    centroid_ras,
    components,
    craniocaudal_length_mm,
    each_component,
    index_box,
    mean_hu,
    touches_border,
    volume_ml,
)
from VelvetMedLib.case.organs import (
    AorticDiameter,
    aortic_diameter_mm,
    cardiothoracic_ratio,
    height_loss_fraction,
    liver_minus_spleen_hu,
    lung_fraction,
    vertebral_height_mm,
)
from VelvetMedLib.shapes import ArrayKJI

__all__ = [
    "AorticDiameter",
    "AxialAxes",
    "BoxRAS",
    "Geometry",
    "aortic_diameter_mm",
    "axial_axes",
    "box_ras",
    "cardiothoracic_ratio",
    "centroid_ras",
    "components",
    "craniocaudal_length_mm",
    "dominant_label",
    "each_component",
    "height_loss_fraction",
    "index_box",
    "liver_minus_spleen_hu",
    "longest_axial_diameter_mm",
    "lung_fraction",
    "mean_hu",
    "short_axis_mm",
    "touches_border",
    "vertebral_height_mm",
    "volume_ml",
]


def dominant_label(mask_kji: ArrayKJI, labels_kji: ArrayKJI, among: tuple[int, ...]) -> int | None:
    """The label of `among` that holds most of a mask, None where it overlaps none: which lobe, which kidney."""
    box = index_box(mask_kji)
    if box is None or not among:
        return None
    inside = labels_kji[box][np.asarray(mask_kji[box], dtype=bool)]
    counts = [int(np.count_nonzero(inside == label)) for label in among]
    return among[int(np.argmax(counts))] if max(counts) > 0 else None
