"""What findings and draft become after a person has edited segments: measured on the new voxels, judged by the model as before.

The model's probability of a finding does not change: it never saw the person's voxels. What is measured on them does, and
with it state, size, side, place and sentence. Where a person's lesion and the model's verdict contradict each other the
state is `uncertain`, and the reason says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.case import CaseFinding, Report, measure
from VelvetMedLib.ct import Grid, Volume
from VelvetMedLib.ct.resample import resample_array
from VelvetMedLib.reports import ontology
from VelvetMedLib.shapes import ArrayKJI, LabelsKJI
from VelvetMedLib.tasks.abilities import need_heads
from VelvetMedLib.tasks.encoder import encode
from VelvetMedLib.tasks.encoding import FinePart, fine_maps
from VelvetMedLib.tasks.evidence import Evidence
from VelvetMedLib.tasks.findings import find
from VelvetMedLib.tasks.progress import CancelCallback, ProgressCallback, Run
from VelvetMedLib.tasks.report import DEFAULT, draft_report
from VelvetMedLib.tasks.tokens import lesion_tokens
from VelvetMedLib.tasks.writers import DraftSettings, Writer

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

FIRST_LESION = 101
LEAST_SHARE = 0.5
"""Share of a fine cell that a structure must fill to own it."""
_MARGIN_VOXELS = 12
_FEATURES = 48
DRAWN, ERASED = "outlined by a person; the model calls it absent", "the model calls it present; a person has erased its voxels"


@dataclass(frozen=True, kw_only=True)
class Revised:
    """The findings and the draft as they would be had the model segmented like the person."""

    findings: tuple[CaseFinding, ...]
    report: Report


def revise(
    volume: Volume,
    labels_kji: LabelsKJI,
    edited: Sequence[int],
    bundle: Bundle,
    *,
    draft: DraftSettings = DEFAULT,
    writer: Writer | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
) -> Revised:
    """Findings and draft with the voxels of the `edited` labels replaced. labels_kji: on the volume's grid, other labels do not matter.

    draft, writer: as of an analysis. The scan is encoded only if this worker has not done so before.
    """
    need_heads(bundle, "findings and a draft from edited segments")
    run = Run(progress, cancel, {"prepare": 0.2, "fine": 0.4, "tokens": 0.1, "global": 0.05, "measure": 0.1, "report": 0.15})
    encoding = encode(volume, bundle, run=run)
    with run.stage("measure"):
        fine = with_labels(encoding.need_fine(), labels_kji, volume.grid, edited, bundle.config.lesion_thresholds)
        changed = replace(encoding, fine=fine)
        evidence = Evidence(fine, bundle.config.lesion_thresholds)
        findings = tuple(_against_the_model(f, evidence, labels_kji, edited) for f in find(changed, bundle))
    with run.stage("report"):
        drafted = draft_report(findings, changed, bundle, settings=draft, writer=writer, run=run)
    return Revised(findings=findings, report=drafted.report)


def with_labels(fine: FinePart, labels_kji: LabelsKJI, grid: Grid, edited: Sequence[int], thresholds: Sequence[float]) -> FinePart:
    """The fine part with organs and lesion maps of the edited labels taken from a label map on another grid."""
    organs, lesions = fine.organs_xyz.copy(), fine.lesions_cxyz.copy()
    for label in edited:
        known = 0 < label <= len(ontology().structures) or FIRST_LESION <= label < FIRST_LESION + len(lesions)
        if not known:
            continue  # A segment of the person's own: no finding is read from it.
        share = share_xyz(labels_kji == label, grid, fine.grid)
        if label < FIRST_LESION:
            organs[organs == label] = 0
            organs[share >= LEAST_SHARE] = label
        else:
            lesions[label - FIRST_LESION] = np.rint(share * 255.0).astype(np.uint8)
    changed = replace(fine, organs_xyz=organs, lesions_cxyz=lesions, organ_maps=None)
    if not any(label >= FIRST_LESION for label in edited):
        return changed
    halves = [(n + 1) // 2 for n in organs.shape]
    # Only places and sizes are wanted here; the tokens themselves were the model's and are dropped.
    _, metas = lesion_tokens(fine_maps(changed, np.zeros((_FEATURES, *halves), np.float32)), tuple(thresholds))
    return replace(changed, lesions=metas)


def share_xyz(mask_kji: ArrayKJI, grid: Grid, fine_grid: Grid) -> NDArray[np.float32]:
    """How much of every fine cell a mask fills, 0 to 1, [X, Y, Z] on `fine_grid`."""
    result = np.zeros(fine_grid.shape_kji, np.float32)
    box = measure.index_box(mask_kji)
    if box is None:
        return result.transpose(2, 1, 0)
    wide = tuple(slice(max(s.start - _MARGIN_VOXELS, 0), s.stop + _MARGIN_VOXELS) for s in box)
    crop = np.ascontiguousarray(mask_kji[wide], np.float32)
    affine = grid.ijk_to_ras.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array([wide[2].start, wide[1].start, wide[0].start], np.float64)
    part = Grid((crop.shape[0], crop.shape[1], crop.shape[2]), affine)
    reached = np.c_[part.corners_ras(), np.ones(8)] @ fine_grid.ras_to_ijk.T
    low = np.clip(np.floor(reached[:, :3].min(0)).astype(int), 0, np.array(fine_grid.shape_kji[::-1]) - 1)
    high = np.clip(np.ceil(reached[:, :3].max(0)).astype(int) + 1, low + 1, fine_grid.shape_kji[::-1])
    to_affine = fine_grid.ijk_to_ras.copy()
    to_affine[:3, 3] += to_affine[:3, :3] @ low.astype(np.float64)
    counts = (high - low)[::-1]
    target = Grid((int(counts[0]), int(counts[1]), int(counts[2])), to_affine)
    place = tuple(slice(int(a), int(b)) for a, b in zip(low[::-1], high[::-1], strict=True))
    result[place] = np.clip(resample_array(crop, part, target, outside=0.0), 0.0, 1.0)
    return result.transpose(2, 1, 0)


def _against_the_model(finding: CaseFinding, evidence: Evidence, labels_kji: LabelsKJI, edited: Sequence[int]) -> CaseFinding:
    """`uncertain` where a person's lesion and the model's verdict contradict each other."""
    entry = ontology().finding(finding.name)
    label = ontology().lesion(entry.lesion).label if entry.lesion is not None else 0
    if label not in edited or finding.state == "not_assessed":
        return finding
    if finding.state == "present" and not (labels_kji == label).any():
        # No voxels, no place: of what the model saw there a person has said that it is not it.
        return CaseFinding(
            name=finding.name, display=finding.display, state="uncertain", probability=finding.probability, unit=finding.unit, reason=ERASED
        )
    measured = evidence.measure(entry)
    if finding.state == "absent" and entry.state_of(measured.value) == "present":
        return replace(
            finding,
            state="uncertain",
            reason=DRAWN,
            link=measured.link,
            side=measured.side,
            site=measured.site,
            count=measured.count,
            value=None if measured.value is None else round(measured.value, 3),
            size_mm=None if measured.size_mm is None else round(measured.size_mm, 1),
            volume_ml=None if measured.volume_ml is None else round(measured.volume_ml, 2),
        )
    return finding
