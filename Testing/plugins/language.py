"""Fixtures for language models: a tiny random one, as transformers saves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def make_language_model(folder: Path, seed: int = 0) -> Path:
    """A Llama of two layers with a byte-pair vocabulary of some report words. What it writes means nothing."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from VelvetMedLib.reports.phrases import phrase_book

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    words.train_from_iterator([str(phrase_book())], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True,
        # Wide: what is frozen here was never trained, and must be able to tell its words apart.
        initializer_range=0.5,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_language(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a tiny random language model. Copy it before changing a byte."""
    pytest.importorskip("peft", reason="language models need the extra 'llm'")
    return make_language_model(tmp_path_factory.mktemp("language") / "tiny")
