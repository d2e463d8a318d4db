"""Adding a published model: from files on this machine under the loader's rule, or fetched after a yes, resumed and verified."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from Testing.plugins.colipri_bundles import tiny_source, write_released
from VelvetMedLib.bundle import catalogue, load_bundle, published, remove_bundle
from VelvetMedLib.bundle.download import check_address
from VelvetMedLib.bundle.published import add_published
from VelvetMedLib.errors import BundleError, DownloadError, UsageError


def never(fetching: Any) -> bool:
    raise AssertionError("nobody was to be asked")


# from a file


def test_a_local_weights_file_becomes_a_bundle_that_the_catalogue_lists_with_its_provenance(colipri_home: Path, tmp_path: Path) -> None:
    weights = write_released(tmp_path / "files")
    entry = add_published("colipri", weights=weights, agree=never)
    assert entry.name == "colipri" and entry.origin == "added" and not entry.problem
    assert [e.name for e in catalogue() if e.origin == "added"] == ["colipri"]
    source = entry.config.results["source"]
    assert source["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest() and "file" in source["obtained"]
    counts, stored = entry.config.results["tensors"], load_file(str(weights))
    assert counts["image_tensors"] + counts["text_tensors"] == len(stored)
    assert counts["image_numbers"] + counts["text_numbers"] == sum(t.numel() for t in stored.values())
    bundle = load_bundle("colipri")
    assert bundle.config.family == "colipri" and bundle.config.licence == "MIT, as a stand-in"
    for name, tensor in bundle.model.state_dict().items():
        assert torch.equal(tensor, stored[name]), "weights are kept in their own precision"
    assert source["weights_sha256"] in (entry.folder / "MODEL_CARD.md").read_text("utf-8")


def test_the_image_half_alone_is_a_bundle_without_a_tokenizer(colipri_home: Path, tmp_path: Path) -> None:
    weights = write_released(tmp_path / "files", text=False, vocabulary=False)
    entry = add_published("colipri", weights=weights, agree=never)
    assert not (entry.folder / "tokenizer.json").exists()
    assert entry.config.results["tensors"]["text_tensors"] == 0 and not entry.config.reads_text
    bundle = load_bundle("colipri")
    assert bundle.tokenizer is None and bundle.model.text_encoder is None


def test_orientation_and_text_pooling_are_kept_in_the_bundle_and_named_in_its_card(colipri_home: Path, tmp_path: Path) -> None:
    weights = write_released(tmp_path / "files")
    entry = add_published("colipri", weights=weights, agree=never, orientation="SAR", text_pool_mask=False)
    data = json.loads((entry.folder / "bundle.json").read_text("utf-8"))
    assert data["views"]["crop"]["orientation"] == data["views"]["windowed"]["orientation"] == "SAR"
    assert data["architecture"]["text_pool_mask"] is False
    assert set(data["views"]) == {"crop", "windowed"}, "no view that the model does not take"
    card = (entry.folder / "MODEL_CARD.md").read_text("utf-8")
    assert "axes SAR" in card and "padding included" in card
    assert load_bundle("colipri").model.config.text_pool_mask is False


@pytest.mark.parametrize(
    "name", ["text_encoder.backbone.embeddings.position_ids", "image_encoder.backbone.up_projection.norm.weight", "x.rope.pos_embed"]
)
def test_tables_and_unused_heads_beside_the_network_are_ignored_and_counted(colipri_home: Path, tmp_path: Path, name: str) -> None:
    weights = write_released(tmp_path / "files", change=lambda t: t.update({name: torch.zeros(3)}))
    entry = add_published("colipri", weights=weights, agree=never)
    assert entry.config.results["tensors"]["ignored_tensors"] == 1
    assert name not in load_file(str(entry.folder / "model.safetensors"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("image_encoder.backbone.eva.blocks.1.gamma_2"), "blocks.1.gamma_2"),
        (lambda t: t.pop("text_encoder.pooler.attn.in_proj_bias"), "pooler.attn.in_proj_bias"),
        (lambda t: t.update(stowaway=torch.zeros(2)), "stowaway"),
        (lambda t: t.update({"image_encoder.projector.bias": torch.zeros(17)}), "projector.bias"),
    ],
    ids=["missing in the image half", "missing in the text half", "extra", "another shape"],
)
def test_a_weights_file_that_is_not_the_network_is_refused_by_name_and_nothing_is_kept(
    colipri_home: Path, tmp_path: Path, change: Any, words: str
) -> None:
    weights = write_released(tmp_path / "files", change=change)
    with pytest.raises(BundleError) as refused:
        add_published("colipri", weights=weights, agree=never)
    assert words in refused.value.found
    assert not [e for e in catalogue() if e.origin == "added"]


def test_a_temperature_stored_as_an_integer_or_as_a_list_of_one_is_taken(colipri_home: Path, tmp_path: Path) -> None:
    weights = write_released(tmp_path / "files", change=lambda t: t.update(softmax_temperature=torch.tensor([1])))
    add_published("colipri", weights=weights, agree=never)
    temperature = load_bundle("colipri").model.softmax_temperature
    assert temperature.dtype == torch.float32 and temperature.shape == () and float(temperature) == 1.0


def test_a_pickled_weights_file_is_refused_before_it_is_read(colipri_home: Path, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"\x80\x02 not looked at")
    with pytest.raises(BundleError, match="can run code"):
        add_published("colipri", weights=path, agree=never)


def test_a_text_half_without_its_vocabulary_is_refused_with_the_file_to_bring(colipri_home: Path, tmp_path: Path) -> None:
    weights = write_released(tmp_path / "files", vocabulary=False)
    with pytest.raises(BundleError) as refused:
        add_published("colipri", weights=weights, agree=never)
    assert "vocab.txt" in refused.value.next_step and "vocab.txt" in refused.value.expected


# from its source


class Hub:
    """A small file server on this machine that can answer as a hub does, break off, or change its mind."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.hashes: dict[str, str] = {}
        self.break_after: int | None = None
        self.ranges = True
        self.asked: list[tuple[str, str, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, *, body: bool) -> None:
                name = self.path.lstrip("/")
                asked = self.headers.get("Range")
                hub.asked.append((self.command, name, asked))
                data = hub.files.get(name)
                if data is None:
                    self.send_error(404)
                    return
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and hub.ranges else 0
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                if name in hub.hashes:
                    self.send_header("X-Linked-ETag", f'"{hub.hashes[name]}"')
                    self.send_header("X-Linked-Size", str(len(data)))
                self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                if body:
                    sent = data[start:]
                    if hub.break_after is not None and name.endswith(".safetensors"):
                        sent = sent[: hub.break_after]
                        self.close_connection = True
                    self.wfile.write(sent)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def hub(colipri_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    weights = write_released(tmp_path / "upstream")
    hub = Hub({"model.safetensors": weights.read_bytes(), "vocab.txt": (weights.parent / "vocab.txt").read_bytes()})
    hub.hashes["model.safetensors"] = hashlib.sha256(hub.files["model.safetensors"]).hexdigest()
    monkeypatch.setitem(published.SOURCES, "colipri", tiny_source(hub.address))
    yield hub
    hub.close()


def leftovers(home: Path) -> list[str]:
    return sorted(p.name for p in home.rglob("*") if p.is_file() and p.name != "sources.json")


def test_before_the_yes_source_size_licence_and_hash_are_shown_and_no_byte_of_a_file_has_travelled(hub: Hub, colipri_home: Path) -> None:
    shown: list[str] = []

    def look(fetching: Any) -> bool:
        shown.extend(fetching.lines())
        return False

    with pytest.raises(UsageError, match="Nothing was fetched") as refused:
        add_published("colipri", agree=look)
    text = "\n".join(shown)
    assert hub.address in text and "MIT" in text and f"{len(hub.files['model.safetensors']) / 1e6:.1f} MB" in text
    assert f"{hub.hashes['model.safetensors']}, published by the source" in text
    assert "publishes no sha256: this first download is trusted" in text, "the vocabulary has no published hash"
    assert "--yes" in refused.value.next_step
    assert {verb for verb, _, _ in hub.asked} == {"HEAD"} and not leftovers(colipri_home)


def test_after_the_yes_the_files_are_fetched_verified_and_made_into_a_bundle_and_no_download_stays(hub: Hub, colipri_home: Path) -> None:
    seen: list[float] = []
    entry = add_published("colipri", agree=lambda fetching: True, progress=lambda fraction, stage, left: seen.append(fraction))
    files = entry.config.results["source"]["files"]
    assert files["model.safetensors"]["hash"] == "published by the source"
    assert files["vocab.txt"]["hash"].startswith("trusted on first use")
    assert files["vocab.txt"]["sha256"] == hashlib.sha256(hub.files["vocab.txt"]).hexdigest()
    assert seen and seen == sorted(seen) and 0 < seen[-1] <= 1
    load_bundle("colipri")
    assert leftovers(colipri_home) == ["MODEL_CARD.md", "bundle.json", "model.safetensors", "tokenizer.json"]
    assert remove_bundle("colipri") > 0 and not leftovers(colipri_home)


def test_a_broken_connection_leaves_no_bundle_and_the_next_try_fetches_only_the_rest(hub: Hub, colipri_home: Path) -> None:
    hub.break_after = 5000
    with pytest.raises(DownloadError, match="could not be fetched"):
        add_published("colipri", agree=lambda fetching: True)
    assert not [e for e in catalogue() if e.origin == "added"]
    assert leftovers(colipri_home) == ["model.safetensors.part", "model.safetensors.part.json"]
    hub.break_after, hub.asked = None, []
    add_published("colipri", agree=lambda fetching: True)
    assert ("GET", "model.safetensors", "bytes=5000-") in hub.asked
    load_bundle("colipri")


def test_a_server_that_cannot_resume_is_read_from_the_start(hub: Hub) -> None:
    hub.break_after, hub.ranges = 5000, False
    with pytest.raises(DownloadError):
        add_published("colipri", agree=lambda fetching: True)
    hub.break_after = None
    add_published("colipri", agree=lambda fetching: True)
    load_bundle("colipri")


def test_a_part_of_another_version_is_not_taken_up(hub: Hub) -> None:
    hub.break_after = 5000
    with pytest.raises(DownloadError):
        add_published("colipri", agree=lambda fetching: True)
    hub.break_after, hub.asked = None, []
    hub.files["model.safetensors"] = hub.files["model.safetensors"][:-4] + b"\0\0\0\0"
    hub.hashes["model.safetensors"] = hashlib.sha256(hub.files["model.safetensors"]).hexdigest()
    add_published("colipri", agree=lambda fetching: True)
    assert ("GET", "model.safetensors", None) in hub.asked


def test_a_file_that_does_not_have_the_published_hash_is_not_kept(hub: Hub, colipri_home: Path) -> None:
    hub.hashes["model.safetensors"] = "0" * 64
    with pytest.raises(DownloadError, match="not what the source said"):
        add_published("colipri", agree=lambda fetching: True)
    assert not leftovers(colipri_home)


def test_without_a_published_hash_the_first_file_is_trusted_and_another_one_later_is_refused(hub: Hub, colipri_home: Path) -> None:
    add_published("colipri", agree=lambda fetching: True)
    remove_bundle("colipri")
    hub.files["vocab.txt"] = hub.files["vocab.txt"].replace(b"liver", b"river")
    shown: list[str] = []
    with pytest.raises(DownloadError, match="another file than it did at your first download"):
        add_published("colipri", agree=lambda fetching: shown.extend(fetching.lines()) is None)
    assert "must equal the one of your first download" in "\n".join(shown)
    assert not [e for e in catalogue() if e.origin == "added"]


def test_offline_the_message_names_the_files_and_where_to_put_them(colipri_home: Path) -> None:
    """Port 9 of this machine: nobody answers."""
    with pytest.raises(DownloadError) as refused:
        add_published("colipri", agree=never)
    for word in ("model.safetensors", "vocab.txt", "one folder", "velvetmed models add colipri --weights FOLDER/model.safetensors"):
        assert word in refused.value.next_step


def test_the_published_addresses_are_secure_and_other_addresses_are_refused() -> None:
    source = published.SOURCES["colipri"]
    check_address(source.weights_url)
    check_address(source.vocabulary_url)
    for url in ("http://example.org/model.safetensors", "file:///etc/passwd", "ftp://example.org/x"):
        with pytest.raises(DownloadError, match="cannot be trusted"):
            check_address(url)
