"""The study reader and the findings head: masks, order, spacing, unit vectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.reader import FindingsHead, FindingsHeadConfig, ReaderConfig, StudyReader

CONFIG = ReaderConfig(
    top_channels=20,
    width=24,
    layers=2,
    heads=3,
    region_features=7,
    region_measures=3,
    lesion_features=9,
    structures=5,
    max_lesions=4,
    projection_dim=12,
)


@pytest.fixture()
def reader() -> StudyReader:
    torch.manual_seed(0)
    return StudyReader(CONFIG).eval()


@pytest.fixture()
def scan() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "top": torch.randn(2, 20, 2, 2, 2, generator=generator),
        "view_spacing_mm": torch.tensor([[5.0, 5.0, 6.0], [4.0, 3.0, 2.0]]),
        "regions": torch.randn(2, 5, 7, generator=generator),
        "region_mask": torch.tensor([[True, True, False, True, False], [True] * 5]),
        "lesions": torch.randn(2, 4, 9, generator=generator),
        "lesion_mask": torch.tensor([[True, True, False, False], [False] * 4]),
    }


def test_memory_holds_cells_spacing_regions_and_lesions_and_the_vectors_have_unit_length(
    reader: StudyReader, scan: dict[str, Tensor]
) -> None:
    out = reader(**scan)
    assert out.memory.shape == (2, 8 + 1 + 5 + 4, 24)
    assert out.memory_mask[0].tolist() == [True] * 9 + [True, True, False, True, False] + [True, True, False, False]
    torch.testing.assert_close(out.study.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(out.region_vectors.norm(dim=-1), scan["region_mask"].float())


def test_what_lies_behind_a_mask_changes_nothing_even_if_it_is_nan(reader: StudyReader, scan: dict[str, Tensor]) -> None:
    changed = dict(scan)
    changed["regions"] = scan["regions"].masked_fill(~scan["region_mask"][..., None], torch.nan)
    changed["lesions"] = scan["lesions"].masked_fill(~scan["lesion_mask"][..., None], torch.nan)
    a, b = reader(**scan), reader(**changed)
    torch.testing.assert_close(a.study, b.study)
    torch.testing.assert_close(a.memory[a.memory_mask], b.memory[b.memory_mask])


def test_masked_lesions_equal_no_lesion_tokens_at_all(reader: StudyReader, scan: dict[str, Tensor]) -> None:
    second = {key: value[1:] for key, value in scan.items()}
    none = second | {"lesions": torch.zeros(1, 0, 9), "lesion_mask": torch.zeros(1, 0, dtype=torch.bool)}
    a, b = reader(**second), reader(**none)
    torch.testing.assert_close(a.study, b.study)
    torch.testing.assert_close(a.memory[:, :14], b.memory)


def test_the_order_of_lesion_tokens_carries_nothing_and_the_order_of_regions_does(reader: StudyReader, scan: dict[str, Tensor]) -> None:
    first = {key: value[:1] for key, value in scan.items()}
    turned = first | {"lesions": first["lesions"].flip(1), "lesion_mask": first["lesion_mask"].flip(1)}
    torch.testing.assert_close(reader(**first).study, reader(**turned).study)
    swapped = first | {"regions": first["regions"][:, [1, 0, 2, 3, 4]]}
    assert not torch.allclose(reader(**first).study, reader(**swapped).study, atol=1e-5)


def test_each_structure_reads_its_last_numbers_by_weights_of_its_own(reader: StudyReader, scan: dict[str, Tensor]) -> None:
    gradients = []
    for structure in (1, 3):
        reader.zero_grad()
        reader(**scan).region_vectors[0, structure].sum().backward()
        assert reader.measure_in.grad is not None
        gradients.append(reader.measure_in.grad.abs().sum((1, 2)))
    own = torch.stack(gradients)
    assert own[0, 1] > own[0, 3] and own[1, 3] > own[1, 1]
    # Structure 4 is masked in scan 0 and structure 0 of scan 1 is another study: neither is read.
    assert own[:, 4].tolist() == [0.0, 0.0]
    # Only the last three numbers pass this way: at their mean nothing is left to weigh.
    reader.zero_grad()
    scan["regions"][..., -3:] = 0.0
    reader(**scan).region_vectors.sum().backward()
    assert float(reader.measure_in.grad.abs().max()) == 0.0


def test_two_scans_that_differ_only_in_spacing_are_read_differently(reader: StudyReader, scan: dict[str, Tensor]) -> None:
    other = scan | {"view_spacing_mm": scan["view_spacing_mm"] * 1.5}
    assert not torch.allclose(reader(**scan).study, reader(**other).study, atol=1e-5)


def test_a_flipped_top_map_is_read_differently(reader: StudyReader, scan: dict[str, Tensor]) -> None:
    other = scan | {"top": scan["top"].flip(2)}
    assert not torch.allclose(reader(**scan).study, reader(**other).study, atol=1e-6)


def test_more_lesions_than_the_settings_allow_are_refused(reader: StudyReader, scan: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="max_lesions"):
        reader(**(scan | {"lesions": torch.zeros(2, 5, 9), "lesion_mask": torch.zeros(2, 5, dtype=torch.bool)}))


def test_the_findings_head_gives_one_logit_per_finding_and_ignores_masked_memory() -> None:
    torch.manual_seed(0)
    head = FindingsHead(FindingsHeadConfig(findings=6, width=24, heads=3)).eval()
    memory, mask = torch.randn(2, 7, 24), torch.ones(2, 7, dtype=torch.bool)
    mask[:, 5:] = False
    changed = memory.clone()
    changed[:, 5:] = 9.0
    assert head(memory, mask).shape == (2, 6)
    torch.testing.assert_close(head(memory, mask), head(changed, mask))


def test_settings_name_what_is_wrong() -> None:
    with pytest.raises(UsageError, match=r"ReaderConfig\.heads"):
        ReaderConfig(top_channels=8, width=10, heads=4)
    assert ReaderConfig.from_dict(CONFIG.to_dict()) == CONFIG


def test_the_scales_of_raw_numbers_travel_with_the_weights_and_wild_numbers_are_limited(
    reader: StudyReader, scan: dict[str, Tensor]
) -> None:
    assert {"region_mean", "region_scale", "lesion_mean", "lesion_scale"} <= set(reader.state_dict())
    before = reader(**scan).study
    reader.region_mean.fill_(100.0)
    reader.region_scale.fill_(0.01)
    torch.testing.assert_close(reader(**(scan | {"regions": scan["regions"] * 100 + 100})).study, before, atol=1e-4, rtol=1e-4)
    wild = [scan["regions"].clone() for _ in range(2)]
    wild[0][:, 0, 0], wild[1][:, 0, 0] = 1e5, 1e9
    torch.testing.assert_close(reader(**(scan | {"regions": wild[0]})).study, reader(**(scan | {"regions": wild[1]})).study)
