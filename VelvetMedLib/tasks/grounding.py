"""Where in the scan a phrase is: a heat-map on the scan's own grid, and its peak in RAS mm.

A phrase that names a finding with a lesion channel is answered by that channel's probability, on the side or in the lobe
that the phrase names. Any other phrase is answered by the cosine map of the hierarchy: a few words by the similarity of each with the
cells of the global view's bottom level, sentences by theirs with the middle level, and with every structure where the bundle has a
reader of organs. Where the bundle never learnt such similarity, an organ is shown by its segment.
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
from VelvetMedLib.shapes import IntTriple, Triple
from VelvetMedLib.tasks.abilities import takes_one_crop
from VelvetMedLib.tasks.crop import similarity_xyz
from VelvetMedLib.tasks.encoding import CropPart, Encoding, GlobalPart
from VelvetMedLib.tasks.evidence import Evidence
from VelvetMedLib.tasks.text_vectors import LONGEST_TEXT_TOKENS, text_vectors

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

MOST_WORDS = 3
"""A text of more words is read as sentences: what its words mean lies in how they stand together."""
LEAST_IN_ORGAN = 0.05
"""Heat of an organ that a phrase names where the phrase is least similar."""
Way = Literal["lesions", "similarity", "segment"]


@dataclass(frozen=True, eq=False)
class Grounding:
    """heat_kji: float32, 0..1, on `grid`. source: "lesions" (a probability), "similarity" (cosine, stretched to 0..1) or
    "segment" (1 in the organ that is named, peak in its middle).

    score: the probability or cosine at the peak. structures: names with their cosine, most similar first, for "similarity".
    level: of the hierarchy, for its cosine map. threshold: for "lesions" the probability from which the bundle marks a voxel; below
    it nothing of the kind was seen.
    """

    heat_kji: NDArray[np.float32]
    grid: Grid
    peak_ras_mm: Triple
    score: float
    source: Way
    finding: str | None
    structures: tuple[tuple[str, float], ...] = ()
    level: Literal["sentence", "word"] | None = None
    threshold: float | None = None

    @property
    def marked(self) -> bool:
        """Whether anything was seen at all."""
        return self.threshold is None or self.score >= self.threshold

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


def ground(encoding: Encoding, phrase: str, bundle: Bundle, *, by: Literal["lesions", "similarity"] | None = None) -> Grounding:
    """Where a phrase is in the scan; no encoder of images runs. by: in this way only; without it in the surest that there is.

    Of the encoding it takes what there is: "fine" for lesions and organs, "global" for similarity, "reader" for the similarity of
    organs. Raises BundleError where the bundle cannot place the phrase, UsageError where there are no words or the organ is not seen.
    """
    sentences = checked_text(phrase)
    name = next(iter(find_findings(phrase)), None)
    if takes_one_crop(bundle) and by != "lesions":
        return _by_cells(encoding.need_crop(), sentences, bundle, name)
    seen_fine = encoding.fine is not None
    if by != "similarity" and seen_fine and _has_channel(name, bundle):
        assert name is not None
        return _by_lesions(encoding, name, phrase, bundle)
    named = understand(phrase).structures
    structure = named[0] if len(named) == 1 else None
    levels = [level for level in ("sentence", "word") if level in bundle.config.aligned_levels and encoding.global_ is not None]
    if by != "lesions" and levels:
        return _by_similarity(encoding, sentences, bundle, name, structure)
    if by is None and seen_fine and name is None and structure is not None:
        return _by_segment(encoding, structure, bundle)
    raise refuse(
        f"The bundle {bundle.config.id!r} cannot place this phrase.",
        found="sentences and image cells that were never trained to agree",
        expected="a phrase that names an organ or a finding which the bundle assesses and marks, or a bundle aligned by sentences or words",
        next_step="Name such a finding ('velvetmed models show' lists them), or choose another bundle.",
    )


def _has_channel(name: str | None, bundle: Bundle) -> bool:
    """Whether the bundle marks a finding's voxels and may be believed."""
    return name is not None and ontology().finding(name).lesion is not None and bundle.config.finding(name).assessed


def _by_cells(part: CropPart, sentences: list[str], bundle: Bundle, name: str | None) -> Grounding:
    """The text against the vector of every cell that holds any of the scan (COLIPRI's dense mode)."""
    cosine = similarity_xyz(part, text_vectors([sentences], bundle)[0])
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
    """Mean over the text's sentences, or words, of their cosine with every cell of their level."""
    import torch

    from VelvetMedLib.models.velvet import GlobalFeatures

    seen, model = encoding.need_global(), bundle.model
    if not bundle.config.architecture.get("tribert"):
        raise refuse("The bundle cannot read text.", found="no text encoder", expected="a bundle with 'tribert'")
    level = _level_of(sentences, bundle)
    with torch.inference_mode():
        layout = bundle.tokenizer.layout([sentences], LONGEST_TEXT_TOKENS).to(bundle.device)
        text = model.project_text(model.tribert.text(layout.ids, layout.type_ids, layout.pad_mask), layout)
        bottom, middle, top = (torch.from_numpy(m)[None].to(bundle.device) for m in (seen.bottom, seen.middle, seen.top))
        features = GlobalFeatures(bottom, middle, top, torch.tensor([seen.view_spacing_mm], device=bundle.device))
        cells = model.project_image(features, [level])[level][0]
        units = text[level][0][text[f"{level}_mask"][0]]
        cosine_kji = (cells @ units.T).mean(1).reshape(features.of(level).shape[2:]).float().cpu().numpy().transpose(2, 1, 0)
        report = text["report"][0].float().cpu().numpy()
    grid = cell_grid(seen, cosine_kji.shape, bundle.config.views.global_.shape_voxels)
    low, high = float(cosine_kji.min()), float(cosine_kji.max())
    heat = ((cosine_kji - low) / max(high - low, 1e-6)).astype(np.float32)
    inside = None
    if structure is not None and encoding.fine is not None:
        inside = encoding.fine.organs_kji == ontology().structure(structure).label
    if inside is not None and inside.any() and encoding.fine is not None:
        # A named organ is where its segment is: the similarity is kept only inside it.
        within = resample_array(heat, grid, encoding.fine.grid, outside=0.0, antialias=False)
        heat, grid = np.where(inside, np.maximum(within, LEAST_IN_ORGAN), 0.0).astype(np.float32), encoding.fine.grid
    found = _peaked(heat, grid, low + float(heat.max()) * (high - low), "similarity", name)
    return replace(found, level=level, structures=_ranked_structures(encoding, report))


def _level_of(sentences: list[str], bundle: Bundle) -> Literal["sentence", "word"]:
    few = sum(len(sentence.split()) for sentence in sentences) <= MOST_WORDS
    order: tuple[Literal["sentence", "word"], ...] = ("word", "sentence") if few else ("sentence", "word")
    return next(level for level in order if level in bundle.config.aligned_levels)


def _ranked_structures(encoding: Encoding, report: NDArray[np.float32]) -> tuple[tuple[str, float], ...]:
    """Cosine of the organs in view with a text's vector; nothing where no organ was read."""
    if encoding.reading is None or encoding.fine is None:
        return ()
    cosine, mask = encoding.reading.region_vectors @ report, encoding.fine.region_mask
    pairs = [(s.name, round(float(cosine[s.label - 1]), 4)) for s in ontology().structures if mask[s.label - 1]]
    return tuple(sorted(pairs, key=lambda pair: -pair[1]))


def cell_grid(seen: GlobalPart, counts_kji: tuple[int, ...], view_voxels: IntTriple) -> Grid:
    """The grid of a level's cells: each covers an equal block of the global view's voxels."""
    k, j, i = counts_kji
    block = np.array(view_voxels) / np.array([i, j, k])
    affine = np.array(seen.view_ijk_to_ras, np.float64)
    affine[:3, 3] += affine[:3, :3] @ ((block - 1) / 2)
    affine[:3, :3] *= block
    return Grid((k, j, i), affine)


def _peaked(
    heat: NDArray[np.float32],
    grid: Grid,
    score: float,
    source: Way,
    finding: str | None,
) -> Grounding:
    k, j, i = np.unravel_index(int(heat.argmax()), heat.shape)
    point = grid.ijk_to_ras @ np.array([i, j, k, 1.0])
    return Grounding(heat, grid, (float(point[0]), float(point[1]), float(point[2])), round(score, 4), source, finding)
