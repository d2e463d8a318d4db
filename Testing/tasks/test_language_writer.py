"""A language model behind a soft prompt: its arithmetic against a plain loop, its folder, and that the report believes it nothing."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("peft", reason="language models need the extra 'llm'")

import torch

from VelvetMedLib.errors import BundleError, Cancelled, UsageError
from VelvetMedLib.reports import FindingRecord, parse_sentence
from VelvetMedLib.tasks import analyze, encode
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.writers import DraftSettings, open_writer
from VelvetMedLib.tasks.writers.language import LanguageWriter, WriterFacts, save_writer
from VelvetMedLib.tasks.writers.soft_prompt import (
    LoraSettings,
    PromptedModel,
    PromptSettings,
    SearchSettings,
    instruction,
    load_language_model,
    prompt_states,
    seen_of,
)

NODULE = FindingRecord(name="lung_nodule", state="present", side="right", site="lung_upper_lobe_right", size_mm=14.2, count=3)
NO_EFFUSION = FindingRecord(name="pleural_effusion", state="absent", value=0.0)
GREEDY = SearchSettings(beams=1, no_repeat=0, most_tokens=12)


@pytest.fixture(scope="module")
def model(tiny_language: Path, random_bundle: Any) -> PromptedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = PromptedModel(*load_language_model(tiny_language, LoraSettings()), random_bundle.model.config.tribert.width)
        # LoRA begins as nothing; here it must be seen.
        for name, value in made.adapted().items():
            if "lora_B" in name or name == "prompt.weight":
                torch.nn.init.normal_(value, std=0.3)
    return made.eval()


@pytest.fixture(scope="module")
def encoding(body: Any, random_bundle: Any) -> Encoding:
    return encode(body, random_bundle)


@pytest.fixture(scope="module")
def prompts(encoding: Encoding, random_bundle: Any) -> tuple[Any, Any]:
    seen = [seen_of(encoding, random_bundle)] * 2
    asked = [instruction(NODULE, "terse"), instruction(NO_EFFUSION, "terse")]
    return prompt_states(random_bundle, asked, seen, PromptSettings().resolved(random_bundle))


@torch.no_grad()
def one_by_one(model: PromptedModel, states: Any, steps: int) -> tuple[list[int], list[float]]:
    """The slow twin: one row without padding, the whole sequence anew for every token. [P, W] -> ids and log-probabilities."""
    table = model.language.get_input_embeddings()
    sequence = torch.cat([model.prompt(states), table(torch.tensor([model.start]))])
    ids, logs = [], []
    for _ in range(steps):
        scores = model.language(inputs_embeds=sequence[None]).logits[0, -1].log_softmax(-1)
        ids.append(int(scores.argmax()))
        logs.append(float(scores.max()))
        sequence = torch.cat([sequence, table(torch.tensor([ids[-1]]))])
    return ids, logs


def test_greedy_writing_and_its_likelihood_equal_a_plain_loop_for_rows_of_unlike_length(model: PromptedModel, prompts: tuple[Any, Any]):
    states, valid = prompts
    assert valid.sum(1)[0] != valid.sum(1)[1] and bool(valid[:, -1].all())
    for row in range(2):
        ids, logs = one_by_one(model, states[row, valid[row]], 12)
        ended = ids.index(model.end) if model.end in ids else None
        found = model.generate(states, valid, GREEDY)[row]
        assert found == (ids[:ended], ended is not None)
        both = [[5, 6, 7], ids] if row else [ids, [5, 6, 7]]
        said, asked = model.log_likelihood(states, valid, both)
        assert said[row].tolist() == pytest.approx(logs, abs=1e-4)
        # Only what is asked for counts, the prompt and what lies behind an answer do not.
        assert asked.sum(1).tolist() == [len(ids) for ids in both] and said[~asked].abs().sum() == 0


def test_the_prompt_is_every_token_of_the_instruction_and_the_scan_and_no_padding(encoding: Encoding, random_bundle: Any):
    seen = seen_of(encoding, random_bundle)
    asked = [instruction(NODULE, "terse"), instruction(NO_EFFUSION, "terse")]
    layout = random_bundle.tokenizer.layout(asked, 96)
    for sources, more in ((("text",), 0), (("fused",), 0), (("fused", "memory"), len(seen.memory))):
        _, valid = prompt_states(random_bundle, asked, [seen, seen], sources)
        assert valid.sum(1).tolist() == [n + more for n in layout.pad_mask.sum(1).tolist()]
    # Fused states depend on the scan, those of the text alone do not.
    other = seen._replace(visual=seen.visual + 1)
    for source, same in (("text", True), ("fused", False)):
        one, two = (prompt_states(random_bundle, asked, [s, s], (source,))[0] for s in (seen, other))
        assert torch.equal(one, two) is same


def test_an_instruction_names_what_is_known_and_which_numbers_there_are_but_no_number():
    assert instruction(NODULE, "terse") == ["lung nodule present", "right", "right upper lobe", "size", "number", "terse"]
    assert instruction(NO_EFFUSION, "terse") == ["pleural effusion absent", "terse"]


def test_a_source_that_the_bundle_lacks_is_refused(random_bundle: Any):
    config = SimpleNamespace(tribert=random_bundle.model.config.tribert, reader=None)
    bare: Any = SimpleNamespace(model=SimpleNamespace(config=config))
    assert PromptSettings().resolved(bare) == ("fused",)
    with pytest.raises(UsageError, match="memory"):
        PromptSettings(sources=("memory",)).resolved(bare)


def test_only_the_linear_and_lora_on_query_key_and_value_are_trained(model: PromptedModel):
    names = set(model.adapted())
    assert {"prompt.weight", "prompt.bias"} < names
    rest = names - {"prompt.weight", "prompt.bias"}
    assert len(rest) == 2 * 3 * 2 and all("lora_" in n and any(f".{p}_proj." in n for p in "qkv") for n in rest)


@pytest.mark.parametrize("beams", [1, 3])
def test_no_pair_of_tokens_is_written_twice_where_that_is_forbidden(model: PromptedModel, prompts: tuple[Any, Any], beams: int):
    pairs = {}
    for no_repeat in (0, 2):
        (ids, _), _ = model.generate(*prompts, SearchSettings(beams=beams, no_repeat=no_repeat, most_tokens=120))
        pairs[no_repeat] = list(pairwise(ids))
    assert len(pairs[2]) == len(set(pairs[2]))
    # Left alone, the random model goes in circles; a search with beams may happen not to.
    assert beams > 1 or len(pairs[0]) > len(set(pairs[0]))


def test_a_cancel_is_heard_between_tokens(model: PromptedModel, prompts: tuple[Any, Any]):
    calls = []

    def cancel() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        model.generate(*prompts, SearchSettings(beams=2, most_tokens=40), cancel)
    assert len(calls) == 3


@pytest.fixture
def writer_folder(model: PromptedModel, tiny_language: Path, random_bundle: Any, tmp_path: Path) -> Path:
    facts = WriterFacts(
        bundle={"id": random_bundle.config.id, "version": "0", "encoding_key": random_bundle.encoding_key},
        base={"name": "tiny", "licence": "none"},
        width=random_bundle.model.config.tribert.width,
        sources=("fused", "memory"),
        lora=LoraSettings(),
        search=SearchSettings(beams=2, most_tokens=16),
        style="",
        training_data="none",
        results={},
    )
    save_writer(tmp_path / "writer", model, tiny_language, facts)
    return tmp_path / "writer"


def test_a_saved_writer_is_the_same_writer(writer_folder: Path, model: PromptedModel, random_bundle: Any, prompts: Any, encoding: Any):
    writer = open_writer(writer_folder, random_bundle)
    assert isinstance(writer, LanguageWriter) and writer.facts["model"] == "tiny" and len(writer.facts["sha256"]) == 64
    answers = [[7, 8, 9], [10, 11]]
    assert torch.allclose(writer.model.log_likelihood(*prompts, answers)[0], model.log_likelihood(*prompts, answers)[0], atol=1e-6)
    found = writer.write([NODULE, NO_EFFUSION], encoding, "terse", Run())
    assert len(found) == 2 and all(w is None or 0 < (w.probability or 0) <= 1 for w in found)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "writer.safetensors").write_bytes((f / "writer.safetensors").read_bytes()[:-1] + b"\x07"), "damaged"),
        (lambda f: (f / "model" / "config.json").write_text("{}", encoding="utf-8"), "damaged"),
        (lambda f: (f / "model" / "modeling.py").write_text("boom", encoding="utf-8"), "files are not those"),
        (lambda f: (f / "model" / "tokenizer.json").unlink(), "files are not those"),
        (lambda f: (f / "writer.json").write_text("{}", encoding="utf-8"), "no trained writer"),
    ],
)
def test_a_writer_that_is_not_as_it_was_written_is_refused(writer_folder: Path, random_bundle: Any, damage: Any, said: str, tmp_path: Path):
    changed = tmp_path / "changed"
    shutil.copytree(writer_folder, changed)
    damage(changed)
    with pytest.raises(BundleError, match=said):
        open_writer(changed, random_bundle)


def test_a_writer_of_another_bundle_is_refused(writer_folder: Path, bundle_maker: Any, tmp_path: Path):
    from VelvetMedLib.bundle import load_bundle

    with pytest.raises(BundleError, match="another model of scans"):
        open_writer(writer_folder, load_bundle(bundle_maker(tmp_path / "other", 5)))


@pytest.mark.parametrize("change", ["code", "pickle", "targets"])
def test_a_language_model_that_wants_code_or_pickles_or_lacks_the_projections_is_refused(tiny_language: Path, tmp_path: Path, change: str):
    folder = tmp_path / "language"
    shutil.copytree(tiny_language, folder)
    if change == "code":
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "x.Y"}}), encoding="utf-8")
    if change == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    lora = LoraSettings(targets=("query",)) if change == "targets" else LoraSettings()
    with pytest.raises(BundleError):
        load_language_model(folder, lora)


def test_what_a_language_model_makes_up_never_reaches_the_report(writer_folder: Path, body: Any, random_bundle: Any):
    """Random weights write nonsense: every sentence of the draft says its finding all the same."""
    writer = open_writer(writer_folder, random_bundle)
    case = analyze(body, random_bundle, draft=DraftSettings(style="terse"), writer=writer)
    assert case.report is not None and case.run["writer"]["kind"] == "language model"
    assert set(case.run["sentences"].values()) == {"composed"}
    states = {f.name: f.state for f in case.findings}
    sentences = [s for section in case.report.sections for s in section.sentences if s.finding]
    assert sentences
    for sentence in sentences:
        assert {m.name: m.state for m in parse_sentence(sentence.text)}.get(sentence.finding) == states[sentence.finding]


def test_the_size_of_a_new_prompt_is_that_of_words(tiny_language: Path):
    fresh = PromptedModel(*load_language_model(tiny_language, LoraSettings()), 48)
    states = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 48)).astype(np.float32))
    ratio = float(fresh.prompt(states).detach().std() / fresh.language.get_input_embeddings().weight.detach().std())
    assert 0.7 < ratio < 1.4
