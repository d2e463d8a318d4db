"""Fetch NiiVue's script (pinned, checked by hash) with npm into the place where the review pages look for it.

    python scripts/fetch_niivue.py .venv/share/velvetmed/niivue.umd.js

Another project's code is fetched when the environment is set up and never committed. Without npm the step says so and
succeeds: everything but the pages' 3D viewer works.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@niivue/niivue@0.69.0"
ARCHIVE_SHA512 = "YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA=="
MEMBER = "package/dist/niivue.umd.js"


def fetch(target: Path) -> None:
    """Download, check and unpack the one file; `target` appears whole or not at all."""
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is not installed")
    with tempfile.TemporaryDirectory(prefix="velvetmed-niivue-") as folder:
        subprocess.run(
            [npm, "pack", PACKAGE, "--silent", "--pack-destination", folder],
            check=True,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=300,
        )
        (archive,) = Path(folder).glob("*.tgz")
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode("ascii")
        if found != ARCHIVE_SHA512:
            raise RuntimeError(f"the archive's checksum is {found[:16]}..., not the pinned {ARCHIVE_SHA512[:16]}...")
        with tarfile.open(archive) as package:
            member = package.extractfile(MEMBER)
            if member is None:
                raise RuntimeError(f"the archive has no {MEMBER}")
            script = member.read()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    with part.open("wb") as out:
        out.write(script)
        out.flush()
        os.fsync(out.fileno())
    os.replace(part, target)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: fetch_niivue.py TARGET")
        return 2
    try:
        fetch(Path(arguments[0]))
    except (RuntimeError, OSError, subprocess.SubprocessError, KeyError, ValueError) as problem:
        print(f"Note: NiiVue could not be fetched ({problem}); review pages come without their 3D viewer. `make niivue` tries again.")
        return 0
    print(f"Fetched {PACKAGE} for the review pages (BSD-2-Clause).")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
