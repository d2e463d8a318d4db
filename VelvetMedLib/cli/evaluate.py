"""`velvetmed evaluate`: a bundle on a cohort, every figure with its interval, and the comparison with a kept evaluation."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.cli import show
from VelvetMedLib.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from VelvetMedLib.bundle import Bundle

NEEDED = ("monai", "sklearn", "sacrebleu", "matplotlib")


def evaluate(options: Namespace, load_bundle: Callable[[Namespace], Bundle]) -> None:
    """Run, or go on with a stopped run; then compare."""
    _check_packages()
    from VelvetMedLib.evaluation.comparison import HEADLINES, compare
    from VelvetMedLib.evaluation.outputs import METRICS, read_outputs
    from VelvetMedLib.evaluation.protocol import PAGE
    from VelvetMedLib.evaluation.protocol import evaluate as run
    from VelvetMedLib.tasks.writers import open_writer

    if options.against is not None:
        read_outputs(options.against)
    text_model = _text_model(options)
    bundle = load_bundle(options)
    writer = None if options.writer is None else open_writer(options.writer, bundle)
    with show.progress() as progress:
        estimates = run(bundle, options.cohort, options.out, writer=writer, text_model=text_model, progress=progress)
    lines = [f"{name:<55}{estimates[name]}" for name in HEADLINES if name in estimates]
    data: dict[str, Any] = {"metrics": str(options.out / METRICS), "page": str(options.out / PAGE)}
    data["headlines"] = {name: estimates[name].as_dict() for name in HEADLINES if name in estimates}
    if options.against is not None:
        found = compare(options.against, options.out, options.out)
        data["differences"] = [d.as_dict() for d in found if d.name in HEADLINES]
        lines += ["", "Second minus first (first: --against):", *(f"{d.name:<55}{d}" for d in found if d.name in HEADLINES)]
    lines += ["", f"Read {options.out / PAGE}", RESEARCH_USE_ONLY]
    show.result(data | {"notice": RESEARCH_USE_ONLY}, "\n".join(lines), as_json=options.json)


def _text_model(options: Namespace) -> Any:
    if options.text_model is None:
        return None
    from VelvetMedLib.evaluation.wording import local_text_model

    try:
        return local_text_model(options.text_model)
    except (OSError, ValueError) as error:
        raise UsageError(
            "The text model for BERTScore cannot be loaded.",
            found=type(error).__name__,
            expected="a folder with a transformers encoder (config.json, model.safetensors) and its tokenizer",
            next_step="Give another --text-model, or leave it out: BERTScore is then left out.",
        ) from error


def _check_packages() -> None:
    """Before hours of work, not after them."""
    from importlib.util import find_spec

    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UsageError(
            "Packages for the evaluation are missing.",
            found=f"no {', '.join(missing)}",
            expected="VelvetMed with its [train] extra",
            next_step='Run `python -m pip install "velvetmed[train]"`, then evaluate again: what was done is kept.',
        )
