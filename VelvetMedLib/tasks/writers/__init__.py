"""Who words the draft report: the bundle's decoder, a composer with the user's own phrases, or a language model.

`open_writer` finds the one that a word or a path names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from VelvetMedLib.errors import UsageError
from VelvetMedLib.tasks.writers.base import LENGTHS, DraftSettings, Wording, Writer, section_names
from VelvetMedLib.tasks.writers.composer import Composer
from VelvetMedLib.tasks.writing import has_decoder

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

DECODER, COMPOSER = "decoder", "composer"
__all__ = ["COMPOSER", "DECODER", "LENGTHS", "Composer", "DraftSettings", "Wording", "Writer", "open_writer", "section_names"]


def open_writer(named: str | Path | None, bundle: Bundle) -> Writer:
    """The writer called "decoder" or "composer"; of a file of phrases; of the folder of a trained language model. None: the bundle's
    decoder where it has one, else the composer with the built-in phrases alone.

    Raises UsageError where the name or path is nothing of these, or what its own kind raises.
    """
    if named is None:
        named = DECODER if has_decoder(bundle) else COMPOSER
    if named == COMPOSER:
        return Composer()
    if named == DECODER:
        from VelvetMedLib.tasks.writers.decoder import DecoderWriter

        return DecoderWriter(bundle)
    path = Path(named)
    if path.is_file():
        from VelvetMedLib.reports.own_phrases import read_phrases

        return Composer(read_phrases(path))
    if path.is_dir():
        from VelvetMedLib.tasks.writers.language import LanguageWriter

        return LanguageWriter(path, bundle)
    raise UsageError(
        "There is no such writer.",
        found="a name that is no file and no folder",
        expected=f"{DECODER}, {COMPOSER}, a file of phrases, or the folder of a trained language model",
        next_step="Make phrases with 'velvetmed phrases', or a language model with training/finetune.py report.",
    )
