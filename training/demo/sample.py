"""A check of the finished bundle on the real sample scan, which lent the atlas its shape: Dice by structure on the scan's own grid."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from VelvetMedLib import analyze, load_bundle, read
from VelvetMedLib.case import read_segmentation
from VelvetMedLib.cohorts.sample import get_sample
from VelvetMedLib.ct import read_labels, resample_labels
from VelvetMedLib.reports import ontology


def dice_on_sample(bundle_folder: Path) -> dict[str, Any]:
    """{"dice": {structure: value}, "dice_mean": value} for the structures that the sample's mask contains."""
    sample = get_sample()
    volume = read(sample.ct)
    reference = read_labels(sample.mask)
    merged = np.zeros(256, np.uint8)
    for structure in ontology().structures:
        merged[list(structure.source_ids)] = structure.label
    truth = merged[np.asarray(reference[0], np.uint8)]
    if not reference[1].equals(volume.grid):
        truth = resample_labels(truth, reference[1], volume.grid)
    with tempfile.TemporaryDirectory() as folder:
        case_folder = Path(folder) / "case"
        analyze(volume, load_bundle(bundle_folder), out=case_folder)
        labels, _ = read_segmentation(case_folder)
    table = {}
    for structure in ontology().structures:
        a, b = truth == structure.label, labels == structure.label
        if a.any():
            table[structure.name] = round(float(2 * (a & b).sum() / max(1, a.sum() + b.sum())), 3)
    return {"dice": table, "dice_mean": round(float(np.mean(list(table.values()))), 3)}
