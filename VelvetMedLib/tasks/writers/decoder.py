"""The writer that a bundle brings: its causal decoder, which reads the scan's memory tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from VelvetMedLib.bundle.config import refuse
from VelvetMedLib.reports import FindingRecord
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.prompts import report_prefix
from VelvetMedLib.tasks.writers.base import Wording
from VelvetMedLib.tasks.writing import has_decoder, write

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle


class DecoderWriter:
    """Greedy, all findings side by side. It has learnt all styles at once, so the style is its own choice."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises BundleError where the bundle has no decoder."""
        if not has_decoder(bundle):
            raise refuse(
                f"The bundle {bundle.config.id!r} does not write sentences.",
                found="a model without a decoder",
                expected="a bundle with a decoder",
                next_step="Leave out --writer, or use --writer composer.",
            )
        self.bundle = bundle

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"kind": "decoder", "bundle": self.bundle.config.id}

    def write(self, records: Sequence[FindingRecord], encoding: Encoding, style: str, run: Run) -> list[Wording | None]:
        prompts = [report_prefix(self.bundle.tokenizer, record) for record in records]
        texts = write(prompts, encoding, self.bundle, run)
        # A sentence that ran into the length limit is none.
        return [Wording(text.slotted, text.probability) if text.ended else None for text in texts]
