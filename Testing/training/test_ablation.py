"""The ablation's driver, with a recipe of a few thousand numbers on a stand-in cohort: rows, plan, pilot, kills, table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ablation
import numpy as np
import pytest
import torch
from ablating.bench import Bench
from ablating.cell import Watch
from ablating.computing import Work, flops_of
from ablating.data import truth_table, write_data
from ablating.driver import made_with
from ablating.grid import ENDS, PARTS, RECIPES, AblationSettings, Cell, chosen_cells, grid_cells, pilot_cells, recipe_of
from ablating.labels import LESIONS, lesion_figures, lesion_task, organ_task
from ablating.measure import EQUAL, OWN, mean_interval, retrieval_figures, stands_clear
from ablating.plan import WINDOWS_PER_SCAN, CellCost, Timing, cost, plan_lines
from ablating.table import as_markdown, spread

from Testing.plugins.bundles import body_volume
from VelvetMedLib.ct import write_nifti
from VelvetMedLib.engine.manifest import read_manifest
from VelvetMedLib.engine.runfolder import differences
from VelvetMedLib.errors import TrainingError, UsageError
from VelvetMedLib.evaluation.retrieval import recall_at, same_group
from VelvetMedLib.evaluation.segmentation import StructureScore
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, TEXT_CLEAN
from VelvetMedLib.recipes.velvet import PRESETS, lean, micro
from VelvetMedLib.reports import FindingRecord, ontology

STEPS = 3
SCRIPT = Path(ablation.__file__)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty small studies laid out as a synthetic cohort; finding n of the ontology is present in every study of its turn, two lesions
    in every second study."""
    folder = tmp_path_factory.mktemp("stand-in")
    names = [finding.name for finding in ontology().findings]
    listed = []
    for n in range(40):
        home = folder / f"case_{n:06d}"
        home.mkdir()
        volume = body_volume((20, 18, 20), 14.0, seed=n)
        organs = np.zeros(volume.shape_kji, np.uint8)
        organs[4:9, 5:12, 5:9], organs[11:16, 5:12, 10:15] = 1, 4
        write_nifti(home / "ct.nii.gz", volume.voxels_kji, volume.ijk_to_ras)
        write_nifti(home / "organs.nii.gz", organs, volume.ijk_to_ras)
        lesions, kinds = np.zeros(volume.shape_kji, np.uint8), ("liver_lesion", LESIONS[n % 5], LESIONS[-1])
        lesions[4:8, 6:11, 5:8] |= 2
        lesions[6:9, 6:11, 5:8] |= 4
        instances = [{"id": k, "lesion": name} for k, name in enumerate(kinds, start=1)] if n % 2 else []
        write_nifti(home / "lesions.nii.gz", lesions * np.uint8(n % 2), volume.ijk_to_ras)
        present = {names[n % len(names)], names[(n // 3) % len(names)]}
        records = [FindingRecord(name=name, state="present" if name in present else "absent") for name in names]
        words = [f"there is {name.replace('_', ' ')} in scan {n}." for name in sorted(present)]
        report = [{"title": "Findings", "sentences": [{"text": text} for text in (*words, "the spine is normal.")]}]
        facts = {
            "version": 1,
            "twin_of": None,
            "instances": instances,
            "findings": [r.as_dict() for r in records],
            "reports": {"structured": report},
        }
        (home / "record.json").write_text(json.dumps(facts), encoding="utf-8")
        listed.append({"id": home.name})
    (folder / "cohort.json").write_text(json.dumps({"version": 1, "seed": 1, "cases": listed}), encoding="utf-8")
    return folder


def words(cohort: Path, out: Path, *more: str, volumes: int = 2) -> list[str]:
    return [
        "--cohort", str(cohort), "--out", str(out), "--preset", "micro", "--steps", str(STEPS), "--pairs", "8", "--fewer-pairs", "0",
        "--seeds", "1", "--val", "2", "--test", "4", "--segmentation-volumes", str(volumes), "--segmentation-steps", "2",
        "--segmentation-val", "1", "--segmentation-test", "1", "--set", "loop.save_every=1", *more,
    ]  # fmt: skip


def result(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "cells" / name / "cell.json").read_text(encoding="utf-8"))
    return found


def test_two_rows_run_to_their_figures_and_the_table_shows_the_measured_cells_alone(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, docs = tmp_path / "out", tmp_path / "docs"
    line = words(cohort, out, "--anyway", "--only", "report", "--only", "scratch", "--docs", str(docs))
    assert ablation.main(line) == 0
    printed = capsys.readouterr().out
    assert printed.index("core-minutes") < printed.index("== report-8-s1")

    figures = result(out, "report-8-s1")["figures"]
    own = figures["retrieval"][OWN]
    assert figures["gallery"] == 4 and own["chance R@1"] == 0.25 and own["R@10"] == 1.0
    assert 0 <= figures["segmentation"]["dice"] <= 1 and figures["segmentation"]["scans"] == 1
    assert {row["reason"] for row in figures["probe"]["findings"]} != {""} and figures["probe"]["mean"] is None
    assert "retrieval" not in result(out, "scratch-0-s1")["figures"]
    assert set(result(out, "report-8-s1")["seconds"]) == {"pretraining", "measuring", "segmentation"}

    table = (docs / "ablation.md").read_text(encoding="utf-8")
    assert table == (out / "ablation.md").read_text(encoding="utf-8") and (docs / "ablation.png").stat().st_size > 1000
    assert "| report |" in table and "| scratch |" in table and f"from 2 measured cells of {len(PARTS) + 1 + len(RECIPES)}" in table
    assert not any(f"| {row.name} |" in table for row in PARTS if row.name != "report")

    before = result(out, "report-8-s1")
    assert ablation.main(line) == 0
    assert result(out, "report-8-s1") == before, "a finished cell must not be computed again"
    with pytest.raises(TrainingError, match="other settings"):
        ablation.main([*line, "--traceback", "--steps", "4"])

    # Cells that have landed are not computed again on another machine, where only the docs are left of them.
    other = words(cohort, tmp_path / "other", "--anyway", "--only", "report", "--only", "scratch", "--docs", str(docs))
    assert ablation.main(other) == 0
    assert (docs / "ablation.md").read_text(encoding="utf-8") == table and not (tmp_path / "other" / "cells").exists()
    with pytest.raises(TrainingError, match="measured with other settings"):
        ablation.main([*words(cohort, tmp_path / "third", "--anyway", "--docs", str(docs)), "--traceback", "--steps", "4"])


@pytest.mark.slow
def test_whole_recipes_compute_alike_go_on_from_the_grids_cells_and_stand_in_a_table_of_their_own(cohort: Path, tmp_path: Path) -> None:
    out, docs = tmp_path / "out", tmp_path / "docs"
    asked = [word for row in RECIPES for word in ("--only", row.name)]
    assert ablation.main(words(cohort, out, "--anyway", *asked, "--docs", str(docs))) == 0
    cells = {name: result(out, name) for name in ("everything-8-s1", "velvet-8-s1", "colipri-8-s1", "t3d-8-s1", "random-0-s1")}
    velvet, colipri, t3d, random = list(cells.values())[1:]

    # No pre-training twice: what the part's cell found is taken over, and the lesions stand on its weights.
    assert {k: v for k, v in velvet["figures"].items() if k != "lesions"} == cells["everything-8-s1"]["figures"]
    assert set(velvet["seconds"]) == set(random["seconds"]) == {"lesions"}
    origin = json.loads((out / "cells" / "velvet-8-s1" / "lesions" / "results.json").read_text(encoding="utf-8"))["encoder"]
    assert origin["kind"] == "checkpoint" and origin["step"] == cells["everything-8-s1"]["best_step"]

    work = velvet["steps"] * velvet["step_flops"]
    assert velvet["steps"] == STEPS and all(abs(c["steps"] * c["step_flops"] - work) <= c["step_flops"] / 2 for c in (colipri, t3d))
    assert all(c["figures"]["lesions"]["scans"] == 1 for c in cells.values() if c["row"] != "everything")
    assert "retrieval" not in t3d["figures"] and t3d["figures"]["probe"]["findings"] and "retrieval" in colipri["figures"]
    written = colipri["figures"]["reports"]
    assert written["reports"] == 4 and written["true reports"]["presence"]["f1"] > 0.5 and "reports" not in velvet["figures"]

    page = (docs / "ablation.md").read_text(encoding="utf-8")
    parts, recipes = page.split("## Whole recipes")
    assert "| everything |" in parts and "| velvet |" not in parts and (docs / "ablation-recipes.png").stat().st_size > 1000
    rows = {line.split(" | ")[0]: line.split(" | ") for line in recipes.splitlines()}
    assert rows["| t3d"][5:7] == ["–", "–"] and rows["| t3d"][4] == str(t3d["steps"]) and rows["| velvet"][10] == "–"

    # Where only the figures of a cell have landed, nothing can go on from it.
    landed = json.loads((docs / "ablation.json").read_text(encoding="utf-8"))
    landed["cells"] = [c for c in landed["cells"] if c["row"] == "everything"]
    (docs / "ablation.json").write_text(json.dumps(landed), encoding="utf-8")
    with pytest.raises(TrainingError, match="weights of everything-8-s1"):
        ablation.main([*words(cohort, tmp_path / "other", "--anyway", "--only", "velvet", "--docs", str(docs)), "--traceback"])


def test_operations_are_counted_forward_and_backward_and_attention_is_what_it_stands_for() -> None:
    layer, x = torch.nn.Linear(7, 11), torch.rand(5, 7)
    assert flops_of(lambda: layer(x).sum().backward()) == 2 * (2 * 5 * 7 * 11)  # the product, and the gradient of the weights
    q = torch.rand(1, 2, 6, 4)
    assert flops_of(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * (2 * 2 * 6 * 6 * 4)


def test_few_labels_of_lesions_are_those_of_the_organs_scans_and_held_out_scans_that_show_a_kind(cohort: Path, tmp_path: Path) -> None:
    settings = AblationSettings(pairs=12, fewer_pairs=0, val=3, test=4, segmentation_volumes=5, segmentation_test=2)
    write_data(cohort, tmp_path / "data", settings)
    bench = Bench(base=micro(), settings=settings, cohort=cohort, out=tmp_path, manifests={}, source=tmp_path)
    organs, lesions = organ_task(bench), lesion_task(bench)
    assert [case.name for case in lesions.of("train")] == [case.name for case in organs.of("train")]
    assert lesions.of("test") and all(int(case.name[-6:]) % 2 for case in lesions.of("test"))
    assert not all(case.bits for case in lesions.of("train"))


def test_a_lesion_found_where_there_is_none_is_counted_apart_from_dice() -> None:
    def score(case: str, dice: float, truth_ml: float, found_ml: float) -> StructureScore:
        return StructureScore(
            case=case, structure="emphysema", dice=dice, surface_dice=dice, hd95_mm=None, truth_ml=truth_ml, found_ml=found_ml
        )

    found = lesion_figures([score("a", 0.5, 9.0, 9.0), score("b", 0.0, 0.0, 4.0), score("c", 0.0, 7.0, 0.0)])
    assert (found["dice"], found["scans"], found["invented"], found["free"]) == (0.25, 2, 1, 1)
    assert lesion_figures([score("b", 0.0, 0.0, 4.0)])["dice"] is None


def test_the_other_recipes_have_the_encoder_batch_and_optimiser_of_the_parts() -> None:
    base = lean()
    colipri, t3d = recipe_of("colipri", base), recipe_of("t3d", base)
    for recipe in (colipri, t3d):
        assert recipe.model(50).get_submodule("swin").config == base.swin()  # type: ignore[union-attr]
        assert (recipe.loop, recipe.optimiser, recipe.reports) == (base.loop, base.optimiser, base.reports)
    assert list(colipri.objectives(50)) == ["report_contrast", "report_generation", "opposite_sentences"]
    assert TEXT_CLEAN in colipri.inputs() and IMAGE_GLOBAL not in colipri.inputs()
    assert recipe_of("velvet", base) == recipe_of("everything", base)
    with pytest.raises(UsageError, match="shared"):
        colipri.with_(shared=(TEXT_CLEAN, "image.of_nobody"))


def test_the_cells_that_have_landed_in_docs_belong_to_the_grid_of_today() -> None:
    found = json.loads((SCRIPT.parents[1] / "docs" / "ablation.json").read_text(encoding="utf-8"))
    today = json.loads(json.dumps(made_with(lean(), AblationSettings()))) | {"data": found["made_with"]["data"]}
    assert differences(found["made_with"], today) == []
    assert {cell["cell"] for cell in found["cells"]} <= {cell.name for cell in grid_cells(AblationSettings())}
    assert f"| {found['cells'][0]['row']} |" in as_markdown(found["cells"], 24)


@pytest.mark.slow
def test_a_cell_killed_in_the_middle_goes_on_and_measures_what_an_undisturbed_one_measures(cohort: Path, tmp_path: Path) -> None:
    line = words(cohort, tmp_path / "killed", "--anyway", "--only", "clip", volumes=0)
    driver = (
        "import os, signal, sys\n"
        f"sys.path[:0] = [{str(SCRIPT.parent)!r}, {str(SCRIPT.parents[1])!r}]\n"
        "import ablation\nfrom ablating import cell\n"
        "def kill(watch, step):\n    if step == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "cell.Watch.tick = kill\nsys.exit(ablation.main(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", driver, *line], env=environment, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (tmp_path / "killed" / "cells" / "clip-8-s1" / "pretraining" / "checkpoints" / "last").is_dir()
    assert not (tmp_path / "killed" / "ablation.md").exists()

    assert ablation.main(line) == 0
    assert ablation.main(words(cohort, tmp_path / "whole", "--anyway", "--only", "clip", volumes=0)) == 0
    assert result(tmp_path / "killed", "clip-8-s1")["figures"] == result(tmp_path / "whole", "clip-8-s1")["figures"]


def test_a_cell_over_its_time_is_set_aside_and_the_same_line_goes_on_with_it(cohort: Path, tmp_path: Path) -> None:
    line = words(cohort, tmp_path, "--anyway", "--only", "clip", "--sitting-minutes", "1e-9", volumes=0)
    codes = [ablation.main(line) for _ in range(STEPS)]
    assert codes == [75] * (STEPS - 1) + [0]
    assert result(tmp_path, "clip-8-s1")["figures"]["gallery"] == 4


def test_the_grid_is_refused_without_a_pilot_and_after_one_at_chance(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablation.main(words(cohort, tmp_path, "--only", "report")) == 1
    assert "The pilot has not been run" in capsys.readouterr().err
    # In a gallery of four every partner is among the best ten: no pilot can stand above that.
    for name in ("clip-8-s1", "everything-8-s1"):
        own = {"R@10": 1.0, "R@10 low": 1.0, "R@10 high": 1.0, "chance R@10": 1.0, "oracle R@10": 1.0}
        folder = tmp_path / "cells" / name
        folder.mkdir(parents=True)
        figures = {"gallery": 4, "retrieval": {counted: _every_figure(own) for counted in (OWN, EQUAL)}}
        row, seconds = name.split("-")[0], {"pretraining": 1.0}
        facts = {"cell": name, "row": row, "pairs": 8, "seed": 1, "steps": STEPS, "best_step": 1, "threads": 1, "commits": ["abc"]}
        (folder / "cell.json").write_text(json.dumps({**facts, "figures": figures, "seconds": seconds}), encoding="utf-8")
    assert ablation.main(words(cohort, tmp_path, "--only", "report")) == 1
    said = capsys.readouterr().err
    assert "No pilot stands clearly above chance" in said and "--steps" in said
    assert not (tmp_path / "cells" / "report-8-s1").exists()


def _every_figure(given: dict[str, float]) -> dict[str, float]:
    names = [f"{way}{name}" for way in ("", "image_to_text ", "text_to_image ", "chance ", "oracle ") for name in ("R@1", "R@5", "R@10")]
    return dict.fromkeys(names, 0.5) | given


def test_the_plan_multiplies_steps_and_scans_by_their_seconds() -> None:
    settings = AblationSettings(
        steps=250, pairs=400, val=100, test=200, segmentation_steps=120, segmentation_val=4, segmentation_test=20, segmentation_volumes=10
    )
    timing = Timing(step=2.0, study=0.1, segmentation_step=0.5, window=0.25)

    def planned(cell: Cell, work: Work) -> CellCost:
        return cost(cell, work, timing, settings, validate_every=100, segmentation_validate_every=50)

    found = planned(Cell("clip", 400, 1), Work(250))
    assert found.pretraining == pytest.approx(250 * 2.0 + 3 * 100 * 0.1)  # validated after 100, 200 and 250 steps
    assert found.measuring == pytest.approx((400 + 100 + 2 * 200) * 0.1)
    assert found.segmentation == pytest.approx(120 * 0.5 + (3 * 4 + 20) * WINDOWS_PER_SCAN * 0.25)
    scratch = planned(Cell("scratch", 0, 1), Work(250))
    assert scratch.minutes == pytest.approx(found.segmentation / 60)
    assert planned(Cell("velvet", 400, 1), Work(250)).minutes == scratch.minutes  # lesions alone
    t3d = planned(Cell("t3d", 400, 1), Work(120, 10**9))
    assert t3d.segmentation == pytest.approx(2 * found.segmentation) and t3d.pretraining == pytest.approx(120 * 2.0 + 2 * 100 * 0.1)

    two = [
        CellCost(Cell("clip", 400, 1), Work(250), 1200.0, 60.0, 540.0),
        CellCost(Cell("t3d", 400, 1), Work(250, 2 * 10**9), 3000.0, 0.0, 0.0),
    ]
    page = plan_lines(two, ["clip-400-s1"], settings, threads=2)
    assert "done" in page[1] and "60.0" in page[1]  # 30 minutes on two threads
    assert "more than one sitting of 40 minutes" in page[2]
    assert page[-2] == "t3d-400-s1: 250 steps of 2.0 GFLOP, 0.5 TFLOP"
    assert page[-1] == "left: 50 minutes on 2 threads, 100 core-minutes (1.7 core-hours)"


def test_printing_the_plan_trains_nothing(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablation.main(words(cohort, tmp_path, "--plan", "--only", "clip", volumes=0)) == 0
    assert "clip-8-s1" in capsys.readouterr().out
    assert not (tmp_path / "cells").exists()
    assert json.loads((tmp_path / "timings.json").read_text(encoding="utf-8"))["rows"]["clip"]["step"] > 0


def test_the_time_of_a_cell_is_added_up_by_stage_over_sittings_and_survives_a_kill(tmp_path: Path) -> None:
    now = [0.0]
    watch = Watch(tmp_path / "spent.json", 1000.0, clock=lambda: now[0])
    with watch.stage("pretraining"):
        now[0] = 30.0
        watch.tick()
        now[0] = 35.0
        watch.tick()
        assert json.loads((tmp_path / "spent.json").read_text()) == {"pretraining": 30.0}, "what a kill leaves"
    again = Watch(tmp_path / "spent.json", 1000.0, clock=lambda: now[0])
    with again.stage("pretraining"):
        now[0] = 40.0
    with again.stage("measuring"):
        now[0] = 42.0
    assert json.loads((tmp_path / "spent.json").read_text()) == {"pretraining": 40.0, "measuring": 2.0}


def test_every_row_is_another_recipe_of_the_same_sizes() -> None:
    for base in (PRESETS["tiny"](), PRESETS["paper"](), micro()):
        recipes = {row.name: recipe_of(row.name, base) for row in PARTS}
        assert len({json.dumps(recipe.to_dict()) for recipe in recipes.values()}) == len(PARTS)
        switched = {"itc", "mm", "vis", "txt", "agg", "local_attention", "sentence_tokens", "label_smoothing"}
        for recipe in recipes.values():
            assert {k: v for k, v in recipe.to_dict().items() if k not in switched} == {
                k: v for k, v in base.to_dict().items() if k not in switched
            }
    tiny: dict[str, Any] = {row.name: recipe_of(row.name, PRESETS["tiny"]()) for row in PARTS}
    assert list(tiny["clip"].objectives(100)) == ["report_contrast"] and not tiny["clip"].sentence_tokens
    assert tiny["clip"].tribert(100).text_layers == tiny["everything"].tribert(100).text_layers
    assert (tiny["word_sum"].agg, tiny["word_mean"].agg, tiny["word_sharp"].local_attention) == ("sum", "mean", "local_tau")
    assert len(tiny["everything"].objectives(100)) == 9
    assert [list(tiny[n].objectives(100))[3:] for n in ("matching", "text")] == [
        ["match", "masked_language_mm"],
        ["masked_language_text"],
    ]


def test_the_grid_has_its_seeds_where_they_are_wanted_and_begins_with_the_pilots() -> None:
    settings = AblationSettings()
    listed = grid_cells(settings)
    assert listed[:2] == pilot_cells(settings) and len(set(listed)) == len(listed)
    at_400 = [cell for cell in listed if cell.pairs == 400]
    assert {row.name: sum(cell.row == row.name for cell in at_400) for row in PARTS} == {
        row.name: 3 if row.name in ENDS else 1 for row in PARTS
    }
    assert [(cell.row, cell.seed) for cell in listed if cell.pairs == 200] == [("clip", 1), ("everything", 1)]
    assert chosen_cells(settings, ["clip-400-s2"], pilot=False) == [Cell("clip", 400, 2)]
    assert chosen_cells(settings, ["velvet"], pilot=False) == [Cell("everything", 400, 1), Cell("velvet", 400, 1)]
    with pytest.raises(UsageError, match="no row"):
        chosen_cells(settings, ["clap"], pilot=False)


def test_a_switch_of_the_rows_cannot_be_set_for_all_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablation.main(["--cohort", str(tmp_path), "--out", str(tmp_path / "out"), "--set", "agg=sum"]) == 2
    assert "rows of the ablation" in capsys.readouterr().err


def test_fewer_pairs_are_a_part_of_more_pairs_and_held_out_studies_stay_the_same(cohort: Path, tmp_path: Path) -> None:
    settings = AblationSettings(pairs=12, fewer_pairs=5, val=3, test=4, segmentation_volumes=5)
    manifests = {pairs: read_manifest(path) for pairs, path in write_data(cohort, tmp_path, settings).items()}
    named = {pairs: {split: {s.study for s in m.split(split)} for split in ("train", "val", "test")} for pairs, m in manifests.items()}
    assert {pairs: len(found["train"]) for pairs, found in named.items()} == {12: 12, 5: 5}
    assert named[5]["train"] < named[12]["train"]
    assert all(named[5][split] == named[12][split] for split in ("val", "test"))
    bench = Bench(base=micro(), settings=settings, cohort=cohort, out=tmp_path, manifests={}, source=tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "studies.json").rename(tmp_path / "data" / "studies.json")
    task = organ_task(bench)
    assert {case.name for case in task.of("train")} == named[5]["train"] and {c.name for c in task.of("test")} <= named[5]["test"]
    with pytest.raises(TrainingError, match="too small"):
        write_data(cohort, tmp_path, AblationSettings(pairs=100, fewer_pairs=0))


def test_what_a_scan_does_not_show_is_unknown_to_the_probe(cohort: Path, tmp_path: Path) -> None:
    states = ["present", "absent", "uncertain", "not_assessed"]
    names = [finding.name for finding in ontology().findings]
    (tmp_path / "x").mkdir()
    listed = [FindingRecord(name=name, state=state).as_dict() for name, state in zip(names, states, strict=False)]  # type: ignore[arg-type]
    (tmp_path / "x" / "record.json").write_text(json.dumps({"findings": listed}), encoding="utf-8")
    _, table = truth_table(tmp_path, ["x"])
    assert table[0, :2].tolist() == [1.0, 0.0] and np.isnan(table[0, 2:]).all()


def test_retrieval_stands_beside_its_ceiling_and_its_floor_and_equal_records_count_in_the_second_row() -> None:
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    facts = [frozenset({("finding", "present", "", str(n // 2))}) for n in range(30)]
    words = [str(n // 2) for n in range(30)]
    neighbours = vectors.reshape(15, 2, 30)[:, ::-1].reshape(30, 30)  # every scan next to its twin's report
    found = retrieval_figures(vectors, neighbours, words, facts)
    assert found[OWN]["R@1"] == 0.0 and found[EQUAL]["R@1"] == 1.0
    assert found[OWN]["chance R@10"] == pytest.approx(1 / 3) and found[OWN]["oracle R@1"] == pytest.approx(0.5)
    assert found[EQUAL]["oracle R@1"] == 1.0
    assert not stands_clear({"retrieval": found}, 1.0) and stands_clear(
        {"retrieval": retrieval_figures(vectors, vectors, words, facts)}, 1.5
    )


def test_the_interval_of_both_directions_covers_their_mean_and_narrows_with_studies() -> None:
    rng = np.random.default_rng(1)
    widths = []
    for n in (40, 640):
        scores = rng.normal(size=(n, n)) + 1.5 * np.eye(n)
        relevant = same_group(list(range(n)))
        k = n // 4
        mean = 0.5 * (recall_at(scores, relevant, [k])[f"R@{k}"] + recall_at(scores.T, relevant, [k])[f"R@{k}"])
        low, high = mean_interval(scores, relevant, k)
        assert low < mean < high
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]


def test_several_seeds_are_shown_by_mean_and_range_and_nothing_is_shown_for_what_was_not_measured() -> None:
    assert spread([0.1, 0.2, 0.6], 2) == "0.30 (0.10–0.60)"
    assert spread([0.25], 2) == "0.25" and spread([None], 2) == "–"
    assert "|" not in as_markdown([], 20)


def test_what_somebody_wrote_of_the_figures_stands_above_them() -> None:
    page = as_markdown([], 20, "The parts did not help.\n")
    assert "## What it says\n\nThe parts did not help.\n\n## Parts" in page and "What it says" not in as_markdown([], 20, " \n")
