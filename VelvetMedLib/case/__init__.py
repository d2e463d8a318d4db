"""The Case folder: what an analysis found, how it is measured, written, read and checked. Standard library, numpy, SimpleITK."""

from VelvetMedLib.case.about import About
from VelvetMedLib.case.attribution import attribution_of
from VelvetMedLib.case.checks import checked
from VelvetMedLib.case.markdown import report_markdown
from VelvetMedLib.case.schema import (
    SCHEMA_VERSION,
    Answer,
    Case,
    CaseFinding,
    CaseInput,
    CaseModel,
    Flag,
    Link,
    Overruling,
    Report,
    Revision,
    Section,
    Segment,
    Sentence,
    Vertebra,
)
from VelvetMedLib.case.store import case_to_json, read_case, read_segmentation, update_case, write_case

__all__ = [
    "SCHEMA_VERSION",
    "About",
    "Answer",
    "Case",
    "CaseFinding",
    "CaseInput",
    "CaseModel",
    "Flag",
    "Link",
    "Overruling",
    "Report",
    "Revision",
    "Section",
    "Segment",
    "Sentence",
    "Vertebra",
    "attribution_of",
    "case_to_json",
    "checked",
    "read_case",
    "read_segmentation",
    "report_markdown",
    "update_case",
    "write_case",
]
