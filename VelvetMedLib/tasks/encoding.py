"""The Encoding: everything a scan's one pass leaves behind, and its file form (one safetensors file, JSON in its header)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.ct import Grid
from VelvetMedLib.errors import CaseError
from VelvetMedLib.shapes import Affine, LabelsKJI, Triple
from VelvetMedLib.tasks.class_maps import ClassMaps
from VelvetMedLib.tasks.tokens import FineMaps, LesionMeta
from VelvetMedLib.tasks.views import inside_scan

FORMAT_VERSION = 1
LEAST_LESION_BYTE = 8
"""Lesion probabilities below 8/255 are kept as 0: no threshold goes that low, and the maps stay sparse."""


@dataclass(frozen=True, eq=False, kw_only=True)
class GlobalPart:
    """The global view's maps after the encoder, [C, X, Y, Z], and how its cells lie in the patient.

    study [D] and picture, uint8 [S, S], for lists: of a model without heads, where nothing else of the scan is kept.
    """

    bottom: NDArray[np.float32]
    middle: NDArray[np.float32]
    top: NDArray[np.float32]
    view_spacing_mm: Triple
    view_ijk_to_ras: Affine
    study: NDArray[np.float32] | None = None
    picture: NDArray[np.uint8] | None = None

    def need_picture(self) -> NDArray[np.uint8]:
        return self.picture if self.picture is not None else _lacks("fine")


@dataclass(frozen=True, eq=False, kw_only=True)
class FinePart:
    """The fine sweep's result on its own axis-aligned RAS grid; (x, y, z) order.

    organs_xyz: labels 0..32. organ_maps: their probabilities; only in memory. lesions_cxyz: [17, X, Y, Z] quantised.
    region_tokens [32, 77] with mask; lesion_tokens [N, 108]; lesion_logits [N, 17] of the bundle's verifier, where it has one. lesions:
    where the tokens come from, without those that the second look dropped. cleaned: ml that each rule of `cleaning.RULES` and
    `verification.DOUBTED` changed; None where the maps are as the network gave them.
    """

    grid: Grid
    body_box_ras: tuple[NDArray[np.float64], NDArray[np.float64]]
    in_view: NDArray[np.bool_]
    hu_xyz: NDArray[np.int16]
    organs_xyz: NDArray[np.uint8]
    organ_maps: ClassMaps | None
    lesions_cxyz: NDArray[np.uint8]
    region_tokens: NDArray[np.float32]
    region_mask: NDArray[np.bool_]
    lesion_tokens: NDArray[np.float32]
    lesions: tuple[LesionMeta, ...]
    lesion_logits: NDArray[np.float32] | None = None
    cleaned: Mapping[str, float] | None = None

    @property
    def organs_kji(self) -> LabelsKJI:
        return self.organs_xyz.transpose(2, 1, 0)

    @property
    def hu_kji(self) -> NDArray[np.int16]:
        return self.hu_xyz.transpose(2, 1, 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Reading:
    """What the reader makes of the tokens. memory [M, W] with mask; study [D]; region_vectors [32, D]; unit vectors."""

    memory: NDArray[np.float32]
    memory_mask: NDArray[np.bool_]
    study: NDArray[np.float32]
    region_vectors: NDArray[np.float32]


@dataclass(frozen=True, eq=False, kw_only=True)
class CropPart:
    """What a model that takes one cube of the scan sees there. view: "crop" or "windowed", as the bundle declares them.

    embedding [D] and dense [D, gx, gy, gz] (float16): unit vectors in the space of texts, cells in (x, y, z) order. grid: where the
    cells lie, in the scan's own directions. covered: for each axis (first, end) of the cells that hold any of the scan.
    picture: uint8 [S, S], for lists.
    """

    view: str
    embedding: NDArray[np.float32]
    dense: NDArray[np.float16]
    grid: Grid
    covered: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    picture: NDArray[np.uint8]


@dataclass(frozen=True, eq=False, kw_only=True)
class Encoding:
    """One scan as one bundle sees it. Parts that were not asked for, or that the bundle's model does not have, are None.

    volume_sha256: `Volume.sha256()`. encoding_key: `Bundle.encoding_key` (weights, preprocessing, lesion thresholds).
    scan_grid: the scan's own grid, to which results go back. precision: arithmetic of the pass. run: `warnings` of the pass.
    """

    volume_sha256: str
    encoding_key: str
    weights_sha256: str
    scan_grid: Grid
    precision: str = "fp32"
    global_: GlobalPart | None = None
    fine: FinePart | None = None
    reading: Reading | None = None
    crop: CropPart | None = None
    run: Mapping[str, Any] = field(default_factory=dict)

    def need_global(self) -> GlobalPart:
        return self.global_ if self.global_ is not None else _lacks("global")

    def need_fine(self) -> FinePart:
        return self.fine if self.fine is not None else _lacks("fine")

    def need_reading(self) -> Reading:
        return self.reading if self.reading is not None else _lacks("reader")

    def need_crop(self) -> CropPart:
        return self.crop if self.crop is not None else _lacks("crop")

    @property
    def study_vector(self) -> NDArray[np.float32]:
        """The unit vector of the whole scan, comparable with those of texts: of the crop, of the reader, or of the global view."""
        if self.crop is not None:
            return self.crop.embedding
        if self.global_ is not None and self.global_.study is not None:
            return self.global_.study
        return self.need_reading().study


def _lacks(part: str) -> Any:
    raise ValueError(f"this encoding was made without {part!r}: name it in needs")


def fine_maps(fine: FinePart, features_cxyz: NDArray[np.float32]) -> FineMaps:
    """The pooling input of a fine part."""
    return FineMaps(fine.organs_xyz, fine.lesions_cxyz, features_cxyz, fine.hu_xyz, fine.grid.ijk_to_ras, fine.body_box_ras, fine.in_view)


def save_encoding(path: Path | str, encoding: Encoding) -> Path:
    """Write a whole encoding atomically. Lesion maps are stored sparsely; organ probabilities are not stored."""
    from safetensors.numpy import save_file

    path = Path(path)
    if encoding.crop is not None:
        tensors, facts = _crop_only(encoding, encoding.crop)
    elif encoding.fine is None:
        tensors, facts = _global_only(encoding.need_global())
    else:
        tensors, facts = _whole(encoding)
    facts = {
        "format_version": FORMAT_VERSION,
        "volume_sha256": encoding.volume_sha256,
        "encoding_key": encoding.encoding_key,
        "weights_sha256": encoding.weights_sha256,
        "precision": encoding.precision,
        "run": dict(encoding.run),
        "scan_grid": _grid_json(encoding.scan_grid),
        **facts,
    }
    temporary = path.with_name(f".{path.name}.part")
    save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, str(temporary), metadata={"velvetmed": json.dumps(facts)})
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    return path


def _crop_only(encoding: Encoding, crop: CropPart) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    if encoding.fine is not None or encoding.global_ is not None:
        raise ValueError("an encoding has a crop or the parts of an analysis, not both")
    tensors: dict[str, NDArray[Any]] = {"embedding": crop.embedding, "dense": crop.dense, "picture": crop.picture}
    return tensors, {"crop_view": crop.view, "crop_grid": _grid_json(crop.grid), "crop_covered": [list(axis) for axis in crop.covered]}


def _global_only(seen: GlobalPart) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    if seen.study is None:
        _lacks("fine")
    assert seen.study is not None
    tensors: dict[str, NDArray[Any]] = {"bottom": seen.bottom, "middle": seen.middle, "top": seen.top}
    return tensors | {"global_study": seen.study, "picture": seen.need_picture()}, _view_facts(seen)


def _view_facts(seen: GlobalPart) -> dict[str, Any]:
    return {"view_spacing_mm": list(seen.view_spacing_mm), "view_ijk_to_ras": seen.view_ijk_to_ras.tolist()}


def _whole(encoding: Encoding) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    seen, fine, reading = encoding.need_global(), encoding.need_fine(), encoding.need_reading()
    where = np.flatnonzero(fine.lesions_cxyz)
    tensors: dict[str, NDArray[Any]] = {
        "bottom": seen.bottom,
        "middle": seen.middle,
        "top": seen.top,
        "hu": fine.hu_xyz,
        "organs": fine.organs_xyz,
        "lesion_index": where.astype(np.int64),
        "lesion_value": fine.lesions_cxyz.ravel()[where],
        "region_tokens": fine.region_tokens,
        "region_mask": fine.region_mask.astype(np.uint8),
        "lesion_tokens": fine.lesion_tokens,
        "memory": reading.memory,
        "memory_mask": reading.memory_mask.astype(np.uint8),
        "study": reading.study,
        "region_vectors": reading.region_vectors,
    }
    if fine.lesion_logits is not None:
        tensors["lesion_logits"] = fine.lesion_logits
    facts: dict[str, Any] = {
        "fine_grid": _grid_json(fine.grid),
        "body_box_ras": [np.asarray(corner).tolist() for corner in fine.body_box_ras],
        **_view_facts(seen),
        "lesions": [meta.as_dict() for meta in fine.lesions],
        "cleaned": fine.cleaned,
    }
    return tensors, facts


def load_encoding(path: Path | str) -> Encoding:
    """Read what `save_encoding` wrote. Raises CaseError on a damaged file or an unknown format version."""
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="numpy") as opened:
            facts = json.loads((opened.metadata() or {})["velvetmed"])
            version = facts.get("format_version")
            if version == FORMAT_VERSION:
                t = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                return _assemble_crop(facts, t) if "crop_view" in facts else _assemble(facts, t)
    except CaseError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise _damaged(type(error).__name__) from None
    raise CaseError(
        "The stored encoding has a format version that this VelvetMed does not know.",
        found=f"format_version = {version!r}",
        expected=f"format_version = {FORMAT_VERSION}",
        next_step="Run 'velvetmed analyze' on the scan again.",
    )


def _assemble_crop(facts: dict[str, Any], t: dict[str, NDArray[Any]]) -> Encoding:
    grid = _grid(facts["crop_grid"])
    if t["dense"].shape[1:] != grid.shape_kji[::-1] or t["dense"].shape[0] != len(t["embedding"]):
        raise _damaged("vectors of another shape than their grid")
    x, y, z = ((int(first), int(end)) for first, end in facts["crop_covered"])
    crop = CropPart(
        view=str(facts["crop_view"]), embedding=t["embedding"], dense=t["dense"], grid=grid, covered=(x, y, z), picture=t["picture"]
    )
    return _encoding(facts, crop=crop)


def _assemble(facts: dict[str, Any], t: dict[str, NDArray[Any]]) -> Encoding:
    scan_grid = _grid(facts["scan_grid"])
    if "global_study" in t:
        return _encoding(facts, global_=_global_part(facts, t))
    grid = _grid(facts["fine_grid"])
    shape = t["organs"].shape
    if shape != grid.shape_kji[::-1] or t["hu"].shape != shape:
        raise _damaged("maps of another shape than their grid")
    lesions = np.zeros((17, *shape), np.uint8)
    lesions.ravel()[t["lesion_index"]] = t["lesion_value"]
    low, high = (np.asarray(corner, np.float64) for corner in facts["body_box_ras"])
    fine = FinePart(
        grid=grid,
        body_box_ras=(low, high),
        in_view=inside_scan(scan_grid, grid),
        hu_xyz=t["hu"],
        organs_xyz=t["organs"],
        organ_maps=None,
        lesions_cxyz=lesions,
        region_tokens=t["region_tokens"],
        region_mask=t["region_mask"].astype(bool),
        lesion_tokens=t["lesion_tokens"],
        lesion_logits=t.get("lesion_logits"),
        lesions=tuple(LesionMeta.from_dict(m) for m in facts["lesions"]),
        cleaned=facts.get("cleaned"),
    )
    reading = Reading(memory=t["memory"], memory_mask=t["memory_mask"].astype(bool), study=t["study"], region_vectors=t["region_vectors"])
    return _encoding(facts, global_=_global_part(facts, t), fine=fine, reading=reading)


def _global_part(facts: dict[str, Any], t: dict[str, NDArray[Any]]) -> GlobalPart:
    x, y, z = facts["view_spacing_mm"]
    return GlobalPart(
        bottom=t["bottom"],
        middle=t["middle"],
        top=t["top"],
        view_spacing_mm=(x, y, z),
        view_ijk_to_ras=np.asarray(facts["view_ijk_to_ras"], np.float64),
        study=t.get("global_study"),
        picture=t.get("picture"),
    )


def _encoding(facts: dict[str, Any], **parts: Any) -> Encoding:
    return Encoding(
        volume_sha256=facts["volume_sha256"],
        encoding_key=facts["encoding_key"],
        weights_sha256=facts["weights_sha256"],
        scan_grid=_grid(facts["scan_grid"]),
        precision=facts["precision"],
        run=facts["run"],
        **parts,
    )


def _damaged(found: str) -> CaseError:
    return CaseError(
        "The stored encoding of this case cannot be read.",
        found=found,
        expected="encoding.safetensors as 'velvetmed analyze' wrote it",
        next_step="Run 'velvetmed analyze' on the scan again.",
    )


def _grid_json(grid: Grid) -> dict[str, Any]:
    return {"shape_kji": list(grid.shape_kji), "ijk_to_ras": np.asarray(grid.ijk_to_ras).tolist()}


def _grid(data: dict[str, Any]) -> Grid:
    k, j, i = (int(n) for n in data["shape_kji"])
    return Grid((k, j, i), np.asarray(data["ijk_to_ras"], np.float64))
