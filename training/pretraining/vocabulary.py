"""A small WordPiece vocabulary learnt from reports, the same from the same reports on every machine and at every call."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from VelvetMedLib.models.text import special_tokens
from VelvetMedLib.reports import ontology


def learn_vocabulary(texts: Iterable[str], *, vocabulary: int = 2400, least: int = 2) -> str:
    """tokenizer.json as text: lower case, special tokens first, then letters, then pieces by how much they join.

    The library's trainer numbers letters in the order in which a hash table yields the words, and breaks ties by these
    numbers. All letters are therefore numbered beforehand.
    """
    listed = list(texts)
    normaliser = BertNormalizer(lowercase=True)
    letters = sorted({letter for text in listed for letter in normaliser.normalize_str(text) if not letter.isspace()})
    specials = special_tokens(ontology())
    learner = _empty(WordPiece(unk_token="[UNK]"))
    numbered = [*specials, *letters, *(f"##{letter}" for letter in letters)]
    trainer = WordPieceTrainer(vocab_size=max(vocabulary, len(numbered)), special_tokens=numbered, min_frequency=least, show_progress=False)
    learner.train_from_iterator(listed, trainer)
    pieces = dict(sorted(learner.get_vocab().items(), key=lambda pair: pair[1]))
    made = _empty(WordPiece(vocab=pieces, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return str(made.to_str())


def _empty(model: WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer
