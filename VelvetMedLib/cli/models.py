"""The verb `models`: list, add, remove and show bundles; adding a published model asks before anything is fetched."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.cli import show
from VelvetMedLib.errors import UsageError

if TYPE_CHECKING:
    from VelvetMedLib.bundle.published import Fetching


def models(options: Namespace) -> None:
    """Carry out `velvetmed models ACTION`."""
    from VelvetMedLib import bundle as bundles

    if options.action == "list":
        found = bundles.catalogue()
        lines = [
            f"{e.name:<20} {e.origin:<8} {e.bytes / 1e6:6.1f} MB  "
            + (f"cannot be used: {e.problem}" if e.problem or e.config is None else _licence(e.config))
            for e in found
        ] or ["No bundle is installed. Add one with 'velvetmed models add FOLDER_OR_ZIP'."]
        show.result({"bundles": [e.as_dict() for e in found]}, "\n".join(lines), as_json=options.json)
    elif options.action == "add":
        _add(options)
    elif options.action == "remove":
        _remove(options)
    else:
        card = bundles.model_card(options.name)
        show.result({"name": options.name, "card": card}, card, as_json=options.json)


def _remove(options: Namespace) -> None:
    """The bundle, and what a download of it has left behind; an interrupted download alone can be removed too."""
    from VelvetMedLib import bundle as bundles
    from VelvetMedLib.bundle.published import SOURCES, remove_downloads

    left = remove_downloads(options.name) if options.name in SOURCES else 0
    there = any(e.name == options.name for e in bundles.catalogue())
    freed = left + (bundles.remove_bundle(options.name) if there or not left else 0)
    said = f"Removed {options.name}; {freed / 1e6:.1f} MB are free again."
    show.result({"removed": options.name, "bytes": freed}, said, as_json=options.json)


def _add(options: Namespace) -> None:
    from VelvetMedLib import bundle as bundles
    from VelvetMedLib.bundle.published import SOURCES, add_published

    name = str(options.source)
    if name not in SOURCES or (Path(name).exists() and options.weights is None):
        if options.weights is not None:
            raise UsageError(
                "Weights are given for a model that is not known by name.",
                found="--weights with something other than a published model's name",
                expected=", ".join(SOURCES),
                next_step="Run 'velvetmed models add NAME --weights FILE'.",
            )
        entry = bundles.add_bundle(options.source)
        said: dict[str, Any] = {}
    else:
        with show.progress(quiet=options.weights is not None) as progress:
            entry = add_published(
                name,
                weights=options.weights,
                agree=lambda fetching: _agreed(fetching, options),
                orientation=options.orientation,
                text_pool_mask=not options.pool_padding,
                progress=progress,
            )
        said = dict(entry.config.results) if entry.config is not None else {}
    licence = _licence(entry.config) if entry.config else ""
    counted = [f"{key.replace('_', ' ')}: {value:,}" for key, value in said.get("tensors", {}).items()]
    lines = [f"Added bundle {entry.name}: {licence}", *([", ".join(counted)] if counted else []), RESEARCH_USE_ONLY]
    show.result(entry.as_dict() | said, "\n".join(lines), as_json=options.json)


def _agreed(fetching: Fetching, options: Namespace) -> bool:
    """Show what would be fetched, on stderr; then --yes, or the word typed at a terminal."""
    print("\n".join(fetching.lines()), file=sys.stderr, flush=True)
    if options.yes:
        return True
    if not sys.stdin.isatty() or options.json:
        return False
    print("Fetch it? Type yes: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() == "yes"


def _licence(config: Any) -> str:
    return f"version {config.version}, {config.recipe}, licence {config.licence}"
