"""The whole evaluation: a random bundle over a small cohort, stopped and taken up again, its files, and two runs compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.bundle import load_bundle
from VelvetMedLib.cohorts import CohortOptions, load_case, make_cohort, read_cohort
from VelvetMedLib.errors import UsageError
from VelvetMedLib.evaluation import plots, run
from VelvetMedLib.evaluation.bootstrap import mean, resamples
from VelvetMedLib.evaluation.comparison import compare, differences
from VelvetMedLib.evaluation.outputs import CaseOutput, case_file, read_outputs
from VelvetMedLib.evaluation.protocol import evaluate, load, nearest_reports
from VelvetMedLib.reports import FindingRecord, parse_report
from VelvetMedLib.tasks.writers import Wording, open_writer

CASES = 5
pytestmark = pytest.mark.timeout(900)  # half a minute on an idle core; on a crowded one the shared run alone took five minutes


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "c"
    options = CohortOptions(spacing_mm=10.0, largest_shape_ijk=(30, 26, 30), twin_fraction=0.3)
    make_cohort(folder, CASES, 5, options=options, sheet=False)
    return folder


@pytest.fixture(scope="module")
def finished(random_bundle: Any, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation") / "first"
    evaluate(random_bundle, cohort, out)
    return out


def test_the_results_are_figures_a_page_and_plots(finished: Path) -> None:
    data = json.loads((finished / "metrics.json").read_text(encoding="utf-8"))
    page = (finished / "evaluation.md").read_text(encoding="utf-8")
    assert data["notice"] in page and data["cohort_cases"] == CASES
    for part in ("retrieval/all", "findings/all", "segmentation/organs", "answers/model", "report/nearest report", "grounding/all"):
        assert any(name.startswith(part) for name in data["measures"]), part
        assert f"## {part.split('/')[0].capitalize()}" in page
    pictures = sorted(path.name for path in finished.glob("*.png"))
    assert len(pictures) == 7 and all(f"({name})" in page for name in pictures)
    assert [b["cases"] for b in data["reliability"]["focal"]] and sum(b["cases"] for b in data["reliability"]["all"]) == sum(
        sum(counts.values()) for counts in data["findings"].values()
    )
    ways = [m for m in ("pointing", "pointing by lesion head", "pointing by cosine map") if f"grounding/all/{m}" in data["measures"]]
    assert len(ways) == 3 and all(f" {m} |" in page for m in ways)
    assert all(data["measures"][f"consistency/answers with {what}"]["value"] == 1.0 for what in ("findings", "report"))
    assert data["measures"]["answers/model/beyond"]["value"] == 1.0 and "| yes or no, forced, balanced |" in page
    chance = data["measures"]["retrieval/all/own report/chance/text to image R@1"]
    assert chance["value"] == pytest.approx(1 / CASES)
    against = [data["measures"][f"report/{held}/sentences against the findings"]["value"] for held in ("model", "model, held to nothing")]
    assert against[0] == 0.0 <= against[1] and "| sentences against the findings |" in page


def test_kept_outputs_say_what_the_records_say_and_twins_share_a_group(finished: Path, cohort: Path) -> None:
    _, outputs = read_outputs(finished)
    assert len({one.group for one in outputs}) < CASES
    for one in outputs:
        record = json.loads((cohort / one.case / "record.json").read_text(encoding="utf-8"))
        assert [r.as_dict() for r in one.truth] == record["findings"]
        said = {r.name: r.state for r in parse_report(one.references["seen"])}
        assert {r.name for r in one.truth if r.state == "present"} >= {n for n, state in said.items() if state == "present"}
        assert CaseOutput.from_dict(json.loads(json.dumps(one.as_dict()))).as_dict() == one.as_dict()
        assert {len(one.kept)} == {len(v) for v in one.texts.values()}
    twins = [one for one in outputs if one.group != one.case]
    siblings = {one.case: one for one in outputs}
    assert all(one.references["unseen"] != siblings[one.group].references["unseen"] for one in twins)


def test_a_stopped_evaluation_goes_on_without_doing_anything_twice(
    finished: Path, random_bundle: Any, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "stopped"
    shutil.copytree(finished, out)
    done = sorted((out / "cases").glob("*.json"))
    done[2].unlink()
    (out / "metrics.json").unlink()
    asked: list[str] = []
    original = run.output_of

    def watched(case: Any, bundle: Any, writer: Any) -> CaseOutput:
        asked.append(case.case_id)
        return original(case, bundle, writer)

    monkeypatch.setattr(run, "output_of", watched)
    monkeypatch.setattr(plots, "draw_all", lambda *_: [])
    evaluate(random_bundle, cohort, out)
    assert asked == [done[2].stem]
    now, then = (json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["measures"] for folder in (out, finished))
    del now["seconds per case"], then["seconds per case"]
    assert now == then


def test_a_folder_of_another_bundle_or_of_other_files_is_refused(
    finished: Path, cohort: Path, bundle_maker: Callable[..., Path], tmp_path: Path
) -> None:
    other = load_bundle(bundle_maker(tmp_path / "other", 7))
    with pytest.raises(UsageError, match="cannot be written there"):
        evaluate(other, cohort, finished)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("x")
    with pytest.raises(UsageError, match="cannot be written there"):
        evaluate(other, cohort, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        read_outputs(tmp_path / "empty")


class _Alarmist:
    """Words every finding as the same wrong sentence."""

    def __init__(self) -> None:
        self.facts = {"kind": "alarmist"}

    def write(self, records: Sequence[FindingRecord], *_: Any) -> list[Wording | None]:
        return [Wording("There is a pneumothorax.")] * len(records)


def test_a_named_writer_words_the_drafts_and_needs_a_folder_of_its_own(finished: Path, random_bundle: Any, cohort: Path) -> None:
    case = load_case(read_cohort(cohort).case_folders[0])
    words = "There is a pneumothorax."
    own, alarmed = (run.output_of(case, random_bundle, writer) for writer in (open_writer(None, random_bundle), _Alarmist()))
    assert own.report is not None and alarmed.report is not None and own.unheld is not None and alarmed.unheld is not None
    assert words in alarmed.unheld and words not in own.unheld
    assert (words in alarmed.report) is any(r.name == "pneumothorax" and r.state == "present" for r in own.said)
    facts, _ = read_outputs(finished)
    assert facts.writer == open_writer(None, random_bundle).facts
    with pytest.raises(UsageError, match="another bundle, writer"):
        evaluate(random_bundle, cohort, finished, writer=_Alarmist())


def _better(out: Path) -> None:
    """Every truth becomes what is said: a reader without fault."""
    _, outputs = read_outputs(out)
    for one in outputs:
        data = one.as_dict()
        data["said"] = data["truth"]
        data["scores"] = {r["name"]: float(r["state"] == "present") for r in data["truth"]}
        data["report"] = one.references["seen"]
        data["answers"] = [a | {"answer": a["truth"]} for a in data["answers"]]
        case_file(out, one.case).write_text(json.dumps(data), encoding="utf-8")


def test_a_reader_without_fault_scores_full_marks_and_is_clearly_better(finished: Path, tmp_path: Path) -> None:
    perfect = tmp_path / "perfect"
    shutil.copytree(finished, perfect)
    _better(perfect)
    once = {name: float(measure(np.ones((1, CASES)))[0]) for name, measure in load(perfect).measures.items()}
    full = ("findings/all/F1", "answers/model/mean of types", "report/model/F1", "report/model/BLEU-4")
    told = [value for name, value in once.items() if name.count("/") == 2 and name.endswith("/AUROC") and np.isfinite(value)]
    assert told == [1.0] * len(told) and told
    assert [once[name] for name in full] == pytest.approx([1.0] * len(full), abs=0.05)
    assert once["report/model/contradictions"] == once["findings/all/ECE"] == 0.0
    found = {d.name: d for d in compare(finished, perfect, tmp_path)}
    assert found["findings/all/F1"].better == "second" and found["findings/all/ECE"].better == "second"
    assert found["segmentation/organs/Dice"].better == "" and found["segmentation/organs/Dice"].difference.value == 0.0
    assert not any("chance" in name or "oracle" in name for name in found)
    page = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "| findings/all/F1 |" in page and "Research use only" in page


def test_a_paired_difference_is_the_mean_of_the_cases_differences() -> None:
    draw = np.random.default_rng(0)
    easy = draw.random(50)
    first, second = easy, easy + 0.05 + 0.01 * draw.normal(size=50)
    weights = resamples(range(50))
    (found,) = differences({"x/Dice": mean(first)}, {"x/Dice": mean(second), "y": mean(first)}, weights)
    slow = np.array([(w @ (second - first)) / w.sum() for w in weights])
    assert found.difference.value == pytest.approx((second - first).mean())
    assert (found.difference.low, found.difference.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))
    # Unpaired, the spread between cases would hide it.
    assert found.better == "second" and second.std() > 3 * 0.05


def test_evaluations_over_other_cases_are_not_compared(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    facts = json.loads((other / "run.json").read_text(encoding="utf-8"))
    (other / "run.json").write_text(json.dumps(facts | {"cohort_seed": 6}), encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be compared"):
        compare(finished, other, tmp_path)


def test_calibration_is_compared_over_the_findings_that_both_use(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    facts = json.loads((other / "run.json").read_text(encoding="utf-8"))
    (other / "run.json").write_text(json.dumps(facts | {"calibrated": facts["calibrated"][:9]}), encoding="utf-8")
    alone = [float(load(out).measures["findings/all/ECE"](np.ones((1, CASES)))[0]) for out in (finished, other)]
    (found,) = (d for d in compare(finished, other, tmp_path) if d.name == "findings/all/ECE")
    assert alone[0] != alone[1] == found.first == found.second and found.difference.value == 0.0


def test_evaluations_with_other_questions_are_not_compared(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    _, outputs = read_outputs(other)
    data = outputs[0].as_dict()
    data["answers"] = [*data["answers"][1:], data["answers"][0]]
    case_file(other, outputs[0].case).write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be compared"):
        compare(finished, other, tmp_path)


def test_the_nearest_report_is_never_that_of_the_case_itself_or_its_twin(finished: Path) -> None:
    _, outputs = read_outputs(finished)
    for one, text in zip(outputs, nearest_reports(outputs), strict=True):
        assert text in {other.references["seen"] for other in outputs if other.group != one.group}
    alone = [one for one in outputs if one.group == outputs[0].group]
    assert nearest_reports(alone) == [""] * len(alone)


def test_a_pre_training_is_measured_by_what_it_can_do(pretrained_bundle: Any, cohort: Path, tmp_path: Path) -> None:
    figures = evaluate(pretrained_bundle, cohort, tmp_path / "out")
    parts = {name.split("/")[0] for name in figures}
    assert not parts & {"segmentation", "report"} and {"retrieval", "findings", "grounding"} <= parts
    assert figures["grounding/all/placed"].value == 1 and figures["findings/all/ECE"].value is None
    _, outputs = read_outputs(tmp_path / "out")
    assert all(len(one.scores) == 21 and len(one.study) == 32 for one in outputs)


@pytest.mark.parametrize("text", [True, False])
def test_a_model_of_vectors_alone_is_measured_by_what_it_can_do(
    text: bool, colipri_bundles: Callable[..., Any], cohort: Path, tmp_path: Path
) -> None:
    figures = evaluate(colipri_bundles(text=text), cohort, tmp_path / "out")
    parts = {name.split("/")[0] for name in figures}
    assert not parts & {"segmentation", "report"} and ("retrieval" in parts) is text
    assert figures["grounding/all/placed"].value == float(text) and figures["grounding/all/chance"].value is not None
    assert (figures["findings/all/recall"].value is not None) and figures["findings/all/ECE"].value is None
    page = (tmp_path / "out" / "evaluation.md").read_text(encoding="utf-8")
    assert "no probabilities" in page and "## Report" not in page
