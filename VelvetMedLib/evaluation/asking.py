"""Questions that an evaluation asks beyond those on findings: of organs, of lobes, and such as no scan can answer.

Their truth comes from the voxels of the cohort's own label map. Organs that the field of view cuts have no true figure and are not asked.
"""

from __future__ import annotations

import numpy as np

from VelvetMedLib.case import measure
from VelvetMedLib.cohorts import CohortCase
from VelvetMedLib.reports import LUNG_LOBES, Question, ontology
from VelvetMedLib.reports.phrases import choose
from VelvetMedLib.reports.questions import article

CANNOT = "cannot be answered"
ASKED_OF_ORGANS = ("liver", "spleen", "kidney_left", "kidney_right", "heart", "pancreas", "stomach", "aorta")
PAIRS = (("kidney_left", "kidney_right"), ("liver", "spleen"), ("heart", "spleen"))
LEAST_APART = 0.1
"""Two organs are compared where the larger has at least a tenth more: less is a matter of taste."""
_ASK = {
    "volume": ("What is the volume of the {x}?", "How many ml is the {x}?", "volume of {x}"),
    "density": ("What is the mean density of the {x}?", "How dense is the {x} in HU?", "mean HU of the {x}"),
    "compare": ("Which is larger, the {x} or the {y}?", "Compare the {x} and the {y}.", "Is the {x} larger than the {y}?"),
    "place": ("Is there {a} in the {x}?", "Does the {x} show {a}?", "any {f} in the {x}"),
    "beyond": (
        "Who is the patient?", "Has the nodule grown?", "Is the mass malignant?", "Is there a brain haemorrhage?", "Are there gallstones?",
        "Should this be operated?", "What will the weather be?", "Is there ascites?", "Is there a mass in the pancreas?",
        "Which scanner was used?",
    ),
}  # fmt: skip


def questions_beside(case: CohortCase, rng: np.random.Generator) -> list[Question]:
    """Two volumes, a density, a comparison and a question that cannot be answered; of every finding with a lobe, two lobes."""
    whole = _whole_organs(case)
    result = []
    for name in rng.permutation(sorted(whole))[:2]:
        result.append(_question("volume", f"{whole[name]:.0f} ml", name, rng, x=_display(name)))
    for name in rng.permutation(sorted(whole))[:1]:
        hu = measure.mean_hu(case.volume.voxels_kji, case.organs_kji == ontology().structure(name).label)
        result.append(_question("density", f"{hu:.0f} HU", name, rng, x=_display(name)))
    pairs = [
        (a, b) for a, b in PAIRS if a in whole and b in whole and max(whole[a], whole[b]) > (1 + LEAST_APART) * min(whole[a], whole[b])
    ]
    for a, b in [pairs[int(rng.integers(len(pairs)))]] if pairs else []:
        first, second = (a, b) if rng.random() < 0.5 else (b, a)
        larger = a if whole[a] > whole[b] else b
        result.append(_question("compare", _display(larger), f"{a} {b}", rng, x=_display(first), y=_display(second)))
    return [*result, *_in_lobes(case, rng), _question("beyond", CANNOT, "", rng)]


def _whole_organs(case: CohortCase) -> dict[str, float]:
    """ml of the organs that are asked for and do not meet the border of the scan."""
    found = {}
    for name in ASKED_OF_ORGANS:
        mask = case.organs_kji == ontology().structure(name).label
        if mask.any() and not measure.touches_border(mask):
            found[name] = measure.volume_ml(mask, case.volume.grid)
    return found


def _in_lobes(case: CohortCase, rng: np.random.Generator) -> list[Question]:
    """For every present finding of the lungs a lobe that holds some of it and one that holds none."""
    result = []
    for record in case.findings:
        finding = ontology().finding(record.name)
        if record.state != "present" or not set(finding.sites) <= set(LUNG_LOBES) or not finding.sites or not record.instance_ids:
            continue
        bits = np.uint32(sum(1 << (n - 1) for n in record.instance_ids))
        labels = set(np.unique(case.organs_kji[(case.lesions_kji & bits) != 0]))
        homes = {i["structure"] for i in case.instances if i["id"] in record.instance_ids}
        touched = [lobe for lobe in LUNG_LOBES if ontology().structure(lobe).label in labels]
        held, free = [lobe for lobe in LUNG_LOBES if lobe in homes], [lobe for lobe in LUNG_LOBES if lobe not in touched]
        for lobes, truth in ((held, "yes"), (free, "no")):
            if lobes:
                lobe = lobes[int(rng.integers(len(lobes)))]
                result.append(_question("place", truth, record.name, rng, x=_display(lobe), a=article(finding), f=finding.display))
    return result


def _question(kind: str, answer: str, subject: str, rng: np.random.Generator, **words: str) -> Question:
    return Question(choose(rng, _ASK[kind]).format(**words), answer, answer, str(subject), kind)


def _display(name: str) -> str:
    return ontology().structure(name).display
