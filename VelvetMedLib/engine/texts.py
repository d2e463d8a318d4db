"""Which sentences of a report are read in training; how they are laid out is the recipes' (`recipes.layouts`)."""

from __future__ import annotations

from VelvetMedLib.engine.manifest import Report
from VelvetMedLib.recipes.parts import ReportSettings
from VelvetMedLib.reports import is_irrelevant


def sentences_of(report: Report, settings: ReportSettings) -> list[str]:
    """The sentences of the sections that the settings choose."""
    wanted = {title.strip().lower() for title in settings.report_fields}
    return [
        sentence
        for section in report
        if (section.title.strip().lower() in wanted if wanted else not (settings.skip_irrelevant and is_irrelevant(section.title)))
        for sentence in section.sentences
    ]
