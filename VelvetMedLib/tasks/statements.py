"""What a text states of findings against what a scan shows of them: the evidence that a search by words adds to the cosine.

A contrastive logit is a log-likelihood ratio, that of a text and a scan belonging together against any two. So is what the calibrated
findings say of each statement: how much likelier it is of this scan than of any scan. The two are added:

    score = cosine + 1/scale * sum over statements of log p(statement | this scan) / p(statement)

An index keeps of each scan one row, its study vector followed by these log-ratios over the contrast's scale; a query is a row too, so
that every search is one dot product: words bring their vector and a 1 for each of their statements, scans their vector and zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.reports import FindingRecord, State, ontology
from VelvetMedLib.tasks.abilities import has_heads
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.findings import calibrated, finding_logits

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

LEAST_PROBABILITY = 0.01
"""No scan, and no report of one, speaks for or against a statement with more than this certainty."""
STATES: tuple[State, ...] = ("present", "absent")


def weighs_statements(bundle: Bundle) -> bool:
    """Whether the bundle's findings are calibrated against how often each of them occurs."""
    if not has_heads(bundle) or getattr(bundle.model, "findings", None) is None:
        return False
    return all(bundle.config.finding(name).prevalence is not None for name in ontology().finding_names)


def log_ratios(probability: NDArray[np.float64], prevalence: NDArray[np.float64]) -> NDArray[np.float32]:
    """[..., F] calibrated probabilities to [..., 2 F]: log-ratios of all findings being present, then of their being absent."""
    p = np.clip(probability, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    prior = np.clip(prevalence, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    return np.concatenate([np.log(p / prior), np.log((1 - p) / (1 - prior))], -1).astype(np.float32)


def stated(records: Sequence[FindingRecord]) -> NDArray[np.float32]:
    """[2 F]: 1 where a text says that a finding is present, then where it says absent. What it leaves open counts on neither side."""
    state_of = {record.name: record.state for record in records}
    return np.array([state_of.get(name) == state for state in STATES for name in ontology().finding_names], np.float32)


def kept_row(encoding: Encoding, bundle: Bundle, told: Mapping[str, State] | None = None) -> NDArray[np.float32]:
    """What an index keeps of a scan. told: finding to state, where a report beside the scan says so; it overrules the model."""
    if not weighs_statements(bundle):
        return encoding.study_vector
    entries = [bundle.config.finding(name) for name in ontology().finding_names]
    said = {name: {"present": 1.0, "absent": 0.0}.get(state) for name, state in (told or {}).items()}
    model = [calibrated(entry, float(logit)) for entry, logit in zip(entries, finding_logits(encoding, bundle), strict=True)]
    by_report = [said.get(entry.name) for entry in entries]
    probability = np.array([p if known is None else known for p, known in zip(model, by_report, strict=True)])
    ratios = log_ratios(probability, np.array([entry.prevalence for entry in entries], np.float64))
    return np.concatenate([encoding.study_vector, ratios / _scale(bundle)]).astype(np.float32)


def scan_query(vector: NDArray[np.float32], bundle: Bundle) -> NDArray[np.float32]:
    """A study vector as a query: its score is the cosine alone."""
    return np.concatenate([vector, np.zeros(_width(bundle), np.float32)])


def words_query(vector: NDArray[np.float32], records: Sequence[FindingRecord], bundle: Bundle) -> NDArray[np.float32]:
    """A text's report vector and what it states, as a query."""
    return np.concatenate([vector, stated(records)[: _width(bundle)]])


def _width(bundle: Bundle) -> int:
    return len(STATES) * len(ontology().finding_names) if weighs_statements(bundle) else 0


def _scale(bundle: Bundle) -> float:
    return float(bundle.model.contrast_scale())
