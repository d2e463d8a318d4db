"""One synthetic case from one seed: body, view, tissues, findings, scanner, truth. Nothing is shared between their random streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.case import measure
from VelvetMedLib.cohorts import lesions_abdomen, lesions_chest, lesions_lung
from VelvetMedLib.cohorts.anatomy import COARSE_MM, Body, View, draw_body, draw_view, source_on_grid, structures_of
from VelvetMedLib.cohorts.atlas import Atlas, Field, load_atlas
from VelvetMedLib.cohorts.canvas import LOBES, Canvas
from VelvetMedLib.cohorts.growth import ShapePlan, apply_locally, draw_shapes
from VelvetMedLib.cohorts.options import CohortOptions, stream
from VelvetMedLib.cohorts.render import clean_hu, draw_case_tissues, draw_scanner, scan, set_liver
from VelvetMedLib.cohorts.surroundings import GALLBLADDER_SAR, add_gallbladder, add_surroundings, refill_gut
from VelvetMedLib.cohorts.tissues import LIVER_SPLEEN_ASSESSED, TissueHu
from VelvetMedLib.cohorts.truth import CaseMaps, Instance, aortic_diameter, assessed, read_truth
from VelvetMedLib.ct import Volume
from VelvetMedLib.errors import CohortError
from VelvetMedLib.reports.ontology import VERTEBRAL_LEVELS, ontology
from VelvetMedLib.reports.records import FindingRecord
from VelvetMedLib.shapes import Affine

Painter = Callable[[Canvas, TissueHu, np.random.Generator, bool], None]
# Painted in this order: what takes room from the lungs last, so that lesions in drowned lung are drowned with it.
PAINTERS: dict[str, Painter] = {
    "emphysema": lesions_lung.emphysema,
    "ground_glass_opacity": lesions_lung.ground_glass_opacity,
    "consolidation": lesions_lung.consolidation,
    "atelectasis": lesions_lung.atelectasis,
    "lung_nodule": lesions_lung.lung_nodule,
    "lung_mass": lesions_lung.lung_mass,
    "liver_lesion": lesions_abdomen.liver_lesion,
    "hydronephrosis": lesions_abdomen.hydronephrosis,
    "renal_cyst": lesions_abdomen.renal_cyst,
    "kidney_stone": lesions_abdomen.kidney_stone,
    "coronary_calcification": lesions_chest.coronary_calcification,
    "lymphadenopathy": lesions_chest.lymphadenopathy,
    "hiatal_hernia": lesions_chest.hiatal_hernia,
    "pleural_effusion": lesions_chest.pleural_effusion,
    "pneumothorax": lesions_chest.pneumothorax,
    "pericardial_effusion": lesions_chest.pericardial_effusion,
}
LUNG_CHANNELS = ("lung_nodule", "consolidation", "ground_glass_opacity", "emphysema", "atelectasis")
FINE_SLICES = 3
"""Vertebral heights are read on a grid this many times finer along the spine: a body is only six slices tall at 4 mm."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SyntheticCase:
    """A case before it is written. Arrays are indexed (k, j, i) on `volume`'s grid; bit n-1 of `lesions_kji` is instance n."""

    seed: int
    volume: Volume
    organs_kji: NDArray[np.uint8]
    lesions_kji: NDArray[np.uint32]
    instances: list[Instance]
    records: list[FindingRecord]
    facts: dict[str, Any]
    twin_finding: str | None


def draw_affected(seed: int, options: CohortOptions, changed: str | None = None) -> tuple[bool, dict[str, bool]]:
    """Whether the case is drawn normal, and which findings it is drawn to have: each by its own stream, blind to the others."""
    normal = bool(stream(seed, "normal").uniform() < options.normal_fraction)
    names = ontology().finding_names
    affected = {
        name: not normal and bool(stream(seed, "affected", n).uniform() < options.affected_probability) for n, name in enumerate(names)
    }
    if changed is not None:
        if changed not in affected:
            raise CohortError(
                "A twin cannot be made.",
                found=f"the finding {changed!r}",
                expected="a finding of the ontology",
                next_step="Name another finding.",
            )
        affected[changed] = not affected[changed]
    return normal, affected


def make_case(seed: int, options: CohortOptions | None = None, *, twin: str | None = None) -> SyntheticCase:
    """The case of a seed. twin: name of a finding to be turned round; everything else stays as drawn.

    The same seed and options give the same bits on every run.
    """
    options = options or CohortOptions()
    atlas = load_atlas()
    normal, affected = draw_affected(seed, options, twin)
    body = draw_body(atlas, stream(seed, "anatomy"))
    view = draw_view(atlas, body, options, stream(seed, "view"))
    first, affine = _grid(view, options.spacing_mm)
    high = first + np.array(view.shape_kji, np.float32) * np.float32(options.spacing_mm)
    seen = _seen_shares(atlas, body, view, first, high)
    streams = {name: stream(seed, f"finding {name}") for name in ontology().finding_names}
    shapes = draw_shapes(atlas, body, affected, streams, first, high)

    source = source_on_grid(body, first, (options.spacing_mm,) * 3, view.shape_kji)
    for change in shapes.growths:
        apply_locally(change, source)
    index = (source - atlas.origin_sar[:, None, None, None]) * np.float32(1.0 / atlas.spacing_mm)
    cells = nearest_cells(atlas, index)

    rendering = stream(seed, "rendering")
    scanner = draw_scanner(options, rendering)
    tissues = set_liver(draw_case_tissues(atlas, scanner, rendering), atlas.tissues, shapes.liver_minus_spleen_hu)
    tissue_map = atlas.cell_tissue[cells]
    canvas = Canvas(
        hu=clean_hu(atlas, index, tissue_map, tissues, scanner, stream(seed, "texture")),
        organs=atlas.cell_structure[cells],
        tissue=tissue_map,
        first_sar=first,
        step=options.spacing_mm,
        tissue_names=atlas.tissues,
    )
    surroundings = add_surroundings(canvas, stream(seed, "surroundings"))
    surroundings |= {"gut": refill_gut(canvas, tissues, stream(seed, "gut"))}
    surroundings |= add_gallbladder(canvas, body.forward(np.array(GALLBLADDER_SAR, np.float32)), stream(seed, "gallbladder"))
    for name, paint in PAINTERS.items():
        paint(canvas, tissues, streams[name], affected[name])
    _settle_lungs(canvas)
    outside = _cut_circle(canvas, view)
    maps = CaseMaps(canvas.hu, canvas.organs, canvas.lesions, canvas.channels, affine)
    vertebra = _measure_vertebra(atlas, body, shapes, canvas, cells, first, view, seen)
    _mark_aorta(canvas, maps)
    instances, records = read_truth(maps, seen, vertebra, tissues.phase in LIVER_SPLEEN_ASSESSED)

    stored = scan(canvas.hu, scanner, options.spacing_mm, stream(seed, "noise"))
    if outside is not None:
        stored[:, outside] = -1024.0
    facts = {
        "anatomy": body.facts,
        "rendering": scanner.as_dict() | {"phase": tissues.phase} | surroundings,
        "view": {
            "name": view.name,
            "circle": view.circle_radius_mm is not None,
            "shape_ijk": list(view.shape_kji[::-1]),
            "spacing_mm": options.spacing_mm,
            "seen": {name: round(share, 3) for name, share in seen.items()},
        },
        "drawn": {"normal": normal, "affected": [name for name, yes in affected.items() if yes]},
        "vertebra": vertebra,
    }
    volume = Volume(np.rint(stored).astype(np.int16), affine, provenance={"source": "synthetic cohort", "seed": seed})
    return SyntheticCase(
        seed=seed, volume=volume, organs_kji=canvas.organs, lesions_kji=canvas.lesions, instances=instances, records=records, facts=facts,
        twin_finding=twin,
    )  # fmt: skip


def nearest_cells(atlas: Atlas, index: Field) -> NDArray[np.uint8]:
    """The atlas cell nearest to each fractional index; beyond the atlas its outermost voxels, which are air at the sides."""
    shape = atlas.cells.shape
    flat = np.zeros(index.shape[1:], np.int32)
    for axis in range(3):
        whole = (np.clip(index[axis], 0, shape[axis] - 1) + np.float32(0.5)).astype(np.int32)
        flat *= shape[axis]
        flat += whole
    return atlas.cells.ravel().take(flat)


def _grid(view: View, step: float) -> tuple[NDArray[np.float32], Affine]:
    """Centre of the first voxel as (S, A, R), and the 4x4 matrix of an axis-aligned RAS grid."""
    first = np.array(view.center_sar) - (np.array(view.shape_kji) - 1) * step / 2
    first = np.round(first, 3)
    affine = np.diag([step, step, step, 1.0])
    affine[:3, 3] = first[::-1]
    return first.astype(np.float32), affine


def _seen_shares(atlas: Atlas, body: Body, view: View, low: NDArray[np.float32], high: NDArray[np.float32]) -> dict[str, float]:
    """Share of each structure that is scanned: of the body as it was before any finding changed it."""
    structures = structures_of(atlas, body)
    scanned = np.ones(structures.shape, bool)
    lines = []
    for axis in range(3):
        line = body.origin_sar[axis] + np.arange(structures.shape[axis], dtype=np.float32) * np.float32(COARSE_MM)
        shaped = line.reshape([-1 if n == axis else 1 for n in range(3)])
        scanned &= (shaped >= low[axis]) & (shaped <= high[axis])
        lines.append(shaped)
    if view.circle_radius_mm is not None:
        a, r = lines[1] - view.circle_center_ar[0], lines[2] - view.circle_center_ar[1]
        scanned &= a**2 + r**2 <= view.circle_radius_mm**2
    all_of = np.bincount(structures.ravel(), minlength=40)
    in_view = np.bincount(structures[scanned], minlength=40)
    return {s.name: float(in_view[s.label]) / float(all_of[s.label]) if all_of[s.label] else 0.0 for s in ontology().structures}


def _settle_lungs(canvas: Canvas) -> None:
    """Lung lesions end where fluid, air or a hernia has taken the lung: those voxels are not lung any more."""
    keep = 0
    for n, channel in enumerate(canvas.channels):
        if channel not in LUNG_CHANNELS:
            keep |= 1 << n
    gone = canvas.whole_lungs & ~canvas.mask(LOBES)
    canvas.lesions[gone] &= np.uint32(keep)


def _cut_circle(canvas: Canvas, view: View) -> NDArray[np.bool_] | None:
    """Empties everything outside the circular field of view; returns the columns (j, i) outside it."""
    if view.circle_radius_mm is None:
        return None
    _, a, r = canvas.axes()
    outside: NDArray[np.bool_] = ((a - view.circle_center_ar[0]) ** 2 + (r - view.circle_center_ar[1]) ** 2 > view.circle_radius_mm**2)[0]
    canvas.organs[:, outside] = 0
    canvas.lesions[:, outside] = 0
    canvas.hu[:, outside] = -1024.0
    return outside


def _measure_vertebra(
    atlas: Atlas,
    body: Body,
    shapes: ShapePlan,
    canvas: Canvas,
    cells: NDArray[np.uint8],
    first: NDArray[np.float32],
    view: View,
    seen: dict[str, float],
) -> dict[str, Any] | None:
    """Height loss of the drawn level against its neighbours, on a finer grid; marks the body if it lost any that counts."""
    if shapes.level is None:
        return None
    order = [level for level in VERTEBRAL_LEVELS if level in atlas.level_part]
    at = order.index(shapes.level)
    trio = (order[at], order[at - 1], order[at + 1])
    center = body.forward(atlas.body_centers_sar[shapes.level])
    step = canvas.step
    box = canvas.box(center, (85.0, 45.0, 45.0))
    if box is None:
        return None
    start = first + np.array([box[0].start, box[1].start, box[2].start], np.float32) * np.float32(step)
    shape = ((box[0].stop - box[0].start) * FINE_SLICES, box[1].stop - box[1].start, box[2].stop - box[2].start)
    fine = source_on_grid(body, start, (step / FINE_SLICES, step, step), shape)
    for change in shapes.growths:
        apply_locally(change, fine)
    index = (fine - atlas.origin_sar[:, None, None, None]) * np.float32(1.0 / atlas.spacing_mm)
    parts = atlas.cell_part[nearest_cells(atlas, index)]
    affine = np.diag([step, step, step / FINE_SLICES, 1.0])
    front = fine[1] > np.float32(atlas.body_centers_sar[shapes.level][1] - 16.0)
    masks = [(parts == atlas.level_part[name]) & front for name in trio]
    if any(int(mask.sum()) < 60 for mask in masks):
        return None
    loss = measure.height_loss_fraction(masks[0], masks[1:], affine)
    if loss is None:
        return None
    height = measure.vertebral_height_mm(masks[0], affine)
    finding = ontology().finding("vertebral_compression")
    if finding.state_of(round(loss, 4)) != "absent":
        coarse = (
            (atlas.cell_part[cells[box]] == atlas.level_part[shapes.level])
            & (canvas.organs[box] > 0)
            & front[::FINE_SLICES][: shape[0] // FINE_SLICES]
        )
        canvas.mark("vertebral_compression", box, coarse)
    return {"level": shapes.level, "height_mm": round(height, 2), "height_loss_fraction": round(loss, 4)}


def _mark_aorta(canvas: Canvas, maps: CaseMaps) -> None:
    """Registers the widened stretch of the aorta where its measured diameter is not clearly normal."""
    finding = ontology().finding("aortic_dilatation")
    result = aortic_diameter(maps)
    if result is None or finding.state_of(result.diameter_mm) == "absent":
        return
    box = canvas.box(result.center_ras[::-1], 0.75 * result.diameter_mm)
    if box is None:
        return
    s, a, r = canvas.axes(box)
    near = (s - result.center_ras[2]) ** 2 + (a - result.center_ras[1]) ** 2 + (r - result.center_ras[0]) ** 2 <= (
        0.75 * result.diameter_mm
    ) ** 2
    canvas.mark("aortic_dilatation", box, near & maps.organ("aorta")[box])


def assessable_findings(seed: int, options: CohortOptions) -> list[str]:
    """Findings whose structures are in view in the case of a seed: only these make a twin that can be told apart."""
    atlas = load_atlas()
    body = draw_body(atlas, stream(seed, "anatomy"))
    view = draw_view(atlas, body, options, stream(seed, "view"))
    first, _ = _grid(view, options.spacing_mm)
    high = first + np.array(view.shape_kji, np.float32) * np.float32(options.spacing_mm)
    seen = _seen_shares(atlas, body, view, first, high)
    names = [finding.name for finding in ontology().findings if assessed(finding, seen)]
    return names or ["aortic_dilatation"]
