"""bundle.json as a dataclass that checks itself: every number a trained model needs, and nothing that could run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from VelvetMedLib.errors import BundleError
from VelvetMedLib.reports import ontology
from VelvetMedLib.shapes import FourNumbers, IntTriple, Triple

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
CARD_FILE = "MODEL_CARD.md"
CONFIG_FILE = "bundle.json"
LEVELS = ("report", "sentence", "word")
VELVET, COLIPRI = "velvet", "colipri"
FAMILIES: Mapping[str, tuple[str, ...]] = {VELVET: ("global", "fine"), COLIPRI: ("crop",)}
"""The kinds of models that this version builds, and the views without which each cannot look at a scan."""
ORIENTATIONS = ("RAS", "SAR")
SCORES = ("pair_softmax", "sigmoid_difference", "template_mean")
_NEXT = "Use an undamaged copy of the bundle, or one made for this version of VelvetMed."


def refuse(what: str, *, found: str, expected: str, next_step: str = _NEXT) -> BundleError:
    """A BundleError in four parts (returned, so that the caller's `raise` stays visible)."""
    return BundleError(what, found=found, expected=expected, next_step=next_step)


@dataclass(frozen=True, kw_only=True)
class GlobalViewConfig:
    """The whole body squeezed into one small volume."""

    shape_voxels: IntTriple = (64, 64, 64)
    hu_window: tuple[float, float] = (-1000.0, 1000.0)

    def __post_init__(self) -> None:
        check(all(n > 0 and n % 32 == 0 for n in self.shape_voxels), "views.global.shape_voxels", self.shape_voxels, "multiples of 32")
        _check_window("views.global.hu_window", self.hu_window)


@dataclass(frozen=True, kw_only=True)
class FineViewConfig:
    """Tiles at a fixed spacing. overlap: share of a tile's side that neighbouring tiles have in common."""

    spacing_mm: Triple = (4.0, 4.0, 4.0)
    tile_voxels: IntTriple = (96, 80, 96)
    overlap: float = 0.25
    hu_windows: tuple[tuple[float, float], ...] = ((-1000.0, 1000.0), (-160.0, 240.0))

    def __post_init__(self) -> None:
        check(all(0.2 <= s <= 20 for s in self.spacing_mm), "views.fine.spacing_mm", self.spacing_mm, "three spacings of 0.2 to 20 mm")
        check(all(n > 0 and n % 16 == 0 for n in self.tile_voxels), "views.fine.tile_voxels", self.tile_voxels, "multiples of 16")
        check(0 <= self.overlap <= 0.75, "views.fine.overlap", self.overlap, "0 to 0.75")
        for window in self.hu_windows:
            _check_window("views.fine.hu_windows", window)


@dataclass(frozen=True, kw_only=True)
class CropViewConfig:
    """A cube of windows * window_voxels a side around the scan's middle, read by the encoder one window at a time.

    orientation: which body axes the tensor's three axes are. COLIPRI's package used both; which one its weights were trained with
    is not known.
    """

    spacing_mm: float = 2.0
    window_voxels: int = 192
    windows: int = 1
    hu_window: tuple[float, float] = (-1000.0, 1000.0)
    orientation: str = "RAS"

    def __post_init__(self) -> None:
        check(0.2 <= self.spacing_mm <= 20, "views.crop.spacing_mm", self.spacing_mm, "0.2 to 20 mm")
        check(0 < self.window_voxels <= 1024, "views.crop.window_voxels", self.window_voxels, "1 to 1024 voxels")
        check(1 <= self.windows <= 8, "views.crop.windows", self.windows, "1 to 8 windows a side")
        _check_window("views.crop.hu_window", self.hu_window)
        check(self.orientation in ORIENTATIONS, "views.crop.orientation", self.orientation, " or ".join(ORIENTATIONS))

    @property
    def shape_voxels(self) -> IntTriple:
        side = self.windows * self.window_voxels
        return (side, side, side)


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Preprocessing of every view the model was trained on; what its family does not use stays out of bundle.json.

    crop: the one view of a COLIPRI model; windowed: the published evaluation's finer one, where the bundle offers it.
    """

    global_: GlobalViewConfig = field(default_factory=GlobalViewConfig)
    fine: FineViewConfig = field(default_factory=FineViewConfig)
    crop: CropViewConfig | None = None
    windowed: CropViewConfig | None = None


@dataclass(frozen=True, kw_only=True)
class LesionEntry:
    """One lesion channel and the probability from which a voxel counts as lesion.

    least_trust: what the model's verifier must give a part of this channel, 0 to 1, for it to be kept; 0 drops none.
    """

    name: str
    threshold: float = 0.5
    least_trust: float = 0.0

    def __post_init__(self) -> None:
        check(0 < self.threshold <= 1, f"lesions[{self.name}].threshold", self.threshold, "a probability above 0 and at most 1")
        check(0 <= self.least_trust < 1, f"lesions[{self.name}].least_trust", self.least_trust, "a share from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Platt scaling of a logit: probability = sigmoid(slope * logit + bias)."""

    slope: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        check(math.isfinite(self.slope) and self.slope > 0, "calibration.slope", self.slope, "a positive number")
        check(math.isfinite(self.bias), "calibration.bias", self.bias, "a finite number")


@dataclass(frozen=True, kw_only=True)
class FindingEntry:
    """How one finding is decided. assessed False: the model does not tell it from chance; `reason` says what was seen.

    A calibrated probability from `threshold_present` on is present, below `threshold_absent` absent, between uncertain.
    prevalence: share of present among the cases that it was calibrated on; None where that is not known.
    evidence: weights of the head's logit and of the three numbers by which the lesion map shows its kind (`tasks.tokens.lesion_summary`);
    their sum is what is calibrated. None: the head's logit alone is.
    """

    name: str
    assessed: bool = True
    reason: str = ""
    calibration: Calibration = field(default_factory=Calibration)
    threshold_absent: float = 0.35
    threshold_present: float = 0.65
    prevalence: float | None = None
    evidence: FourNumbers | None = None

    def __post_init__(self) -> None:
        where = f"findings[{self.name}]"
        weighed = self.evidence is None or (len(self.evidence) == 4 and all(map(math.isfinite, self.evidence)))
        check(weighed, f"{where}.evidence", self.evidence, "four finite weights, or none")
        ordered = 0 <= self.threshold_absent <= self.threshold_present <= 1
        check(ordered, f"{where} thresholds", (self.threshold_absent, self.threshold_present), "0 <= absent <= present <= 1")
        known = self.prevalence is None or 0 <= self.prevalence <= 1
        check(known, f"{where}.prevalence", self.prevalence, "a share from 0 to 1, or none")
        check(self.assessed or bool(self.reason), f"{where}.reason", self.reason, "why the finding is not assessed")


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """How findings are told without a trained head, from opposite prompts (`tasks.zero_shot`).

    prompts: version of the prompt file. variant: name of the score. calibrated: whether the findings' calibration and thresholds
    were measured on labelled scans; until then no finding is called present or absent.
    """

    prompts: str = "1"
    variant: str = "pair_softmax"
    calibrated: bool = False

    def __post_init__(self) -> None:
        check(self.variant in SCORES, "zero_shot.variant", self.variant, ", ".join(SCORES))


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What a file of the bundle must be."""

    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        check(re.fullmatch(r"[0-9a-f]{64}", self.sha256) is not None, "files.sha256", self.sha256, "64 lower-case hexadecimal digits")
        check(self.bytes >= 0, "files.bytes", self.bytes, "a size in bytes")


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """bundle.json. family: which networks `architecture` describes ("velvet": `models.velvet.ModelConfig`, "colipri":
    `models.colipri.ColipriConfig`), in dictionary form. results: measured figures and provenance, free form.

    aligned_levels: the levels at which image and text were trained to agree; what is not named here has untrained
    projections, and no task may read meaning into them.
    """

    id: str
    version: str
    recipe: str
    licence: str
    training_data: str
    intended_use: str
    architecture: Mapping[str, Any]
    views: ViewsConfig = field(default_factory=ViewsConfig)
    aligned_levels: tuple[str, ...] = ()
    structures: tuple[str, ...] = field(default_factory=lambda: tuple(s.name for s in ontology().structures))
    lesions: tuple[LesionEntry, ...] = field(default_factory=lambda: tuple(LesionEntry(name=x.name) for x in ontology().lesions))
    findings: tuple[FindingEntry, ...] = field(default_factory=lambda: tuple(FindingEntry(name=f.name) for f in ontology().findings))
    results: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    family: str = VELVET
    zero_shot: ZeroShotConfig | None = None

    def __post_init__(self) -> None:
        table = ontology()
        check(self.family in FAMILIES, "family", self.family, " or ".join(FAMILIES))
        segments = self.family == VELVET
        if not segments:
            check(self.views.crop is not None, "views.crop", "nothing", "the view of this family")
            check(self.zero_shot is not None, "zero_shot", "nothing", "how this family tells findings")
        check(set(self.aligned_levels) <= set(LEVELS), "aligned_levels", self.aligned_levels, "among " + ", ".join(LEVELS))
        check(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.id) is not None, "id", self.id, "letters, digits, '.', '_' and '-'")
        for name in ("version", "licence", "training_data", "intended_use"):
            check(bool(getattr(self, name).strip()), name, getattr(self, name), "a statement, not an empty text")
        _check_names("structures", self.structures, tuple(s.name for s in table.structures) if segments else ())
        _check_names("lesions", [x.name for x in self.lesions], tuple(x.name for x in table.lesions) if segments else ())
        _check_names("findings", [f.name for f in self.findings], table.finding_names)
        for name in self.files:
            check(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None, "files", name, "plain file names")

    @property
    def reads_text(self) -> bool:
        """Whether the model has a text half: COLIPRI's image half can stand alone."""
        return self.family == VELVET or self.architecture.get("text") is not None

    @property
    def required_files(self) -> tuple[str, ...]:
        """Files that a bundle of this kind must hold beside bundle.json."""
        return (WEIGHTS_FILE, TOKENIZER_FILE, CARD_FILE) if self.reads_text else (WEIGHTS_FILE, CARD_FILE)

    @property
    def lesion_thresholds(self) -> tuple[float, ...]:
        return tuple(x.threshold for x in self.lesions)

    def finding(self, name: str) -> FindingEntry:
        """Raises KeyError on an unknown finding."""
        for entry in self.findings:
            if entry.name == name:
                return entry
        raise KeyError(name)

    def to_json(self) -> str:
        """The text of bundle.json; inverse of `reading.parse`."""
        data = asdict(self)
        views = data.pop("views")
        data["views"] = {name.rstrip("_"): view for name, view in views.items() if view is not None}
        if self.family == VELVET:
            del data["family"]  # older versions of this program know no other family
        else:
            data["views"] = {name: view for name, view in data["views"].items() if name in ("crop", "windowed")}
        if self.zero_shot is None:
            del data["zero_shot"]
        for finding in data["findings"]:
            for name in ("prevalence", "evidence"):
                if finding[name] is None:
                    del finding[name]
        for lesion in data["lesions"]:
            if lesion["least_trust"] == 0:
                del lesion["least_trust"]
        return json.dumps({"format_version": data.pop("format_version"), **data}, indent=1, ensure_ascii=False)


def check(ok: bool, where: str, found: Any, expected: Any) -> None:
    """Raises BundleError that names the key `where` unless `ok`."""
    if not ok:
        raise refuse(f"'{where}' in bundle.json cannot be used.", found=f"{found}", expected=f"{expected}")


def _check_window(where: str, window: Sequence[float]) -> None:
    check(len(window) == 2 and window[0] < window[1], where, tuple(window), "low HU, high HU")


def _check_names(where: str, found: Sequence[str], expected: Sequence[str]) -> None:
    if tuple(found) != tuple(expected):
        wrong = sorted(set(found) ^ set(expected)) or ["another order"]
        raise refuse(
            f"The {where} of the bundle are not those of this version.",
            found="different: " + ", ".join(wrong[:8]),
            expected=f"the {len(expected)} {where} of the ontology, in its order",
        )
