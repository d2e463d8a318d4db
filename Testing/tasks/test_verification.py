"""The second look at the lesion maps: what is doubted goes everywhere at once, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from VelvetMedLib.bundle import LesionEntry
from VelvetMedLib.case import read_case
from VelvetMedLib.reports import ontology
from VelvetMedLib.tasks import analyze, encode
from VelvetMedLib.tasks.encoder import forget_encodings
from VelvetMedLib.tasks.encoding import load_encoding, save_encoding
from VelvetMedLib.tasks.evidence import Evidence
from VelvetMedLib.tasks.tokens import HIGHEST, lesion_summary
from VelvetMedLib.tasks.verification import DOUBTED, verified

NODULES = {
    "lung_nodule": [((40, 44), (20, 23), (54, 56)), ((46, 48), (18, 20), (36, 38))],
    "liver_lesion": [((36, 40), (20, 24), (10, 14))],
}


def looking_twice(surest_ml: float, *, asked: float) -> Any:
    """A bundle whose verifier believes in parts of more than so many ml, and asks for so much trust in nodules."""

    def network(tokens: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.expm1(tokens[:, 48 + 17 + 6]) > surest_ml, 4.0, -4.0)[:, None].expand(-1, 17)

    entries = tuple(LesionEntry(name=x.name, least_trust=asked if x.name == "lung_nodule" else 0.0) for x in ontology().lesions)
    return SimpleNamespace(model=SimpleNamespace(verifier=network), config=SimpleNamespace(lesions=entries), device="cpu")


def test_a_doubted_part_is_gone_from_maps_and_measures_and_its_token_stays(make_fine: Any):
    fine = make_fine(NODULES)
    before = fine.lesions_cxyz.copy()
    looked = verified(fine, looking_twice(1.0, asked=0.5))
    assert [(m.channel, m.trust) for m in looked.lesions] == [(11, 0.982), (0, 0.982)]
    assert not looked.lesions_cxyz[0][46:48, 18:20, 36:38].any() and looked.lesions_cxyz[0][40:44, 20:23, 54:56].all()
    changed = before != looked.lesions_cxyz
    assert changed.sum() == 8 and looked.cleaned == {DOUBTED: pytest.approx(8 * 0.064)}
    assert len(looked.lesion_tokens) == len(looked.lesion_logits) == 3
    measured = Evidence(looked, (0.5,) * 17).measure(ontology().finding("lung_nodule"))
    assert measured.count == 1 and Evidence(make_fine(NODULES), (0.5,) * 17).measure(ontology().finding("lung_nodule")).count == 2


def test_what_no_trust_is_asked_for_stays_and_without_cleaning_everything_does(make_fine: Any):
    for asked, cleaning in ((0.0, True), (0.5, False)):
        fine = make_fine(NODULES)
        looked = verified(fine, looking_twice(100.0, asked=asked), cleaning=cleaning)
        assert np.array_equal(looked.lesions_cxyz, make_fine(NODULES).lesions_cxyz)
        assert [m.trust for m in looked.lesions] == [0.018] * 3 and len(looked.lesions) == 3


def test_a_part_that_nothing_looked_at_is_dropped_where_its_kind_can_be_doubted(make_fine: Any):
    crowd = [((6 + 3 * n, 7 + 3 * n), (14 + 3 * m, 15 + 3 * m), (34, 35)) for n in range(6) for m in range(6)]
    fine = make_fine({"lung_nodule": crowd})
    assert len(fine.lesions) == 32 and (fine.lesions_cxyz[0] > 0).sum() == 36
    looked = verified(fine, looking_twice(0.0, asked=0.5))
    assert len(looked.lesions) == 32 and (looked.lesions_cxyz[0] > 0).sum() == 32


def test_a_bundle_without_a_verifier_leaves_all_as_it_is(make_fine: Any):
    fine = make_fine(NODULES)
    assert verified(fine, SimpleNamespace(model=SimpleNamespace())) is fine
    shown = lesion_summary(fine.lesion_tokens, fine.lesion_logits)
    assert shown[0, 0] == pytest.approx(fine.lesion_tokens[:, 48 + 17 + HIGHEST].max())


def test_trust_is_kept_with_the_encoding_and_changes_its_key(random_bundle: Any, body: Any, tmp_path: Any):
    forget_encodings()
    doubting = replace(
        random_bundle,
        config=replace(random_bundle.config, lesions=tuple(replace(x, least_trust=0.505) for x in random_bundle.config.lesions)),
    )
    assert doubting.encoding_key != random_bundle.encoding_key
    plain, doubted = encode(body, random_bundle).need_fine(), encode(body, doubting).need_fine()
    assert plain.lesion_logits is not None and np.array_equal(plain.lesion_logits, doubted.lesion_logits)
    assert np.array_equal(plain.lesion_tokens, doubted.lesion_tokens)
    assert 0 < len(doubted.lesions) < len(plain.lesions) and all(m.trust >= 0.505 for m in doubted.lesions)
    assert set(doubted.lesions) <= set(plain.lesions)
    again = load_encoding(save_encoding(tmp_path / "encoding.safetensors", encode(body, doubting)))
    assert np.array_equal(again.need_fine().lesion_logits, doubted.lesion_logits) and again.need_fine().lesions == doubted.lesions
    analyze(body, doubting, out=tmp_path / "case")
    assert read_case(tmp_path / "case").run["cleaned_ml"][DOUBTED] > 0
