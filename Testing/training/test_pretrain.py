"""pretrain.py as a person meets it: words, data with faults, the finished run and its bundle, the dry run, the child under Slicer."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import commandline
import pretrain
import pytest
import torch
from pretraining import child, cohort
from pretraining.plan import counted_bytes, made_up_batch, make_plan
from pretraining.run import collapsed
from pretraining.vocabulary import learn_vocabulary

from VelvetMedLib.bundle import load_bundle
from VelvetMedLib.engine.checkpoints import Checkpoints
from VelvetMedLib.engine.learner import Learner
from VelvetMedLib.engine.log import read_log
from VelvetMedLib.engine.manifest import read_manifest
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.models.text import ReportTokenizer, special_tokens
from VelvetMedLib.recipes.velvet import micro
from VelvetMedLib.reports import ontology

SCRIPT = Path(pretrain.__file__)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def copied(studies_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(studies_folder, tmp_path / "studies")
    return tmp_path / "studies"


def line(folder: Path, run: Path, *more: str, steps: int = 3) -> list[str]:
    return [
        "velvet", "--preset", "micro", "--manifest", str(folder / "studies.jsonl"), "--tokenizer", str(folder / "tokenizer.json"),
        "--run", str(run), "--steps", str(steps), "--seed", "3", "--device", "cpu", *more,
    ]  # fmt: skip


def spoil(folder: Path) -> None:
    """A corrupt scan, a missing one, an empty report, and a study that is also in the other split."""
    lines = [json.loads(text) for text in (folder / "studies.jsonl").read_text(encoding="utf-8").splitlines()]
    (folder / "s0.nii.gz").write_bytes(b"nothing")
    (folder / "s1.nii.gz").unlink()
    lines[2]["reports"] = [[{"title": "Technique", "sentences": ["axial."]}]]
    lines.append({**lines[9], "split": "train"})
    (folder / "studies.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines), encoding="utf-8")


def test_a_run_over_faulty_data_goes_on_says_what_it_left_out_and_ends_in_a_bundle_that_loads(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(copied)
    run = tmp_path / "run"
    words = line(copied, run, "--set", "loop.quarantine_share=0.5", "--training-data", "made for a test", "--licence", "none")
    assert pretrain.main(words) == 0
    said = capsys.readouterr()
    assert "4 studies are quarantined" in said.out and "4 studies quarantined" in said.err
    reasons = {r["study"]: r["reason"] for r in map(json.loads, (run / "quarantine.jsonl").read_text(encoding="utf-8").splitlines())}
    assert set(reasons) == {"s0", "s1", "s2", "s9 (train)"}
    assert (
        "volume" in reasons["s0"] and "missing" in reasons["s1"] and "sentence" in reasons["s2"] and "listed twice" in reasons["s9 (train)"]
    )

    assert [record["step"] for record in read_log(run) if "losses" in record] == [1, 2, 3]
    validated = [record for record in read_log(run) if record.get("event") == "validation"]
    assert validated and 0 <= validated[-1]["metrics"]["R@1"] <= 1 and validated[-1]["metrics"]["chance R@1"] == 0.5
    for name in ("checkpoints/last/state.json", "checkpoints/best/weights.safetensors", "training_curves.png", "run.json", "starts.jsonl"):
        assert (run / name).is_file(), name
    settings = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert settings["seed"] == 3 and settings["recipe"]["loop"]["batch"] == 4 and settings["key"].startswith("visiontext_allitc_mmssl")
    started = json.loads((run / "starts.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert "torch" in started["versions"] and started["processes"] == 1

    bundle = load_bundle(run / "bundle")
    assert bundle.config.aligned_levels == ("report", "sentence", "word") and bundle.config.training_data == "made for a test"
    assert not any(finding.assessed for finding in bundle.config.findings)
    best = Checkpoints(run).load_best()
    assert best is not None
    kept = {
        "swin.patch_embed.proj.weight": "model.swin.patch_embed.proj.weight",
        "match.linear.weight": "objectives.match.head.linear.weight",
    }
    for name, trained in kept.items():
        assert torch.allclose(bundle.model.state_dict()[name], best.parts["weights"][trained], atol=1e-3)
    card = (run / "bundle" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "Research use only. Not for clinical use." in card and "made for a test" in card

    before = (run / "checkpoints/last/weights.safetensors").read_bytes()
    assert pretrain.main(words) == 0, "a finished run called again is finished"
    assert (run / "checkpoints/last/weights.safetensors").read_bytes() == before
    assert pretrain.main([*words, "--set", "itc=top"]) == 1
    assert "recipe.itc" in capsys.readouterr().err


def test_too_much_unusable_data_stops_the_run_and_so_does_a_leak(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(copied)
    assert pretrain.main(line(copied, tmp_path / "run")) == 1
    assert "Too many studies" in capsys.readouterr().err
    lines = [json.loads(text) for text in (copied / "studies.jsonl").read_text(encoding="utf-8").splitlines()]
    lines[9]["patient"] = "p4"
    (copied / "studies.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines[:10]), encoding="utf-8")
    assert pretrain.main(line(copied, tmp_path / "other")) == 1
    assert "leak" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["help"], 0, "--preset"),
        ([], 0, "--preset"),
        (["clipper"], 2, "Known: velvet"),
        (["velvet", "--steps", "3"], 2, "--run"),
        (["velvet", "--run", "x"], 2, "--steps"),
        (["velvet", "--run", "x", "--steps", "0"], 2, "nothing to do"),
        (["velvet", "--run", "x", "--steps", "1", "--set", "itcc=all"], 2, "no setting of this name"),
    ],
)
def test_words_that_cannot_be_carried_out_are_said(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain.main(words) == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err


def test_settings_are_listed_by_dotted_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain.main(["velvet", "settings", "--preset", "paper", "--set", "itc=topmid"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert "itc=topmid" in listed and "optimiser.learning_rate=2e-05" in listed and "views.global_voxels=96" in listed


def test_the_surface_of_the_line_is_frozen() -> None:
    options = {option for action in pretrain.parser()._actions for option in action.option_strings}
    assert options == {
        "--preset", "--set", "--cohort", "--manifest", "--run", "--steps", "--seed", "--store", "--tokenizer", "--text-from", "--run-from",
        "--vision-from", "--workers", "--device", "--bundle-id", "--training-data", "--licence", "--no-bundle", "--dry-run", "--traceback",
    }  # fmt: skip


def test_no_option_is_one_that_slicer_reads_itself() -> None:
    options = {option for action in pretrain.parser()._actions for option in action.option_strings}
    assert not options & child.SLICER_OPTIONS
    # Nor the beginning of one, which Slicer's parser would complete.
    assert not [(a, b) for a in options for b in child.SLICER_OPTIONS if b.startswith(a) or (a.startswith(b) and len(b) > 2)]


def test_a_dry_run_prints_sizes_memory_and_time_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert pretrain.main(["velvet", "--preset", "micro", "--run", str(run), "--steps", "10", "--device", "cpu", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "parameters" in said and "4 studies, 12 volumes" in said and "MiB" in said and "10 steps: about" in said
    assert not run.exists()


def test_the_plan_counts_every_parameter_and_memory_grows_with_the_micro_batch() -> None:
    recipe = micro().with_(mm=False, vis=False, txt=False)
    plan = make_plan(recipe, 300, Processes("cpu"))
    assert sum(plan.parameters.values()) == sum(p.numel() for p in Learner(recipe, 300).parameters())
    assert plan.volumes == recipe.loop.batch and plan.tokens == recipe.loop.batch * recipe.reports.max_tokens
    loop = {**recipe.loop.to_dict(), "batch": 8}
    larger = make_plan(recipe.with_(loop=type(recipe.loop)(**loop)), 300, Processes("cpu"))
    assert larger.saved_mib == pytest.approx(2 * plan.saved_mib, rel=0.01)


def test_kept_bytes_are_those_of_a_layer_whose_saved_tensors_are_known() -> None:
    layer = torch.nn.Linear(8, 4)
    with counted_bytes(layer) as counted:
        layer(torch.zeros(16, 8)).exp().sum().backward()
    # The input of the linear map and the result of exp, float32.
    assert counted.total == 4 * (16 * 8 + 16 * 4)


def test_a_collapsed_run_is_told_from_one_that_learns() -> None:
    assert collapsed({"scans alike": 0.4, "reports alike": 0.79, "R@1": 0.0}) == ""
    said = collapsed({"scans alike": 0.991, "reports alike": 0.9996, "R@1": 0.0})
    assert "different reports are nearly all alike (mean cosine 0.9996)" in said and "--text-from" in said


def test_a_made_up_batch_runs_through_every_objective() -> None:
    recipe = micro()
    learner = Learner(recipe, 300)
    terms = learner(made_up_batch(recipe, 300, 2, learner.keys), Processes("cpu").context(0, 0))
    assert len(terms.losses) == 9 and all(bool(term.total.isfinite()) for term in terms.losses.values())


def test_a_cohort_becomes_a_manifest_whose_twins_share_a_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = {}
    for n in range(20):
        name = f"case_{n:06d}"
        folder = tmp_path / name
        folder.mkdir()
        (folder / "ct.nii.gz").write_bytes(b"")
        section = {"title": "Findings", "sentences": [{"text": f"finding {n}."}]}
        records[name] = {
            "twin_of": f"case_{n - 1:06d}" if n % 2 else None,
            "reports": {"structured": [section], "letter": [section]},
            "findings": [{"name": "lung_nodule", "state": "present" if n % 2 else "absent"}],
        }
        (folder / "record.json").write_text(json.dumps(records[name]), encoding="utf-8")
    (tmp_path / "case_000007" / "record.json").write_text("{", encoding="utf-8")
    monkeypatch.setattr(cohort, "read_cohort", lambda _: SimpleNamespace(case_folders=[tmp_path / name for name in records]))
    entries, bad = cohort.cohort_entries(tmp_path)
    assert [b.study for b in bad] == ["case_000007"] and len(entries) == 19
    of = {entry["study"]: entry for entry in entries}
    assert all(of[n]["split"] == of[r["twin_of"]]["split"] for n, r in records.items() if r["twin_of"] in of and n in of)
    assert {entry["split"] for entry in entries} == {"train", "val", "test"}
    assert all(len(entry["reports"]) == 1 for entry in entries), "the held-out style is not learnt from"
    assert of["case_000000"]["record"] == of["case_000002"]["record"] != of["case_000001"]["record"]
    cohort.write_manifest(tmp_path / "m.jsonl", entries)
    assert len(read_manifest(tmp_path / "m.jsonl").studies) == 19


def test_a_vocabulary_learnt_again_from_the_same_reports_is_the_same_and_splits_and_joins_words() -> None:
    texts = [f"No {word} in the {side} lung, ä." for word in ("nodule", "effusion", "mass") for side in ("left", "right")] * 3
    made = [learn_vocabulary(texts) for _ in range(3)]
    assert made[0] == made[1] == made[2]
    tokenizer = ReportTokenizer(made[0])
    ids = tokenizer.encode("No nodule in the left lung.")
    assert tokenizer.decode(ids) == "No nodule in the left lung." and tokenizer.unk_id not in ids
    assert len(tokenizer.encode("nodule")) == 1 and len(tokenizer.encode("fossil")) > 1
    assert tokenizer.special_ids == set(range(len(special_tokens(ontology()))))
    assert set(tokenizer.ordinary_ids).isdisjoint(tokenizer.special_ids)


def test_slicer_is_seen_by_its_application_and_pythonslicer_is_not_taken_for_it() -> None:
    assert child.under_slicer({"slicer": SimpleNamespace(app=object())})
    assert not child.under_slicer({"slicer": SimpleNamespace()})
    assert not child.under_slicer({})


def fake_python_slicer(folder: Path, body: str) -> Path:
    """A program of that name that writes down how it was called, then does `body`."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "PythonSlicer"
    program.write_text(f"#!{sys.executable}\nimport json, sys, os, time\n{body}\n", encoding="utf-8")
    program.chmod(0o755)
    return program


POSIX = pytest.mark.skipif(os.name == "nt", reason="the fake program is a POSIX script")


@POSIX
def test_pythonslicer_is_found_by_its_home_beside_the_application_and_on_the_path(tmp_path: Path) -> None:
    program = fake_python_slicer(tmp_path / "Slicer" / "bin", "")
    nowhere = str(tmp_path / "elsewhere" / "app")
    assert child.python_slicer(nowhere, {"SLICER_HOME": str(tmp_path / "Slicer")}, lambda _: None) == str(program)
    assert child.python_slicer(str(tmp_path / "Slicer" / "Slicer-real"), {}, lambda _: None) is None
    assert child.python_slicer(str(tmp_path / "Slicer" / "bin" / "SlicerApp-real"), {}, lambda _: None) == str(program)
    assert child.python_slicer(nowhere, {}, lambda name: f"/opt/{name}") == "/opt/PythonSlicer"
    assert child.python_slicer(nowhere, {}, lambda _: None) is None


@POSIX
def test_under_slicer_the_script_runs_itself_again_with_its_words_and_streams_and_ends_with_the_childs_code(tmp_path: Path) -> None:
    fake_python_slicer(tmp_path / "bin", "print(json.dumps(sys.argv[1:])); print('to stderr', file=sys.stderr); sys.exit(75)")
    # A Slicer in which the script runs: `slicer.app` exists in its modules.
    host = (
        "import sys, types, runpy; sys.modules['slicer'] = types.SimpleNamespace(app=object());"
        f"sys.argv = [{str(SCRIPT)!r}, 'velvet', '--steps', '3', 'ü'];"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", host], capture_output=True, env={**os.environ, "SLICER_HOME": str(tmp_path)}, timeout=120, check=False
    )
    assert done.returncode == 75
    assert json.loads(done.stdout.decode("utf-8")) == [str(SCRIPT), "velvet", "--steps", "3", "ü"]
    assert "to stderr" in done.stderr.decode("utf-8")
    assert "torch" not in done.stderr.decode("utf-8"), "the application's own process loads nothing heavy"


@POSIX
def test_a_request_to_stop_is_handed_on_to_the_child(tmp_path: Path) -> None:
    body = (
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"open({str(tmp_path / 'up')!r}, 'w').close()\ntime.sleep(60)"
    )
    program = fake_python_slicer(tmp_path / "bin", body)
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); from pathlib import Path; from pretraining.child import run_again;"
    parent = subprocess.Popen([sys.executable, "-c", code + f"sys.exit(run_again(Path('x.py'), [], {str(program)!r}))"])
    for _ in range(600):
        if (tmp_path / "up").exists():
            break
        time.sleep(0.1)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=60) == 75


def test_without_pythonslicer_a_sentence_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert child.run_again(Path("x.py"), [], None) == 2
    said = capsys.readouterr().err
    assert "Found:" in said and "Next:" in said


def test_missing_packages_are_named_with_what_to_do(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert child.missing_packages(lambda name: None if name == "torch" else object()) == ["torch"]
    monkeypatch.setattr(commandline, "missing_packages", lambda: ["torch", "tokenizers"])
    assert pretrain.main(["velvet", "--run", "x", "--steps", "1"]) == 1
    assert "no torch, no tokenizers" in capsys.readouterr().err


def test_the_parent_imports_nothing_but_the_standard_library() -> None:
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import pretrain; print(','.join(sys.modules))"
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=True)
    assert not {"torch", "numpy", "SimpleITK", "slicer"} & set(done.stdout.decode("utf-8").strip().split(","))
