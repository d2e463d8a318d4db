"""The atlas: small, complete, attributed, without the patient's own nodule, and made from the sample alone."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.case import measure
from VelvetMedLib.cohorts.atlas import load_atlas
from VelvetMedLib.reports import ontology

NODULE_SAR = np.array([-116.0, -86.5, -56.4])


@pytest.fixture
def folder(repository: Path) -> Path:
    return repository / "VelvetMedLib" / "assets" / "atlas"


def test_the_atlas_weighs_at_most_one_megabyte(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 1_000_000


def test_the_attribution_names_source_and_licence_beside_the_file(folder: Path) -> None:
    text = (folder / "ATTRIBUTION.txt").read_text(encoding="utf-8")
    for words in ("LIDC-IDRI-0001", "CC BY 3.0", "Armato", "Clark", "painted"):
        assert words in text


def test_the_archive_holds_plain_arrays_only(folder: Path) -> None:
    with zipfile.ZipFile(folder / "atlas.npz") as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                assert np.lib.format.read_array(file, allow_pickle=False).dtype.kind in "uif"


def test_every_structure_of_the_ontology_is_in_the_atlas() -> None:
    atlas = load_atlas()
    found = set(np.unique(atlas.cell_structure[atlas.cells])) - {0}
    assert found == {s.label for s in ontology().structures}


def test_there_are_many_more_tissues_than_structures() -> None:
    assert len(load_atlas().tissues) >= 40


def test_where_the_nodule_was_there_is_only_lung() -> None:
    atlas = load_atlas()
    index = np.indices(atlas.cells.shape).astype(np.float32)
    place = [index[n] * atlas.spacing_mm + atlas.origin_sar[n] - NODULE_SAR[n] for n in range(3)]
    lobe = atlas.cell_structure[atlas.cells] == ontology().structure("lung_lower_lobe_left").label
    around = (sum((p / r) ** 2 for p, r in zip(place, (13.0, 18.0, 16.0), strict=True)) < 1) & lobe
    hu = atlas.cell_hu[atlas.cells] + atlas.residual_hu
    assert around.sum() > 200
    assert np.median(hu[around]) < -750
    # What stays dense are vessels: far thinner than the 23 mm of the nodule.
    dense = around & (hu > -350)
    axes = [measure.axial_axes(part, np.diag([3.0, 3.0, 3.0, 1.0])).short_mm for part in measure.each_component(dense)]
    assert max(axes, default=0.0) < 10.0


@pytest.mark.sample
def test_the_real_scan_does_show_a_nodule_there(sample: Any) -> None:
    from VelvetMedLib.ct import read

    volume = read(sample.ct)
    center = volume.grid.ras_to_ijk @ np.array([*NODULE_SAR[::-1], 1.0])
    i, j, k = np.rint(center[:3]).astype(int)
    assert np.median(volume.voxels_kji[k - 2 : k + 3, j - 8 : j + 9, i - 8 : i + 9]) > -300


@pytest.mark.slow
@pytest.mark.sample
def test_the_shipped_atlas_is_what_its_script_makes_of_the_sample(repository: Path, folder: Path, sample: Any, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_atlas", repository / "training" / "make_atlas.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arrays, table = module.build(sample.ct, sample.mask, module.read_names(sample.structures))
    shipped = np.load(folder / "atlas.npz", allow_pickle=False)
    for name, array in arrays.items():
        same = float((shipped[name] == array).mean())
        assert same > 0.999, f"{name}: only {same:.4f} of the values agree"
    assert json.loads((folder / "atlas.json").read_text(encoding="utf-8")) == json.loads(json.dumps(table))


def test_organs_of_the_atlas_lie_on_their_sides() -> None:
    centers = load_atlas().centers_sar
    assert centers["liver"][2] > centers["spinal_cord"][2] > centers["spleen"][2]
    assert centers["heart"][2] < centers["spinal_cord"][2]
    assert centers["kidney_right"][2] > centers["spinal_cord"][2] > centers["kidney_left"][2]
    assert centers["sternum"][1] > centers["vertebrae"][1]
    assert centers["thyroid_gland"][0] > centers["heart"][0] > centers["bowel"][0]


def test_kidneys_are_closed_below_the_end_of_the_scan() -> None:
    atlas = load_atlas()
    for name in ("kidney_right", "kidney_left"):
        low, high = atlas.boxes_sar[name]
        assert 90 < high[0] - low[0] < 140
