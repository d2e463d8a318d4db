"""Report text: finding records, the ontology, sections and sentences, prose, questions. Standard library and numpy only."""

from VelvetMedLib.reports.ontology import LUNG_LOBES, VERTEBRAL_LEVELS, Code, Finding, Lesion, Measure, Ontology, Structure, ontology
from VelvetMedLib.reports.records import STATES, FindingRecord, Severity, Side, State

__all__ = [
    "LUNG_LOBES",
    "STATES",
    "VERTEBRAL_LEVELS",
    "Code",
    "Finding",
    "FindingRecord",
    "Lesion",
    "Measure",
    "Ontology",
    "Severity",
    "Side",
    "State",
    "Structure",
    "ontology",
]
