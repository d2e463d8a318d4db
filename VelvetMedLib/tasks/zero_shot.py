"""Findings without a trained head: a scan's vector against those of opposite prompts, with the score's variant named beside it.

The variants (methods.md 3.5), with cosines c+ and c- of the scan with the positive and the negative prompt:
pair_softmax        soft-max over (c+, c-) / temperature, of the first pair of templates
sigmoid_difference  1 / (1 + exp(-(c+ - c-))), of the first pair of templates
template_mean       mean of pair_softmax over all pairs of templates

A score is no probability of disease. Until a bundle's calibration has been measured (`zero_shot.calibrated`), a high score makes
a finding `uncertain`, anything else `not_assessed`: such a model may draw attention, it may not clear.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from VelvetMedLib.bundle.config import SCORES, ZeroShotConfig, refuse
from VelvetMedLib.case import CaseFinding
from VelvetMedLib.errors import UsageError
from VelvetMedLib.reports import ontology
from VelvetMedLib.tasks.abilities import takes_one_crop
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.text_vectors import text_vectors

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

VARIANTS = SCORES


@dataclass(frozen=True)
class Prompts:
    """A version of the prompt file. pairs: (positive, negative) templates; words: what stands for {} per finding."""

    version: str
    pairs: tuple[tuple[str, str], ...]
    words: dict[str, str]

    def of(self, finding: str) -> list[tuple[str, str]]:
        """All pairs of prompts for a finding, the first template's first."""
        word = self.words[finding]
        return [(_sentence(positive, word), _sentence(negative, word)) for positive, negative in self.pairs]


@dataclass(frozen=True)
class Score:
    """What opposite prompts say of a finding. score: 0..1; cosines: of the scan with the first pair. variant and prompts: named."""

    finding: str
    score: float
    cosines: tuple[float, float]
    variant: str
    prompts: str


@lru_cache(maxsize=4)
def load_prompts(version: str) -> Prompts:
    """The prompt file of a version (assets/prompts). Raises BundleError where this VelvetMed does not have it."""
    place = files("VelvetMedLib").joinpath("assets", "prompts", f"zero_shot_{version}.json")
    if not version.isalnum() or not place.is_file():
        raise refuse("The bundle's prompts are not known here.", found=f"prompts {version!r}", expected="a version that VelvetMed ships")
    data: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    return Prompts(str(data["version"]), tuple((p, n) for p, n in data["templates"]), dict(data["words"]))


def scores(encoding: Encoding, bundle: Bundle, findings: Sequence[str] | None = None, *, variant: str | None = None) -> tuple[Score, ...]:
    """Zero-shot scores of findings (all of the ontology unless named) by a variant (the bundle's unless named).

    Raises UsageError on an unknown variant, BundleError where the bundle reads no text.
    """
    settings = bundle.config.zero_shot
    variant = variant or (settings.variant if settings is not None else VARIANTS[0])
    if variant not in VARIANTS:
        raise UsageError(
            "This zero-shot score is not known.",
            found=variant,
            expected=", ".join(VARIANTS),
            next_step="Choose one of them.",
        )
    prompts = load_prompts(settings.prompts if settings is not None else "1")
    names = list(ontology().finding_names if findings is None else findings)
    pairs = [prompts.of(name)[: None if variant == "template_mean" else 1] for name in names]
    texts = [text for of_one in pairs for pair in of_one for text in pair]
    cosines = [float(c) for c in text_vectors([[text] for text in texts], bundle) @ encoding.study_vector]
    temperature = float(bundle.model.softmax_temperature) if takes_one_crop(bundle) else 1 / float(bundle.model.contrast_scale())
    out, at = [], 0
    for name, of_one in zip(names, pairs, strict=True):
        own = [(cosines[at + 2 * n], cosines[at + 2 * n + 1]) for n in range(len(of_one))]
        at += 2 * len(of_one)
        out.append(Score(name, score_of(own, variant, temperature), own[0], variant, prompts.version))
    return tuple(out)


def score_of(cosines: Sequence[tuple[float, float]], variant: str, temperature: float) -> float:
    """The score of pairs of cosines (positive, negative) by a named variant."""
    if variant == "sigmoid_difference":
        return _sigmoid(cosines[0][0] - cosines[0][1])
    used = cosines if variant == "template_mean" else cosines[:1]
    return sum(_sigmoid((positive - negative) / temperature) for positive, negative in used) / len(used)


def find_by_prompts(encoding: Encoding, bundle: Bundle) -> tuple[CaseFinding, ...]:
    """All findings of the ontology, in its order, from the bundle's own variant of the score."""
    from VelvetMedLib.tasks.findings import calibrated, state_of

    settings = bundle.config.zero_shot or ZeroShotConfig()
    table = ontology()
    if bundle.tokenizer is None:
        return tuple(_unassessed(f.name, "the model's text half is missing: it cannot read prompts") for f in table.findings)
    out = []
    for score in scores(encoding, bundle):
        entry = bundle.config.finding(score.finding)
        said = f"zero-shot score {score.score:.2f} ({score.variant}, prompts {score.prompts})"
        if not entry.assessed:
            out.append(_unassessed(score.finding, f"not assessed by this model: {entry.reason}"))
        elif settings.calibrated:
            probability = calibrated(entry, _logit(score.score))
            state = state_of(entry, probability)
            display = table.finding(score.finding).display
            out.append(CaseFinding(name=score.finding, display=display, state=state, probability=round(probability, 4), reason=said))
        elif score.score >= entry.threshold_present:
            display = table.finding(score.finding).display
            reason = f"{said}, not calibrated: the score is no probability"
            out.append(CaseFinding(name=score.finding, display=display, state="uncertain", probability=None, reason=reason))
        else:
            out.append(_unassessed(score.finding, f"{said}, not calibrated: it cannot say that nothing is there"))
    return tuple(out)


def _unassessed(name: str, reason: str) -> CaseFinding:
    return CaseFinding(
        name=name, display=ontology().finding(name).display, state="not_assessed", probability=None, reason=reason, link=None
    )


def _sentence(template: str, word: str) -> str:
    text = template.replace("{}", word)
    return text[0].upper() + text[1:]


def _sigmoid(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-z)) if z >= 0 else math.exp(z) / (1.0 + math.exp(z))


def _logit(p: float) -> float:
    p = min(max(p, 1e-6), 1.0 - 1e-6)
    return math.log(p / (1.0 - p))
