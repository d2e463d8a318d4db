"""The demo training's stages on the engine's trainer: equal to a loop written out, resumed bit for bit, refused when mixed up."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from demo.data import PreparedCase
from demo.encodings import EncodedCase, Overlap, encode_cases, part_truth
from demo.fine import CropMaker, FineSettings, FineStage, class_shares
from demo.global_stage import GlobalMaker, GlobalSettings, GlobalStage
from demo.losses import said_term
from demo.reader_stage import ReaderMaker, ReaderSettings, ReaderStage
from demo.reading import fit_standardisation
from demo.stages import StoppedOnRequest, train_stage
from demo.text_stage import ReadingHead, ReadingSettings, TextMaker, TextStage
from demo.texts import TextSettings, TextSource, corpus, positive_weight
from demo.verifier_stage import PartMaker, VerifierSettings, VerifierStage, true_kinds
from pretraining.vocabulary import learn_vocabulary
from safetensors.numpy import save_file

from Testing.plugins.bundles import tiny_model_config
from VelvetMedLib.engine.checkpoints import Checkpoints
from VelvetMedLib.engine.log import read_log
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.randomness import seed_torch
from VelvetMedLib.engine.sampler import StepSampler
from VelvetMedLib.engine.trainable import Trainable
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.reports import ontology, parse_sentence

SEED, STEPS = 4, 4
TEXT = TextSettings(tokens=48)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def watched(settings: Any, **changes: Any) -> Any:
    """The stage's own settings, with a small batch in float32, saved and logged often."""
    loop = replace(settings.loop, batch=2, save_every=2, log_every=1, precision="fp32", **changes)
    return replace(settings, loop=loop)


FINE = watched(FineSettings(steps=STEPS, crop_voxels=(16, 16, 16)))
READING = watched(ReadingSettings(steps=STEPS, text=TEXT))
GLOBAL = watched(GlobalSettings(steps=STEPS, text=TEXT))
READER = watched(ReaderSettings(steps=STEPS, text=TEXT))
VERIFIER = watched(VerifierSettings(steps=STEPS))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedCase]:
    """Noise with a bright organ and two lesion voxels."""
    cases = []
    for n in range(5):
        folder = tmp_path_factory.mktemp("prepared")
        draw = np.random.default_rng(n)
        hu = draw.normal(0, 20, (24, 20, 18)).astype(np.int16)
        organs = np.zeros(hu.shape, np.uint8)
        organs[4:12, 4:12, 4:12] = 3
        hu[organs > 0] += 300
        np.save(folder / "hu.npy", hu)
        np.save(folder / "organs.npy", organs)
        np.savez(folder / "lesions.npz", index=np.array([5, 99], np.int32), bits=np.array([1, 2], np.uint32))
        np.savez(folder / "points.npz", **{"0": np.array([[1, 2, 3]], np.int16)})
        cases.append(PreparedCase(folder, f"case{n}", "train", {"findings": []}))
    return cases


@pytest.fixture
def encoded(random_records: Callable[[np.random.Generator], Any]) -> list[EncodedCase]:
    """Cases as the reader sees them, of noise and random findings; enough of them that every finding is once present, once absent."""

    def case(n: int) -> EncodedCase:
        draw = np.random.default_rng(n)
        parts = int(draw.integers(0, 4))
        none = Overlap(*(np.zeros(1, np.int64) for _ in range(3)))
        return EncodedCase(
            case_id=f"case{n}",
            split="train",
            findings=random_records(draw),
            global_view=draw.random((32, 32, 32)).astype(np.float16),
            view_spacing_mm=np.full(3, 5.0, np.float32),
            cell_shares=draw.random((49, 4, 4, 4)).astype(np.float16),
            regions=draw.normal(size=(32, 77)).astype(np.float32),
            region_mask=draw.random(32) < 0.8,
            lesions=draw.normal(size=(parts, 108)).astype(np.float32),
            part_voxels=np.full(parts, 10, np.int32),
            part_true=draw.integers(0, 5, (parts, 17)).astype(np.int32),
            organ_overlap=none,
            lesion_overlap=none,
            top=draw.normal(size=(256, 1, 1, 1)).astype(np.float32),
        )

    return [case(n) for n in range(48)]


@pytest.fixture
def make(prepared: list[PreparedCase], encoded: list[EncodedCase]) -> Callable[..., tuple[Trainable, Any, list[str], Any]]:
    """make(kind, settings): a stage of newly drawn weights, its batch maker, the cases' names and the model."""
    tokenizer = ReportTokenizer(learn_vocabulary(corpus(encoded, seed=1), vocabulary=400))
    source = TextSource(tokenizer, TEXT)
    names = [case.case_id for case in encoded]

    def made(kind: str, settings: Any) -> tuple[Trainable, Any, list[str], Any]:
        seed_torch(SEED, "weights")
        model = VelvetModel(tiny_model_config(tokenizer.vocab_size))
        if kind == "fine":
            assert model.fine is not None
            stage: Trainable = FineStage(model.fine, class_shares(prepared, 33, settings.least_share), settings)
            return stage, CropMaker(prepared, settings, SEED), [case.case_id for case in prepared], model
        if kind == "global":
            return GlobalStage(model, positive_weight(encoded), settings), GlobalMaker(encoded, source, SEED), names, model
        if kind == "text":
            named = [(case.case_id, case) for case in encoded]
            return TextStage(model, positive_weight(encoded), settings), TextMaker(named, source, settings, SEED), names, model
        if kind == "verifier":
            assert model.verifier is not None
            some = [case for case in encoded if len(case.lesions)]
            return VerifierStage(model.verifier, settings), PartMaker(some), [case.case_id for case in some], model
        fit_standardisation(model, encoded)
        maker = ReaderMaker(encoded, source, SEED, lesion_features=108, positions=96)
        return ReaderStage(model, ReadingHead(model.config.projection_dim), encoded, source, settings), maker, names, model

    return made


def slow_training(stage: Trainable, maker: Any, names: list[str], settings: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same training written out with torch's own optimiser, clipping and a schedule by hand: losses by step, averaged weights."""
    o, steps = settings.optimiser, settings.steps
    parameters = [(n, p) for n, p in stage.named_parameters() if p.requires_grad]
    decayed = [p for n, p in parameters if o.decay_all or (p.ndim > 1 and "relative_position_bias" not in n)]
    plain = [p for n, p in parameters if not (o.decay_all or (p.ndim > 1 and "relative_position_bias" not in n))]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": o.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=o.learning_rate, betas=(o.beta1, o.beta2),
    )  # fmt: skip
    average = {name: value.clone() for name, value in stage.state_dict().items()}
    sampler, shown = StepSampler(names, settings.loop.batch, SEED), []
    stage.train()
    for step in range(steps):
        batch, ctx = maker.batch(sampler.draw(step), sampler.epoch_of(step)), Context(seed=SEED, step=step)
        warm = round(steps * o.warmup_share)
        share = (step - warm) / max(1, steps - 1 - warm)
        cosine = o.last_rate + (o.learning_rate - o.last_rate) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimiser.param_groups:
            group["lr"] = o.learning_rate * (step + 1) / (warm + 1) if step < warm else cosine
        seed_torch(SEED, "forward", step, 0, 0)
        terms = stage(batch, ctx).losses
        loss = sum(stage.weights.get(name, 1.0) * term.total / term.count for name, term in terms.items())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(stage.parameters(), o.clip_norm)
        optimiser.step()
        keep = min(o.average_decay, (1 + step) / (10 + step))
        for name, value in stage.state_dict().items():
            average[name] = keep * average[name] + (1 - keep) * value if value.is_floating_point() else value.clone()
        shown.append(float(loss.detach()))
    return shown, average


def checkpoint(run: Path) -> dict[str, torch.Tensor]:
    found = Checkpoints(run).load()
    assert found is not None
    return {f"{part}/{name}": value for part, tensors in found.parts.items() for name, value in tensors.items()}


KINDS = [("fine", FINE), ("text", READING), ("global", GLOBAL), ("reader", READER), ("verifier", VERIFIER)]


@pytest.mark.parametrize(("kind", "settings"), KINDS, ids=[kind for kind, _ in KINDS])
def test_a_stage_is_the_written_out_loop_and_goes_on_bit_for_bit_where_it_was_broken_off(
    make: Any, tmp_path: Path, kind: str, settings: Any
) -> None:
    stage, maker, names, _ = make(kind, settings)
    train_stage(stage, maker, names, tmp_path / "whole", settings, seed=SEED)
    twin, maker, names, _ = make(kind, settings)
    losses, average = slow_training(twin, maker, names, settings)
    assert [record["loss"] for record in read_log(tmp_path / "whole")] == pytest.approx(losses, abs=2e-5)
    for name, value in stage.state_dict().items():
        torch.testing.assert_close(value, average[name], atol=2e-5, rtol=1e-4)

    def kill(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    stage, maker, names, _ = make(kind, settings)
    with pytest.raises(KeyboardInterrupt):
        train_stage(stage, maker, names, tmp_path / "broken", settings, seed=SEED, after_step=kill)
    torch.rand(3)  # what is drawn in between must not matter
    stage, maker, names, _ = make(kind, settings)
    train_stage(stage, maker, names, tmp_path / "broken", settings, seed=SEED)
    whole, resumed = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "broken")
    assert whole.keys() == resumed.keys() and not [name for name in whole if not torch.equal(whole[name], resumed[name])]
    assert (tmp_path / "broken" / "checkpoints" / "previous").is_dir()


def test_the_losses_of_the_fine_stage_fall(make: Any, tmp_path: Path) -> None:
    settings = replace(FINE, steps=12, optimiser=replace(FINE.optimiser, learning_rate=1e-2))
    stage, maker, names, model = make("fine", settings)
    before = {name: value.clone() for name, value in model.fine.state_dict().items()}
    seconds = train_stage(stage, maker, names, tmp_path / "run", settings, seed=SEED)
    organs = [record["losses"]["organs_loss"] for record in read_log(tmp_path / "run")]
    assert np.mean(organs[-4:]) < 0.8 * np.mean(organs[:4]) and seconds > 0
    # What is left in the network is the average, which is neither where it began nor where the last step went.
    kept, last = model.fine.state_dict(), checkpoint(tmp_path / "run")
    changed = [name for name, value in kept.items() if value.is_floating_point() and value.ndim > 1]
    assert any(not torch.equal(kept[name], before[name]) for name in changed)
    assert all(torch.equal(kept[name], last[f"average/net.{name}"]) for name in kept)
    assert any(not torch.equal(kept[name], last[f"weights/net.{name}"]) for name in changed)


def test_a_request_to_stop_saves_the_step_and_the_stage_goes_on(make: Any, tmp_path: Path) -> None:
    stage, maker, names, _ = make("fine", FINE)
    with pytest.raises(StoppedOnRequest):
        ask = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 1 else None  # noqa: E731
        train_stage(stage, maker, names, tmp_path, FINE, seed=SEED, after_step=ask)
    found = Checkpoints(tmp_path).load()
    assert found is not None and found.step == 1
    stage, maker, names, _ = make("fine", FINE)
    train_stage(stage, maker, names, tmp_path, FINE, seed=SEED)
    found = Checkpoints(tmp_path).load()
    assert found is not None and found.step == STEPS


def test_a_step_that_is_not_finite_changes_no_weight_and_names_its_cases(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, spoiled = CropMaker.batch, StepSampler(["case0", "case1", "case2", "case3", "case4"], 2, SEED).draw(0)

    def batch(self: CropMaker, names: list[str], epoch: int) -> Any:
        made = whole(self, names, epoch)
        if names == spoiled:
            made.channels[:] = float("nan")
        return made

    monkeypatch.setattr(CropMaker, "batch", batch)
    settings = replace(FINE, steps=1)
    stage, maker, names, model = make("fine", settings)
    before = {name: value.clone() for name, value in model.fine.state_dict().items()}
    train_stage(stage, maker, names, tmp_path, settings, seed=SEED)
    (skipped,) = [record for record in read_log(tmp_path) if record.get("event") == "skipped"]
    assert skipped["studies"] == sorted(spoiled)
    assert all(torch.equal(value, before[name]) for name, value in model.fine.state_dict().items())


def test_a_run_with_other_settings_cases_or_earlier_stages_is_refused(make: Any, tmp_path: Path) -> None:
    settings = replace(FINE, steps=1)

    def call(changed: Any = settings, drop: int = 0, stands_on: torch.nn.Module | None = None) -> None:
        stage, maker, names, _ = make("fine", changed)
        earlier = {"before": stands_on} if stands_on is not None else None
        train_stage(stage, maker, names[drop:], tmp_path, changed, seed=SEED, stands_on=earlier)

    layer = torch.nn.Linear(2, 2)
    call(stands_on=layer)
    call(replace(settings, loop=replace(settings.loop, save_every=7)), stands_on=layer)  # moves no weight
    with pytest.raises(TrainingError, match="other settings") as caught:
        call(replace(settings, lesion_weight=0.5), stands_on=layer)
    assert "recipe.lesion_weight" in caught.value.found
    with pytest.raises(TrainingError, match="other settings") as caught:
        call(drop=1, stands_on=layer)
    assert "cases" in caught.value.found
    with torch.no_grad():
        layer.weight += 1
    with pytest.raises(TrainingError, match="other settings") as caught:
        call(stands_on=layer)
    assert "stands_on.before" in caught.value.found


def test_encodings_of_another_fine_network_are_refused(make: Any, tmp_path: Path) -> None:
    _, _, _, model = make("fine", FINE)
    where: dict[str, Any] = {"thresholds": [0.5] * 17, "spacing_mm": 4.0, "processes": 1}
    assert encode_cases(model, [], tmp_path, **where)[0] == []
    assert encode_cases(model, [], tmp_path, **where)[0] == []
    with torch.no_grad():
        next(model.fine.parameters()).add_(1.0)
    with pytest.raises(TrainingError, match="another fine network"):
        encode_cases(model, [], tmp_path, **where)


@pytest.mark.parametrize(("kind", "settings"), KINDS[2:], ids=["global", "reader", "verifier"])
def test_two_micro_batches_sum_what_one_batch_sums_where_studies_are_not_compared(make: Any, kind: str, settings: Any) -> None:
    stage, maker, names, _ = make(kind, settings)
    stage.eval()  # dropout is drawn by micro-batch
    parts = [names[:3], names[3:5]]
    processes, ctx = Processes("cpu"), Context(seed=SEED, step=0)
    one = stage.gradients([maker.batch(names[:5], 0)], ctx, processes, SEED)
    two = stage.gradients([maker.batch(part, 0) for part in parts], ctx, processes, SEED)
    assert one.totals == two.totals and all(count > 0 for count in one.totals.values())
    for name in one.sums.keys() - {"report_contrast_loss"}:
        assert two.sums[name] == pytest.approx(one.sums[name], rel=1e-5), name


def test_a_case_shows_the_same_in_whatever_company_it_is_drawn(make: Any) -> None:
    for kind, settings in KINDS:
        _, maker, names, _ = make(kind, settings)
        alone, together = maker.batch([names[1]], 3), maker.batch([names[0], names[1]], 3)
        other = maker.batch([names[1]], 4)
        if kind == "fine":
            assert torch.equal(alone.channels[0], together.channels[1]) and not torch.equal(alone.channels, other.channels)
        elif kind == "global":
            one, two, next_epoch = (batch.images["image.global"] for batch in (alone, together, other))
            assert torch.equal(one[0], two[1]) and not torch.equal(one, next_epoch)
            assert alone.group[0] == together.group[1]
        elif kind == "text":
            width = alone.excerpts.ids.shape[1]
            assert torch.equal(alone.excerpts.ids[0], together.excerpts.ids[1, :width])
            torch.testing.assert_close(alone.said_in_excerpts[0], together.said_in_excerpts[1], equal_nan=True)
        elif kind == "verifier":
            assert torch.equal(alone.tokens, together.tokens[-len(alone.tokens) :]) and torch.equal(alone.true, other.true)
        else:
            assert alone.group[0] == together.group[1]
            assert sorted(t.tolist() for _, ids, _ in alone.rows for t in ids.sum(1)) == sorted(
                t.tolist() for owner, ids, _ in together.rows for t in ids[owner == 1].sum(1)
            )


def test_the_loss_of_the_second_look_is_the_cross_entropy_of_every_part_and_kind(make: Any) -> None:
    stage, maker, names, model = make("verifier", VERIFIER)
    stage.eval()
    batch = maker.batch(names[:6], 0)
    cases = [maker.cases[name] for name in names[:6]]
    slow = 0.0
    for case in cases:
        for token, voxels, true in zip(case.lesions, case.part_voxels, case.part_true, strict=True):
            logits = model.verifier.double()(torch.from_numpy(token).double()).detach()
            for kind in range(17):
                p = 1 / (1 + math.exp(-float(logits[kind])))
                slow -= math.log(p if true[kind] / voxels >= 0.2 else 1 - p)
    model.verifier.float()
    term = stage(batch, Context(seed=SEED, step=0)).losses["parts_loss"]
    assert float(term.total.detach()) == pytest.approx(slow, rel=1e-5) and term.count == sum(17 * len(case.lesions) for case in cases)
    assert len(batch) == 6 and 0.2 < float(torch.cat([true_kinds(case) for case in cases]).mean()) < 0.9


def test_the_second_look_learns_which_parts_are_true(make: Any, tmp_path: Path) -> None:
    settings = replace(VERIFIER, steps=120, optimiser=replace(VERIFIER.optimiser, learning_rate=1e-2))
    stage, maker, names, model = make("verifier", settings)
    for case in maker.cases.values():
        case.part_true[:] = np.where(case.lesions[:, :1] > 0, 9, 0)
    train_stage(stage, maker, names, tmp_path / "run", settings, seed=SEED)
    with torch.no_grad():
        right = [
            ((model.verifier(torch.from_numpy(case.lesions)) > 0) == (true_kinds(case) > 0)).float().mean() for case in maker.cases.values()
        ]
    assert float(torch.stack(right).mean()) > 0.75


def test_what_is_true_of_a_part_is_counted_in_its_own_voxels(make_fine: Any) -> None:
    boxes = {
        "lung_nodule": [((40, 44), (20, 23), (54, 56)), ((46, 48), (18, 20), (36, 38))],
        "consolidation": [((40, 42), (20, 23), (54, 56))],
    }
    fine = make_fine(boxes)
    bits = np.zeros(fine.organs_xyz.shape, np.uint32)
    bits[43:60, 20:22, 54:60] |= 1  # two voxels by one by two of the first nodule
    bits[40:41, 20:23, 54:55] |= 2
    counts = part_truth(fine, bits, (0.5,) * 17)
    assert [meta.channel for meta in fine.lesions] == [0, 1, 0]
    expected = np.zeros((3, 17), np.int32)
    expected[0, :2], expected[1, 1] = (4, 3), 3
    assert np.array_equal(counts, expected)


def test_kept_encodings_of_an_older_version_are_refused(make: Any, prepared: list[PreparedCase], tmp_path: Path) -> None:
    _, _, _, model = make("fine", FINE)
    save_file({"regions": np.zeros(1, np.float32)}, tmp_path / "case0.safetensors")
    with pytest.raises(TrainingError, match="older version"):
        encode_cases(model, prepared[:1], tmp_path, thresholds=[0.5] * 17, spacing_mm=4.0, processes=1)


def test_an_excerpt_says_what_its_sentences_say_and_nothing_of_other_findings(encoded: list[EncodedCase]) -> None:
    source = TextSource(ReportTokenizer(learn_vocabulary(corpus(encoded, seed=1), vocabulary=400)), TEXT)
    names = [finding.name for finding in ontology().findings]
    for n, case in enumerate(encoded):
        sentences, said = source.excerpt(case, np.random.default_rng(n))
        told = {record.name: record.state for sentence in sentences for record in parse_sentence(sentence)}
        for index, name in enumerate(names):
            assert said[index].isnan() or {1.0: "present", 0.0: "absent"}[float(said[index])] == told[name]
        assert 1 <= len(sentences) <= 2
        assert bool(said.isfinite().any()) == bool({"present", "absent"} & set(told.values()))


def test_the_loss_of_what_is_said_is_two_cross_entropies_written_out() -> None:
    draw = torch.Generator().manual_seed(1)
    logits, weight = torch.randn(3, 8, generator=draw), torch.rand(4, generator=draw) + 1
    said = torch.tensor([[1, 0, float("nan"), 1], [0, 0, 1, float("nan")], [float("nan")] * 4])
    total = 0.0
    for row in range(3):
        for f in range(4):
            affirmed, denied = torch.sigmoid(logits[row, f]).item(), torch.sigmoid(logits[row, 4 + f]).item()
            state = float(said[row, f])
            total -= weight[f].item() * math.log(affirmed) if state == 1 else math.log(1 - affirmed)
            total -= math.log(denied) if state == 0 else math.log(1 - denied)
    term = said_term(logits, said, weight)
    assert float(term.total) == pytest.approx(total, rel=1e-5) and term.count == 12
