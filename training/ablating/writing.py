"""Reports that a learner writes of held-out scans, and how true they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pretraining.run import Data

from ablating.views import viewed
from VelvetMedLib.engine.learner import Learner
from VelvetMedLib.engine.manifest import full_text
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.evaluation.reports import score_reports
from VelvetMedLib.objectives.encoding import image_cells
from VelvetMedLib.objectives.report_generation import ReportGeneration
from VelvetMedLib.recipes.colipri_inputs import beginning
from VelvetMedLib.reports import FindingRecord
from VelvetMedLib.reports.practice import FINDINGS


def written_reports(learner: Learner, data: Data, split: str, processes: Processes, seed: int) -> list[str]:
    """The findings section of every study, the likeliest word after the other; none from a learner that does not write."""
    texts: list[str] = []
    for writer in (objective for objective in learner.listed().values() if isinstance(objective, ReportGeneration)):
        begun = torch.tensor([beginning(data.tokenizer, FINDINGS)], device=processes.device)
        for feature in viewed(learner, data, split, processes, seed):
            cells = image_cells(feature).float()
            found = writer.write(cells, begun.expand(len(cells), -1), data.tokenizer.id("[EOS]"))
            texts += [data.tokenizer.decode(ids) for ids in found.ids.tolist()]
    return texts


def report_figures(texts: Sequence[str], data: Data, split: str, records: Sequence[Sequence[FindingRecord]]) -> dict[str, Any]:
    """Scores of what was written, of the same texts on the next scan each, which must be worse, and of the true reports."""
    true = [full_text(entry.study.reports[0]) for entry in data.split(split)]
    return {
        **score_reports(texts, records).as_dict(),
        "different": len(set(texts)),
        "of other scans": score_reports([*texts[1:], *texts[:1]], records).as_dict(),
        "true reports": score_reports(true, records).as_dict(),
    }
