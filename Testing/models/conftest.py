"""Fixtures of the models room: a small hand-made tokenizer, and one whose ids are those of the worked example."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from VelvetMedLib.models.text import SPECIALS, ReportTokenizer, special_tokens
from VelvetMedLib.reports import ontology

WORDS = [
    "no",
    "effusion",
    ".",
    ",",
    "small",
    "nod",
    "##ule",
    "##s",
    "in",
    "the",
    "left",
    "lung",
    "of",
    "mm",
    "5",
    "1",
    "ground",
    "-",
    "glass",
    "(",
    ")",
]


def build(vocabulary: dict[str, int], specials: list[str]) -> ReportTokenizer:
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens(specials)
    return ReportTokenizer(tokenizer.to_str())


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> ReportTokenizer:
    specials = special_tokens(ontology())
    return build({token: n for n, token in enumerate(specials + WORDS)}, specials)


@pytest.fixture(scope="session")
def published_tokenizer() -> ReportTokenizer:
    """Ids as in the CXR-BERT vocabulary: 30,522 rows, then [SEN_1] = 30,522 and on; ours follow behind."""
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    rows = first + [f"[unused{n}]" for n in range(30_522 - len(first))]
    rows += [f"[SEN_{n}]" for n in range(1, 51)]
    rows += [token for token in SPECIALS if token not in set(rows)]
    return build({token: n for n, token in enumerate(rows)}, list(SPECIALS))
