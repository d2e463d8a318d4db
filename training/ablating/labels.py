"""The two fine-tunings of a cell on the same few labelled scans: large organs, and large lesions."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from finetuning.settings import SegmentationSettings
from finetuning.settings import tiny as tiny_segmentation
from finetuning.tasks import CaseFiles, Label, SegmentationTask, lesion_bits

from ablating.bench import Bench
from VelvetMedLib.cohorts.store import load_case
from VelvetMedLib.evaluation.segmentation import StructureScore, as_records, mean_dice, summarise
from VelvetMedLib.recipes.velvet import VelvetRecipe
from VelvetMedLib.reports import ontology

LESIONS = ("emphysema", "ground_glass_opacity", "pericardial_effusion", "pleural_effusion", "pneumothorax")
"""Kinds that fill tens of ml and more, and that at least two of the grid's ten labelled scans show (none shows consolidation)."""


def organ_task(bench: Bench) -> SegmentationTask:
    """The first labelled volumes of the training studies, which every cell has among its own, and held-out scans of the same splits."""
    known = {structure.name: structure.label for structure in ontology().structures}
    labels = tuple(Label(name, known[name]) for name in bench.settings.segmentation_structures)
    cases = [_files(bench.cohort, name, split, "organs") for split, names, most in _drawn(bench) for name in names[:most]]
    return SegmentationTask(kind="cohort", labels=labels, declared=tuple(known.values()), cases=tuple(cases))


def lesion_task(bench: Bench) -> SegmentationTask:
    """The same training scans; of the held-out studies the first that show one of `LESIONS`."""
    cases = []
    for split, names, most in _drawn(bench):
        opened = ((name, lesion_bits(load_case(bench.cohort / name))) for name in names)
        chosen = ((name, bits) for name, bits in opened if split == "train" or not bits.keys().isdisjoint(LESIONS))
        cases += [replace(_files(bench.cohort, name, split, "lesions"), bits=bits) for name, bits in islice(chosen, most)]
    labels = tuple(Label(name, ontology().lesion(name).label) for name in LESIONS)
    return SegmentationTask(kind="cohort, lesions", labels=labels, declared=(), cases=tuple(cases))


def _drawn(bench: Bench) -> list[tuple[str, list[str], int]]:
    """(split, the grid's studies in it, how many are segmented)."""
    studies = json.loads((bench.out / "data" / "studies.json").read_text(encoding="utf-8"))
    settings = bench.settings
    most = {"train": settings.segmentation_volumes, "val": settings.segmentation_val, "test": settings.segmentation_test}
    return [(split, studies[split], count) for split, count in most.items()]


def _files(cohort: Path, name: str, split: str, labels: str) -> CaseFiles:
    return CaseFiles(name=name, image=cohort / name / "ct.nii.gz", label=cohort / name / f"{labels}.nii.gz", group=name, split=split)


def organ_figures(scores: Sequence[StructureScore]) -> dict[str, Any]:
    """Dice over all scans."""
    return {"dice": mean_dice(scores), "scans": len({s.case for s in scores}), "structures": as_records(summarise(scores))}


def lesion_figures(scores: Sequence[StructureScore]) -> dict[str, Any]:
    """Dice over the scans that show a kind; invented: kinds found where a scan has none of them, in all, of `free` such places."""
    shown = [score for score in scores if score.truth_ml > 0]
    dice = mean_dice(shown)
    return {
        "dice": None if math.isnan(dice) else dice,
        "scans": len({score.case for score in shown}),
        "invented": sum(score.invented for score in scores),
        "free": len(scores) - len(shown),
        "structures": as_records(summarise(shown)),
    }


def segmentation_settings(base: VelvetRecipe) -> SegmentationSettings:
    """The tiny fine-tuning on the base's grid, window and encoder; the same for every row."""
    views = base.views
    tiny = tiny_segmentation()
    return replace(
        tiny,
        swin=base.swin(),
        data=replace(
            tiny.data,
            spacing_mm=views.fine_spacing_mm,
            patch_voxels=(views.global_voxels,) * 3,
            hu_min=views.hu_min,
            hu_max=views.hu_max,
        ),
        loop=replace(tiny.loop, precision=base.loop.precision),
    )
