"""Report text: finding records, the ontology, sections and sentences, prose, questions. Standard library and numpy only."""

from VelvetMedLib.reports.asked import Asked, Organ, findings_of, understand
from VelvetMedLib.reports.ontology import LUNG_LOBES, VERTEBRAL_LEVELS, Code, Finding, Lesion, Measure, Ontology, Structure, ontology
from VelvetMedLib.reports.parse import parse_report, parse_sentence
from VelvetMedLib.reports.phrases import fill_slots
from VelvetMedLib.reports.prose import ALL_STYLES, HELD_OUT_STYLE, STYLES, ProseSection, ProseSentence, render, write_report, write_sentence
from VelvetMedLib.reports.questions import KINDS, Question, make_questions, suggested_questions
from VelvetMedLib.reports.records import STATES, FindingRecord, Severity, Side, State
from VelvetMedLib.reports.sentences import is_irrelevant, split_sections, split_sentences

__all__ = [
    "ALL_STYLES",
    "HELD_OUT_STYLE",
    "KINDS",
    "LUNG_LOBES",
    "STATES",
    "STYLES",
    "VERTEBRAL_LEVELS",
    "Asked",
    "Code",
    "Finding",
    "FindingRecord",
    "Lesion",
    "Measure",
    "Ontology",
    "Organ",
    "ProseSection",
    "ProseSentence",
    "Question",
    "Severity",
    "Side",
    "State",
    "Structure",
    "fill_slots",
    "findings_of",
    "is_irrelevant",
    "make_questions",
    "ontology",
    "parse_report",
    "parse_sentence",
    "render",
    "split_sections",
    "split_sentences",
    "suggested_questions",
    "understand",
    "write_report",
    "write_sentence",
]
