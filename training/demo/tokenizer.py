"""A small WordPiece vocabulary learnt from the cohort's own texts, with the special tokens that models and prompts expect."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from VelvetMedLib.models.text import special_tokens
from VelvetMedLib.reports import ontology


def train_tokenizer(texts: Iterable[str], *, vocabulary: int = 2400) -> str:
    """tokenizer.json as text: lower case, WordPiece with `##`, specials first."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    trainer = WordPieceTrainer(vocab_size=vocabulary, special_tokens=special_tokens(ontology()), min_frequency=2, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())
