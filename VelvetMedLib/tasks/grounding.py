"""Where in the scan a phrase is: a heat-map on the scan's own grid, and its peak in RAS mm.

A phrase that names a finding with a lesion channel is answered by that channel's probability, on the side or in the lobe
that the phrase names. Any other phrase is answered by the similarity of its words with the cells of the global view's
middle level, and with every structure; where the bundle never learnt such similarity, an organ is shown by its segment.
A model that takes one crop answers every phrase by the similarity of its words with the crop's cells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.bundle.config import refuse
from VelvetMedLib.ct import Grid
from VelvetMedLib.ct.resample import resample_array
from VelvetMedLib.errors import UsageError
from VelvetMedLib.reports import LUNG_LOBES, ontology, understand
from VelvetMedLib.reports.parse import find_findings, parse_sentence
from VelvetMedLib.reports.sentences import split_sentences
from VelvetMedLib.shapes import Triple
from VelvetMedLib.tasks.crop import similarity_xyz, takes_one_crop, text_vectors
from VelvetMedLib.tasks.encoding import CropPart, Encoding, GlobalPart
from VelvetMedLib.tasks.evidence import Evidence

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

LONGEST_TEXT_TOKENS = 160


@dataclass(frozen=True, eq=False)
class Grounding:
    """heat_kji: float32, 0..1, on `grid`. source: "lesions" (a probability), "similarity" (cosine, stretched to 0..1) or
    "segment" (1 in the organ that is named, peak in its middle).

    score: the probability or cosine at the peak. structures: names with their cosine, most similar first, for "similarity".
    threshold: for "lesions" the probability from which the bundle marks a voxel; below it nothing of the kind was seen.
    """

    heat_kji: NDArray[np.float32]
    grid: Grid
    peak_ras_mm: Triple
    score: float
    source: Literal["lesions", "similarity", "segment"]
    finding: str | None
    structures: tuple[tuple[str, float], ...] = ()
    threshold: float | None = None

    def on(self, grid: Grid) -> NDArray[np.float32]:
        """The heat-map on another grid, (k, j, i), 0 outside of it."""
        return resample_array(self.heat_kji, self.grid, grid, outside=0.0, antialias=False)


def checked_text(text: str) -> list[str]:
    """Sentences of a typed text. Raises UsageError on an empty one."""
    sentences = split_sentences(" ".join(text.split())[:2000])
    if not any(any(c.isalnum() for c in s) for s in sentences):
        raise UsageError(
            "There are no words to look for.",
            found="an empty text",
            expected='a phrase such as "pleural effusion on the left"',
            next_step="Type a phrase and try again.",
        )
    return sentences


def ground(encoding: Encoding, phrase: str, bundle: Bundle) -> Grounding:
    """Where a phrase is in the scan. Needs the whole encoding; no encoder of images runs."""
    sentences = checked_text(phrase)
    if takes_one_crop(bundle):
        return _by_cells(encoding.need_crop(), sentences, bundle, next(iter(find_findings(phrase)), None))
    name = next(iter(find_findings(phrase)), None)
    if name is not None and ontology().finding(name).lesion is not None and bundle.config.finding(name).assessed:
        return _by_lesions(encoding, name, phrase, bundle)
    named = understand(phrase).structures
    structure = named[0] if len(named) == 1 else None
    if "sentence" not in bundle.config.aligned_levels and name is None and structure is not None:
        return _by_segment(encoding, structure, bundle)
    if "sentence" not in bundle.config.aligned_levels:
        raise refuse(
            f"The bundle {bundle.config.id!r} cannot place this phrase.",
            found="sentences and image cells that were never trained to agree",
            expected="a phrase that names an organ or a finding which the bundle assesses and marks, or a bundle aligned by sentences",
            next_step="Name such a finding ('velvetmed models show' lists them), or choose another bundle.",
        )
    return _by_similarity(encoding, sentences, bundle, name, structure)


def _by_cells(part: CropPart, sentences: list[str], bundle: Bundle, name: str | None) -> Grounding:
    """The text against the vector of every cell that holds any of the scan (COLIPRI's dense mode)."""
    cosine = similarity_xyz(part, text_vectors([" ".join(sentences)], bundle)[0])
    filled = np.zeros(cosine.shape, bool)
    filled[tuple(slice(first, end) for first, end in part.covered)] = True
    low, high = float(cosine[filled].min()), float(cosine[filled].max())
    heat = np.where(filled, (cosine - low) / max(high - low, 1e-6), 0.0).transpose(2, 1, 0).astype(np.float32)
    return _peaked(heat, part.grid, high, "similarity", name)


def _by_lesions(encoding: Encoding, name: str, phrase: str, bundle: Bundle) -> Grounding:
    fine, table = encoding.need_fine(), ontology()
    lesion = table.finding(name).lesion
    assert lesion is not None
    channel = table.lesion(lesion).channel
    heat = (fine.lesions_cxyz[channel].transpose(2, 1, 0) / np.float32(255.0)).astype(np.float32)
    said = next((record for record in parse_sentence(phrase) if record.name == name), None)
    if said is not None:
        evidence = Evidence(fine, bundle.config.lesion_thresholds)
        side = said.side or table.site_side(said.site)
        if side in ("left", "right"):
            columns_r_mm = fine.grid.ijk_to_ras[0, 0] * np.arange(heat.shape[2]) + fine.grid.ijk_to_ras[0, 3]
            other = columns_r_mm >= evidence.midline_mm if side == "left" else columns_r_mm < evidence.midline_mm
            heat[:, :, other] = 0.0
        if said.site in LUNG_LOBES:
            # What lies in no lobe may belong to this one: a lesion's rim, or lung too dense to be told from the chest wall.
            heat[evidence.mask(*(lobe for lobe in LUNG_LOBES if lobe != said.site))] = 0.0
    found = _peaked(heat, fine.grid, float(heat.max()), "lesions", name)
    return replace(found, threshold=bundle.config.lesion_thresholds[channel])


def _by_segment(encoding: Encoding, structure: str, bundle: Bundle) -> Grounding:
    fine = encoding.need_fine()
    evidence = Evidence(fine, bundle.config.lesion_thresholds)
    link = evidence.structure_link(structure)
    if link is None:
        raise UsageError(
            f"The {ontology().structure(structure).display} was not found in this scan.",
            found="no voxel that the model takes for it",
            expected="an organ that the scan shows",
            next_step="Ask for another organ, or give a scan that covers it.",
        )
    heat = evidence.mask(structure).astype(np.float32)
    return Grounding(heat, fine.grid, link.center_ras_mm, 1.0, "segment", None)


def _by_similarity(encoding: Encoding, sentences: list[str], bundle: Bundle, name: str | None, structure: str | None) -> Grounding:
    import torch

    from VelvetMedLib.models.velvet import GlobalFeatures

    seen, model = encoding.need_global(), bundle.model
    if not bundle.config.architecture.get("tribert"):
        raise refuse("The bundle cannot read text.", found="no text encoder", expected="a bundle with 'tribert'")
    with torch.inference_mode():
        layout = bundle.tokenizer.layout([sentences], LONGEST_TEXT_TOKENS).to(bundle.device)
        states = model.tribert.text(layout.ids, layout.type_ids, layout.pad_mask)
        text = model.project_text(states, layout)
        bottom, middle, top = (torch.from_numpy(m)[None].to(bundle.device) for m in (seen.bottom, seen.middle, seen.top))
        features = GlobalFeatures(bottom, middle, top, torch.tensor([seen.view_spacing_mm], device=bundle.device))
        cells = model.project_image(features, ["sentence"])["sentence"][0]
        cosine = (cells @ text["sentence"][0, 0]).float().cpu().numpy().reshape(seen.middle.shape[1:])
        report = text["report"][0].float().cpu().numpy()
    regions = encoding.need_reading().region_vectors @ report
    mask = encoding.need_fine().region_mask
    ranked = sorted(((s.name, float(regions[s.label - 1])) for s in ontology().structures if mask[s.label - 1]), key=lambda r: -r[1])
    stretched = (cosine - cosine.min()) / max(float(cosine.max() - cosine.min()), 1e-6)
    heat = stretched.transpose(2, 1, 0).astype(np.float32)
    found = _peaked(heat, middle_grid(seen), float(cosine.max()), "similarity", name, tuple((n, round(c, 4)) for n, c in ranked))
    if structure is None or not (encoding.need_fine().organs_xyz == ontology().structure(structure).label).any():
        return found
    return _within_structure(found, encoding, structure)


def _within_structure(found: Grounding, encoding: Encoding, structure: str) -> Grounding:
    """A named organ is where its segment is: the similarity is kept only inside it."""
    fine = encoding.need_fine()
    inside = fine.organs_kji == ontology().structure(structure).label
    heat = np.where(inside, np.maximum(found.on(fine.grid), 0.05), 0.0).astype(np.float32)
    return _peaked(heat, fine.grid, found.score, "similarity", found.finding, found.structures)


def middle_grid(seen: GlobalPart) -> Grid:
    """The grid of the middle level's cells: each covers a block of cells of the global view."""
    counts = np.array(seen.middle.shape[1:])
    # The middle level has stride 16 in the view's cells; its first centre lies 7.5 cells in.
    stride = 16
    affine = np.array(seen.view_ijk_to_ras, np.float64)
    affine[:3, 3] += affine[:3, :3] @ np.full(3, (stride - 1) / 2)
    affine[:3, :3] *= stride
    return Grid((int(counts[2]), int(counts[1]), int(counts[0])), affine)


def _peaked(
    heat: NDArray[np.float32],
    grid: Grid,
    score: float,
    source: Literal["lesions", "similarity"],
    finding: str | None,
    structures: tuple[tuple[str, float], ...] = (),
) -> Grounding:
    k, j, i = np.unravel_index(int(heat.argmax()), heat.shape)
    point = grid.ijk_to_ras @ np.array([i, j, k, 1.0])
    return Grounding(heat, grid, (float(point[0]), float(point[1]), float(point[2])), round(score, 4), source, finding, structures)
