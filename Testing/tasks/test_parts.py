"""An analysis makes the parts that are asked for and no other; a report brings its findings along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from VelvetMedLib import tasks
from VelvetMedLib.case import read_case


@pytest.mark.parametrize(
    ("parts", "segments", "findings", "report"),
    [
        (("segments",), True, False, False),
        (("findings",), False, True, False),
        (("report",), False, True, True),
        (tasks.PARTS, True, True, True),
    ],
)
def test_only_the_chosen_parts_are_made(
    body: Any, random_bundle: Any, parts: tuple[str, ...], segments: bool, findings: bool, report: bool, tmp_path: Path
) -> None:
    tasks.analyze(body, random_bundle, out=tmp_path / "case", parts=parts, keep_image=False, keep_encoding=False)
    case = read_case(tmp_path / "case")
    assert (tmp_path / "case" / "segmentation.nii.gz").is_file() == segments == bool(case.segments)
    assert (len(case.findings) == 21, case.report is not None) == (findings, report)
    assert ("segmentation" in case.timings, "report" in case.timings) == (segments, report)


def test_an_unknown_part_is_refused(body: Any, random_bundle: Any) -> None:
    with pytest.raises(ValueError, match="surfaces"):
        tasks.run_analysis(body, random_bundle, parts=("surfaces",))
