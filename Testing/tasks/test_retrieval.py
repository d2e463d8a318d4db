"""Search explains itself, leaves the query's own scan out, re-ranks by a trained match head alone, and refuses a foreign index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from Testing.tasks.store_items import KEY, facts, make_items
from VelvetMedLib.errors import BundleError, IndexMismatchError, UsageError
from VelvetMedLib.tasks import Index, Where, encode, search
from VelvetMedLib.tasks.indexing import _Source
from VelvetMedLib.tasks.matching import match_tokens
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.store import Facts, create_store
from VelvetMedLib.tasks.text_vectors import text_vectors


def bundle(key: str = KEY) -> Any:
    return SimpleNamespace(encoding_key=key, config=SimpleNamespace(id="demo", family="velvet"), model=SimpleNamespace(match=None))


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with closing(create_store(tmp_path / "index", facts())) as store:
        store.add(make_items(60))
    with Index(tmp_path / "index", bundle()) as opened:
        yield opened


def test_every_hit_says_why_by_findings_and_by_the_organ_that_is_most_alike(index: Index):
    items = make_items(60)
    query = items[7]  # liver, heart and spleen in view
    hits = index.by_vector(query.study, count=60, present=("lung_nodule",), regions=query.regions)
    assert hits[0].number == 8 and hits[0].similarity == pytest.approx(1.0, abs=1e-3)
    for hit in hits:
        item = items[hit.number - 1]
        assert hit.shared == (("lung_nodule",) if "lung_nodule" in item.present else ())
        assert ("both show lung nodule" in hit.why) == bool(hit.shared)
        alike = {organ: float(vector @ query.regions[organ]) for organ, vector in item.regions.items()}
        best = max(alike, key=lambda organ: alike[organ], default=None)
        assert hit.region == (None if best is None else (best, pytest.approx(alike[best], abs=1e-4)))
        assert hit.why.endswith(f"in the {best} ({alike[best]:.2f})") if best else "similar as a whole" in hit.why or hit.shared
        assert hit.id == (item.id or f"scan-{hit.number}")


def test_a_search_by_organ_compares_that_organ_alone(index: Index):
    items = make_items(60)
    hits = index.by_vector(items[3].regions["heart"], region="heart", count=60, present=items[3].present)
    assert {h.number for h in hits} == {n for n, item in enumerate(items, 1) if "heart" in item.regions}
    assert hits[0].number == 4 and all(h.region == ("heart", h.similarity) and "compared in the heart" in h.why for h in hits)


def test_an_index_of_other_weights_is_refused(index: Index, tmp_path: Path):
    with pytest.raises(IndexMismatchError, match="another model"):
        Index(tmp_path / "index", bundle("other"))
    with pytest.raises(IndexMismatchError, match="no index here"):
        Index(tmp_path, bundle())


def test_an_empty_text_and_a_rerank_without_a_match_head_are_refused(index: Index):
    with pytest.raises(UsageError, match="no words"):
        index.by_text("  ?!")
    with pytest.raises(BundleError, match="re-rank"):
        index.by_text("a nodule", rerank=True)
    for wrong in ({"text": "a nodule", "region": "liver"}, {"case": "x", "rerank": True}, {}, {"text": "a", "case": "x"}):
        with pytest.raises(UsageError):
            search(index, **wrong)


def test_rerank_adds_the_match_heads_answer_to_the_cosine_of_the_best(
    make_match_bundle: Callable[[], Any], make_body: Callable[..., Any], tmp_path: Path
):
    import torch

    bundle, text = make_match_bundle(), "Pleural effusion on the left."
    scans = [make_body((24, 20, 24), seed=seed) for seed in range(3)]
    encodings = [encode(scan, bundle) for scan in scans]
    layout = bundle.tokenizer.layout([[text]], 160)
    model, wanted = bundle.model, {}
    query = text_vectors([[text]], bundle)[0]
    for number, encoding in enumerate(encodings, 1):
        tokens = torch.from_numpy(match_tokens(encoding, bundle))[None].float()
        with torch.inference_mode():
            states = model.tribert.text(layout.ids, layout.type_ids, layout.pad_mask)
            fused = model.tribert.fuse(states, layout.type_ids, layout.pad_mask, tokens)
            wanted[number] = (float(encoding.study_vector @ query), float(model.match(fused)[0, 1]))
    made = Facts(encoding_key=bundle.encoding_key, dimension=32, region_dimension=77)
    with closing(create_store(tmp_path / "index", made)) as store:
        for scan in scans:
            store.add([_Source(Path("scan"), scan.sha256(), None, scan).item(bundle, Run(), keep_text=False, keep_place=False)])
    with Index(tmp_path / "index", bundle) as index:
        hits = index.by_text(text, rerank=True, count=3)
        assert [h.number for h in hits] == sorted(wanted, key=lambda n: -sum(wanted[n]))
        assert {h.number: h.match for h in hits} == {n: pytest.approx(logit, abs=2e-3) for n, (_, logit) in wanted.items()}
        assert len({h.match for h in hits}) > 1 and index.by_text(text, count=1, where=Where())[0].match is None


@pytest.fixture
def make_match_bundle(random_bundle_folder: Path, tmp_path: Path) -> Callable[[], Any]:
    """A random bundle that has a match head, whose answers differ from scan to scan."""

    def make() -> Any:
        import torch

        from Testing.plugins.bundles import tiny_model_config, tokenizer_text
        from VelvetMedLib.bundle import load_bundle, read_config, save_bundle
        from VelvetMedLib.models.text import ReportTokenizer
        from VelvetMedLib.models.velvet import VelvetModel

        plain = read_config(random_bundle_folder)
        config = replace(tiny_model_config(ReportTokenizer(tokenizer_text()).vocab_size), match=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = VelvetModel(config)
            torch.nn.init.normal_(model.match.linear.weight)
            for layer in model.visual_adapter:
                torch.nn.init.normal_(layer.weight)
        save_bundle(tmp_path / "match", replace(plain, architecture=config.to_dict()), model, tokenizer_text(), "# For tests\n")
        return load_bundle(tmp_path / "match")

    return make
