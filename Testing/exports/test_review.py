"""Writing review pages: which files, which names, and what happens when something is wrong."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import pytest

from VelvetMedLib.case import write_case
from VelvetMedLib.errors import CaseError, UsageError
from VelvetMedLib.exports import niivue, review, site
from VelvetMedLib.exports.site import page_names


def _files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_one_case_is_its_own_index(tmp_path, case_folder, dummy_viewer):
    index = review([case_folder], tmp_path / "site", niivue=dummy_viewer)
    assert index == tmp_path / "site" / "index.html"
    assert _files(index.parent) == ["index.html"]
    assert "case-phantom" in index.read_text(encoding="utf-8")


def test_several_cases_get_a_page_each_a_list_and_ways_between_them(tmp_path, phantom, dummy_viewer):
    folders = []
    for name in ("a", "b", "c"):
        folders.append(tmp_path / name)
        write_case(folders[-1], replace(phantom.case, id=f"case-{name}"))
    index = review(folders, tmp_path / "site", niivue=dummy_viewer)
    assert _files(index.parent) == ["001-case-a.html", "002-case-b.html", "003-case-c.html", "index.html"]
    assert re.findall(r'href="(\d[^"]*)"', index.read_text(encoding="utf-8")) == ["001-case-a.html", "002-case-b.html", "003-case-c.html"]
    middle = (index.parent / "002-case-b.html").read_text(encoding="utf-8")
    assert re.findall(r'<a href="([^"#]+)"', middle) == ["001-case-a.html", "index.html", "003-case-c.html"]


def test_file_names_hold_no_character_that_a_system_refuses_and_never_meet(phantom):
    cases = [replace(phantom.case, id=text) for text in ("../x/y", "CON:?*", "\u202e", "same", "same")]
    assert page_names(cases) == ["001-x-y.html", "002-CON.html", "003-case.html", "004-same.html", "005-same.html"]


def test_other_files_in_the_output_folder_are_left_alone_and_no_part_remains(tmp_path, case_folder, dummy_viewer):
    out = tmp_path / "site"
    out.mkdir()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    review([case_folder], out, niivue=dummy_viewer)
    review([case_folder], out, niivue=dummy_viewer)
    assert _files(out) == ["index.html", "notes.txt"]


@pytest.mark.parametrize("old", [False, True], ids=["new site", "old site"])
def test_a_damaged_case_among_good_ones_leaves_no_half_of_a_site(tmp_path, phantom, case_folder, dummy_viewer, old):
    write_case(tmp_path / "good", phantom.case)
    damaged = tmp_path / "damaged"
    shutil.copytree(case_folder, damaged)
    path = damaged / "segmentation.nii.gz"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    out = tmp_path / "site"
    if old:
        review([case_folder], out, niivue=dummy_viewer)
    before = (out / "index.html").read_bytes() if old else None
    with pytest.raises(CaseError, match="changed after it was written"):
        review([tmp_path / "good", damaged], out, niivue=dummy_viewer)
    assert _files(tmp_path) == ["damaged", "good", *(["site"] if old else []), "viewer.js"]
    if old:
        assert _files(out) == ["index.html"] and (out / "index.html").read_bytes() == before


def test_progress_runs_from_nothing_to_one(tmp_path, phantom, dummy_viewer):
    write_case(tmp_path / "a", phantom.case)
    seen = []
    review([tmp_path / "a", tmp_path / "a"], tmp_path / "site", niivue=dummy_viewer, progress=lambda *step: seen.append(step))
    assert [fraction for fraction, _, _ in seen] == [0.0, 0.5, 1.0]
    assert seen[1][1] == "page 2 of 2"
    assert seen[-1][2] == 0.0


def test_no_case_at_all_is_refused_in_four_parts(tmp_path, dummy_viewer):
    with pytest.raises(UsageError) as problem:
        review([], tmp_path / "site", niivue=dummy_viewer)
    assert all(problem.value.as_dict().values())
    assert not (tmp_path / "site").exists()


def test_a_folder_that_is_no_case_is_refused_before_anything_is_written(tmp_path, case_folder, dummy_viewer):
    with pytest.raises(CaseError):
        review([case_folder, tmp_path / "nothing"], tmp_path / "site", niivue=dummy_viewer)
    assert not (tmp_path / "site").exists()


def test_a_file_in_place_of_the_output_folder_is_refused(tmp_path, case_folder, dummy_viewer):
    (tmp_path / "site").write_text("a file", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be written there"):
        review([case_folder], tmp_path / "site", niivue=dummy_viewer)
    assert (tmp_path / "site").read_text(encoding="utf-8") == "a file"


def test_a_page_above_the_size_limit_is_refused_and_leaves_nothing(tmp_path, case_folder, dummy_viewer, monkeypatch):
    monkeypatch.setattr(site, "MAX_PAGE_BYTES", 1000)
    with pytest.raises(UsageError, match="too large"):
        review([case_folder], tmp_path / "site", niivue=dummy_viewer)
    assert not (tmp_path / "site").exists()


def test_without_a_fetched_viewer_the_page_is_written_all_the_same(tmp_path, case_folder, monkeypatch):
    monkeypatch.setattr(niivue, "default_path", lambda: tmp_path / "none.js")
    monkeypatch.delenv(niivue.VARIABLE, raising=False)
    index = review([case_folder], tmp_path / "site")
    assert "written without its viewer script" in index.read_text(encoding="utf-8")


def test_no_message_names_a_path(tmp_path, dummy_viewer):
    secret = tmp_path / "DOE-JANE-19700101"
    with pytest.raises(CaseError) as problem:
        review([secret], tmp_path / "site", niivue=dummy_viewer)
    assert "DOE" not in str(problem.value)


def test_pages_carry_no_path_and_no_folder_name(tmp_path, phantom, dummy_viewer):
    secret = tmp_path / "DOE-JANE-19700101"
    write_case(secret, phantom.case, segmentation_kji=phantom.labels_kji, grid=phantom.volume.grid, volume=phantom.volume)
    index = review([secret], tmp_path / "site", niivue=dummy_viewer)
    text = index.read_text(encoding="utf-8")
    assert "DOE" not in text
    assert str(tmp_path) not in text


@pytest.mark.sample
def test_a_page_of_a_real_chest_ct_stays_small_enough_to_open_and_to_send(tmp_path, sample):
    from VelvetMedLib import ct
    from VelvetMedLib.exports.embed import page_images

    volume = ct.read(sample.ct)
    images = page_images(volume, *ct.read_labels(sample.mask))
    assert len(images.ct_base64) + len(images.labels_base64) + niivue.MAX_BYTES // 3 < site.MAX_PAGE_BYTES
    assert images.spacing_mm < 3.0
