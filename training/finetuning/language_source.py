"""Where a language model comes from: a folder, or an id on the hub whose files are fetched once after an explicit yes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import NoReturn

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.bundle import download
from VelvetMedLib.bundle.catalogue import user_folder
from VelvetMedLib.errors import DownloadError, UsageError
from VelvetMedLib.files import file_sha256, read_json, write_json

HUB = "https://huggingface.co"
ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w.-]+))?")
NEEDED, WANTED = ("config.json", "tokenizer.json"), ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
WHOLE, LIST = "model.safetensors", "model.safetensors.index.json"
RECORD = "conversion.json"


def language_folder(source: str, *, agreed: bool) -> Path:
    """The folder itself, or the one into which `owner/name` or `owner/name@revision` was fetched. Only safetensors and JSON are asked for.

    agreed: the user has said yes to a download. Raises UsageError without it, DownloadError where the hub does not answer.
    """
    if Path(source).is_dir():
        return Path(source)
    named = ID.fullmatch(source)
    if named is None:
        raise UsageError(
            "There is no language model here.", found="neither a folder nor an id such as owner/name",
            expected="a folder with safetensors, or an id on the hub", next_step="Correct --language-model.",
        )  # fmt: skip
    folder = user_folder().parent / "language_models" / source.replace("/", "--")
    record = read_json(folder / RECORD)
    if record is not None and all((folder / f["name"]).is_file() for f in record["source"]["files"]):
        return folder
    _fetch(named["name"], named["revision"] or "main", folder, agreed)
    return folder


def _fetch(name: str, revision: str, folder: Path, agreed: bool) -> None:
    base = f"{HUB}/{name}/resolve/{revision}"
    offers = {file: download.offer(f"{base}/{file}") for file in NEEDED}
    for file in (*WANTED, WHOLE):
        try:
            offers[file] = download.offer(f"{base}/{file}")
        except DownloadError:
            continue  # The hub does not have every file of every model.
    several = WHOLE not in offers
    if several:
        offers[LIST] = download.offer(f"{base}/{LIST}")
    _show(name, offers, several)
    if not agreed:
        _not_agreed(name)
    for file, offer in offers.items():
        download.fetch(offer, folder / file)
    if several:
        listed = json.loads((folder / LIST).read_text(encoding="utf-8"))["weight_map"]
        # Names from the hub: only plain ones may decide where we write.
        shards = sorted({file for file in listed.values() if re.fullmatch(r"[\w.-]+\.safetensors", file)})
        parts = {file: download.offer(f"{base}/{file}") for file in shards}
        _show(name, parts, False)
        for file, offer in parts.items():
            download.fetch(offer, folder / file)
    files = [{"name": p.name, "bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in sorted(folder.iterdir()) if p.name != RECORD]
    stated = {"name": name, "licence": f"as stated at {HUB}/{name}"}
    write_json(folder / RECORD, {"kind": "language", "revision": revision, "source": {"files": files, "stated_by_the_user": stated}})


def _show(name: str, offers: dict[str, download.Offer], several: bool) -> None:
    lines = [f"{file}: {offer.bytes / 1e6:.1f} MB from {offer.url}" for file, offer in offers.items()]
    more = ["and the weights that the list names, several files"] if several else []
    print("\n".join([f"{name}: see {HUB}/{name} for its licence", *lines, *more, RESEARCH_USE_ONLY]), file=sys.stderr, flush=True)


def _not_agreed(name: str) -> NoReturn:
    raise UsageError(
        "Nothing was fetched.",
        found="no yes to the download",
        expected="an explicit yes after source and size have been shown",
        next_step=f"Run the line again with --yes if you agree to fetch {name} and to its licence, or give a folder.",
    )
