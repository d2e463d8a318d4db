"""Models that others have published, made into bundles: from files on this machine, or fetched after the user's explicit yes."""

from __future__ import annotations

import fnmatch
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.bundle import download
from VelvetMedLib.bundle.catalogue import Entry, entry_of, user_folder
from VelvetMedLib.bundle.config import COLIPRI, BundleConfig, CropViewConfig, ViewsConfig, ZeroShotConfig, refuse
from VelvetMedLib.bundle.store import PICKLED_ENDINGS, put_folder, save_bundle, tensor_table
from VelvetMedLib.errors import DownloadError, UsageError
from VelvetMedLib.files import file_sha256

if TYPE_CHECKING:
    from torch import Tensor

    from VelvetMedLib.models.colipri import ColipriConfig

TOLERATED = ("*.position_ids", "*.up_projection.*", "*.cls.*", "*.cls_projection_head.*", "*.rope.*")
"""Tensors that a released file may hold beside those of the network: tables that are computed, and heads that are not used."""
TEXT = "text_encoder."
VOCABULARIES = ("tokenizer.json", "vocab.txt")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A published model. weights_url, vocabulary_url: where its files are; local files go by the
    names in these addresses. window_voxels: side of what the encoder was trained on, at 2 mm."""

    name: str
    title: str
    licence: str
    weights_url: str
    vocabulary_url: str
    training_data: str
    citation: str
    window_voxels: int = 192

    def architecture(self) -> ColipriConfig:
        """Settings of the network whose weights these are."""
        from VelvetMedLib.models.colipri import ColipriConfig

        return ColipriConfig.paper()


SOURCES: dict[str, Source] = {
    "colipri": Source(
        name="colipri",
        title="COLIPRI-CRM, Microsoft Health Futures",
        licence="MIT (weights: microsoft/colipri; vocabulary: microsoft/BiomedVLP-CXR-BERT-specialized)",
        weights_url="https://huggingface.co/microsoft/colipri/resolve/main/model.safetensors",
        vocabulary_url="https://huggingface.co/microsoft/BiomedVLP-CXR-BERT-specialized/resolve/"
        "5157bdba1437a3aed316dacb1a5b68edf96b9902/vocab.txt",
        training_data="Chest CT and reports from Turkey and the United States, by the model's authors (arXiv 2510.15042); none of it by "
        "this project.",
        citation="Wald et al., Comprehensive language-image pre-training for 3D medical image understanding, arXiv 2510.15042",
    )
}


@dataclass(frozen=True)
class Fetching:
    """What would be fetched, to be shown before the user says yes. offers: (file name, what the server says of it)."""

    source: Source
    offers: tuple[tuple[str, download.Offer], ...]
    known: Mapping[str, str]

    def lines(self) -> list[str]:
        """Source, size, licence and hash of every file, in words."""
        out = [f"{self.source.title}", f"Licence: {self.source.licence}", f"Cite:    {self.source.citation}"]
        for name, offer in self.offers:
            if offer.sha256:
                hashed = f"sha256 {offer.sha256}, published by the source"
            elif offer.url in self.known:
                hashed = f"the source publishes no sha256; it must equal the one of your first download, {self.known[offer.url]}"
            else:
                hashed = "the source publishes no sha256: this first download is trusted, its hash recorded and compared from then on"
            out += [f"{name}: {offer.bytes / 1e6:.1f} MB from {offer.url}", f"    {hashed}"]
        return [*out, RESEARCH_USE_ONLY]


Agree = Callable[[Fetching], bool]


def add_published(
    name: str,
    *,
    weights: Path | None = None,
    agree: Agree,
    orientation: str = "RAS",
    text_pool_mask: bool = True,
    progress: download.Progress | None = None,
) -> Entry:
    """A bundle called `name` from a local weights file, or from the source if `agree` says yes to what it is shown.

    weights: a .safetensors file; the vocabulary of the text half is looked for beside it. orientation, text_pool_mask: see
    methods.md 3.4; they are stored in the bundle. Raises BundleError, DownloadError, UsageError; an older bundle of the name stays
    until the new one is whole.
    """
    source = SOURCES[name]
    home = user_folder()
    home.mkdir(parents=True, exist_ok=True)
    if weights is not None:
        return _make(source, weights, _vocabulary_beside(weights), {"obtained": "from a file of the user's"}, orientation, text_pool_mask)
    kept = _fetched(source, agree, progress)
    files, facts = {path.name: path for path in kept}, json.loads((kept[0].parent / "fetched.json").read_text(encoding="utf-8"))
    entry = _make(source, kept[0], files[kept[1].name], facts, orientation, text_pool_mask)
    remove_downloads(name)
    return entry


def remove_downloads(name: str) -> int:
    """Delete what a download of this model has left behind; returns the bytes freed."""
    import shutil

    folder = _downloads(name)
    freed = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else 0
    shutil.rmtree(folder, ignore_errors=True)
    return freed


def _downloads(name: str) -> Path:
    return user_folder().parent / "downloads" / name


def _fetched(source: Source, agree: Agree, progress: download.Progress | None) -> list[Path]:
    """Weights and vocabulary, verified, in the folder of downloads; with `fetched.json` on what is known of them."""
    folder, ledger = _downloads(source.name), _Ledger()
    urls = (source.weights_url, source.vocabulary_url)
    try:
        offers = tuple((_file_name(url), download.offer(url)) for url in urls)
    except DownloadError as error:
        raise _bring(source, error.found) from None
    fetching = Fetching(source, offers, ledger.known)
    if not agree(fetching):
        raise UsageError(
            "Nothing was fetched.",
            found="no yes to the download",
            expected="an explicit yes after the source, size, licence and hash have been shown",
            next_step="\n            ".join(["Run the command again with --yes if you agree to this:", *fetching.lines()]),
        )
    paths, facts = [], {"obtained": "downloaded", "files": {}}
    for number, (name, offer) in enumerate(offers):

        def said(fraction: float, stage: str, left: float | None, number: int = number) -> None:
            if progress is not None:
                progress((number + fraction) / len(offers), stage, left)

        target = folder / name
        digest = file_sha256(target) if offer.sha256 and target.is_file() else ""
        if not digest or digest != offer.sha256:
            digest = download.fetch(offer, target, said)
            ledger.compare(offer, digest, target)
        basis = "published by the source" if offer.sha256 else "trusted on first use, recorded then"
        facts["files"][name] = {"url": offer.url, "bytes": offer.bytes, "sha256": digest, "hash": basis}  # type: ignore[index]
        paths.append(target)
    (folder / "fetched.json").write_text(json.dumps(facts), encoding="utf-8")
    return paths


class _Ledger:
    """Hashes of files whose sources publish none, as they were when first fetched. Survives the removal of a bundle."""

    def __init__(self) -> None:
        self._path = user_folder().parent / "sources.json"
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            data = {}
        self.known: dict[str, str] = {str(k): str(v) for k, v in data.items()} if isinstance(data, dict) else {}

    def compare(self, offer: download.Offer, digest: str, file: Path) -> None:
        """Raise DownloadError if the file is not the one of the first download; else remember it."""
        before = self.known.get(offer.url)
        if not offer.sha256 and before is not None and before != digest:
            file.unlink()
            raise DownloadError(
                "The source serves another file than it did at your first download; nothing of it was kept.",
                found=f"sha256 {digest[:16]}...",
                expected=f"sha256 {before[:16]}..., recorded then",
                next_step="Ask the source whether it published a new version; if so, fetch that by hand and give it with --weights.",
            )
        self.known[offer.url] = digest
        temporary = self._path.with_name(f".{self._path.name}.part")
        temporary.write_text(json.dumps(self.known, indent=1), encoding="utf-8")
        os.replace(temporary, self._path)


def _file_name(url: str) -> str:
    return url.rsplit("/", 1)[-1]


def _bring(source: Source, found: str) -> DownloadError:
    weights, vocabulary = _file_name(source.weights_url), _file_name(source.vocabulary_url)
    return DownloadError(
        f"{source.title} could not be fetched.",
        found=found,
        expected="a connection to its source, or its files on this machine",
        next_step=f"On a machine with a connection fetch {weights} from {source.weights_url} and {vocabulary} from "
        f"{source.vocabulary_url}; put both into one folder here and run "
        f"'velvetmed models add {source.name} --weights FOLDER/{weights}'. Without {vocabulary} only the image half can be used.",
    )


def _vocabulary_beside(weights: Path) -> Path | None:
    return next((p for name in VOCABULARIES if (p := weights.parent / name).is_file()), None)


def read_released(path: Path, settings: ColipriConfig) -> tuple[dict[str, Tensor], ColipriConfig, dict[str, int]]:
    """Tensors of a released weights file under the loader's rule (methods.md 3.1), the settings that fit them, and counts.

    Strict on what is missing; beside it only `TOLERATED` names. A file without a single text tensor is the image half alone, and
    the settings come back without text. Raises BundleError; nothing is read before every name, type and shape is right.
    """
    import torch
    from safetensors import safe_open

    from VelvetMedLib.models.colipri import ColipriModel

    if path.name.lower().endswith(PICKLED_ENDINGS):
        raise refuse(
            "This weights file is of a kind that can run code when it is read.",
            found=f"a file ending in {path.suffix}",
            expected="safetensors",
            next_step="Fetch the .safetensors file of the model instead.",
        )
    if not path.is_file():
        raise refuse("There is no weights file.", found="no such file", expected="model.safetensors", next_step="Check the path.")
    found = tensor_table(path)
    if not any(name.startswith(TEXT) for name in found):
        settings = replace(settings, text=None)
    with torch.device("meta"):
        wanted = ColipriModel(settings).state_dict()
    extra = set(found) - set(wanted)
    refused = sorted(name for name in extra if not any(fnmatch.fnmatchcase(name, pattern) for pattern in TOLERATED))
    missing = sorted(set(wanted) - set(found))
    odd = sorted(n for n in set(wanted) & set(found) if found[n][1] not in (tuple(wanted[n].shape), _loose(wanted[n])))
    for names, what in ((missing, "lacks"), (refused, "holds more than"), (odd, "has other shapes than")):
        if names:
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            raise refuse(
                f"The weights file {what} the network's tensors.",
                found=shown,
                expected=f"{len(wanted)} tensors of the {'image half' if settings.text is None else 'whole model'}",
                next_step="Give the published model.safetensors, unchanged.",
            )
    tensors: dict[str, Tensor] = {}
    with safe_open(str(path), framework="pt") as opened:
        for name, empty in wanted.items():
            tensor = opened.get_tensor(name).reshape(empty.shape)
            # The package builds its temperature from an integer: here it is a number with a fraction in any case.
            tensors[name] = tensor if tensor.is_floating_point() else tensor.to(empty.dtype)
    numbers = {True: 0, False: 0}
    for name, tensor in tensors.items():
        numbers[name.startswith(TEXT)] += tensor.numel()
    text = sum(name.startswith(TEXT) for name in tensors)
    counts = {"image_tensors": len(tensors) - text, "image_numbers": numbers[False], "text_tensors": text, "text_numbers": numbers[True]}
    return tensors, settings, counts | {"ignored_tensors": len(extra)}


def _loose(tensor: Tensor) -> tuple[int, ...]:
    """A single number may be stored as a list of one."""
    return (1,) if tensor.ndim == 0 else tuple(tensor.shape)


def _make(
    source: Source, weights: Path, vocabulary: Path | None, facts: Mapping[str, Any], orientation: str, text_pool_mask: bool
) -> Entry:
    import torch

    from VelvetMedLib.models.bert import tokenizer_from_vocabulary
    from VelvetMedLib.models.colipri import ColipriModel

    tensors, settings, counts = read_released(weights, replace(source.architecture(), text_pool_mask=text_pool_mask))
    tokenizer = None
    if settings.text is not None:
        if vocabulary is None:
            raise refuse(
                "The vocabulary of the text half is missing.",
                found="weights with a text half and no vocabulary beside them",
                expected=" or ".join(VOCABULARIES) + " in the folder of the weights file",
                next_step=f"Fetch {_file_name(source.vocabulary_url)} from {source.vocabulary_url} and put it there.",
            )
        text = vocabulary.read_text(encoding="utf-8")
        tokenizer = text if text.lstrip().startswith("{") else tokenizer_from_vocabulary(text)
    with torch.device("meta"):
        model = ColipriModel(settings)
    model.load_state_dict(tensors, strict=True, assign=True)
    crop = CropViewConfig(window_voxels=source.window_voxels, orientation=orientation)
    provenance = {**facts, "weights_sha256": file_sha256(weights), "weights_bytes": weights.stat().st_size}
    config = BundleConfig(
        id=source.name,
        version="1",
        recipe=f"published weights: {source.title}",
        licence=source.licence,
        training_data=source.training_data,
        intended_use=f"Research on chest CT: vectors of scans and texts, search, prompts, maps of phrases. {RESEARCH_USE_ONLY}",
        architecture=settings.to_dict(),
        family=COLIPRI,
        views=ViewsConfig(crop=crop, windowed=replace(crop, spacing_mm=1.0, windows=2)),
        aligned_levels=("report",) if settings.text is not None else (),
        structures=(),
        lesions=(),
        zero_shot=ZeroShotConfig(),
        results={"source": provenance, "tensors": counts},
    )
    home = user_folder()
    with tempfile.TemporaryDirectory(prefix=".adding-", dir=home) as temporary:
        staged = Path(temporary) / source.name
        save_bundle(staged, config, model, tokenizer, _card(source, config, provenance, counts), half=False)
        put_folder(staged, home / source.name)
    return entry_of(source.name)


def _card(source: Source, config: BundleConfig, provenance: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    assert config.views.crop is not None
    crop = config.views.crop
    view = f"{crop.spacing_mm:g} mm, {crop.shape_voxels[0]} voxels a side, axes {crop.orientation}; also 1 mm in 8 windows"
    pooled = "its real tokens" if config.architecture["text_pool_mask"] else "all positions, padding included"
    halves = "image and text" if config.reads_text else "image only (no text half in the weights: no search by words, no prompts)"
    numbers = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in counts.items())
    return f"""# {source.title}

{RESEARCH_USE_ONLY}

| what | |
|---|---|
| source | {source.weights_url} |
| how it came here | {provenance["obtained"]}; sha256 of the weights file {provenance["weights_sha256"]} |
| licence | {source.licence} |
| cite | {source.citation} |
| halves | {halves}; {numbers} |
| training data | {source.training_data} |
| view | {view} |
| text | pooled over {pooled} |
| findings | from opposite prompts, score `pair_softmax`; not calibrated: none is called present or absent |

Two settings of the published packages changed between versions, and which pair the weights were trained with is not known:
the tensor's axes (0.1.0: S, A, R; 0.1.2 and 0.1.3: R, A, S) and whether padding is pooled with the text (until 0.1.2: yes; 0.1.3:
no). Before a study, add the model in all four combinations (`--orientation`, `--pool-padding`), compare them on scans with known
findings, and note the pair that you use.

Nobody has measured this bundle on labelled scans here. {RESEARCH_USE_ONLY}
"""
