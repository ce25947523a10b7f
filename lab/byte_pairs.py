"""Byte-pair vocabularies of the shipped text, trained here: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from rheoscope.probes.errors import LabError
from torch import Tensor

from .corpus import HELD_OUT, corpus

BYTES = 256
CHUNK = 20_000  # bytes that are encoded at a time


@cache
def encoded(vocabulary: int) -> tuple[Tensor, int]:
    """Return the training part of the shipped text in tokens of a vocabulary of this size, and how many bytes they stand for.

    Raises:
        LabError: the vocabulary is smaller than the bytes, or the package tokenizers is missing.
    """
    if vocabulary < BYTES:
        raise LabError(f"Expected a vocabulary of at least {BYTES}, the bytes, got {vocabulary}. Pass a larger one.")
    text = corpus()
    text = text[: int(len(text) * (1 - HELD_OUT))]
    if vocabulary == BYTES:
        return text, len(text)
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError as error:
        raise LabError(
            "Expected the package tokenizers for vocabularies beyond bytes, got none. pip install 'rheoscope[hf]'."
        ) from error
    raw = bytes(text.to(torch.uint8).tolist()).decode("utf-8", "replace")
    pieces = [raw[start : start + CHUNK] for start in range(0, len(raw), CHUNK)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        pieces, trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    )
    tokens = [token for piece in tokenizer.encode_batch(pieces) for token in piece.ids]
    return torch.tensor(tokens), len(raw.encode())


def bytes_per_token(vocabulary: int) -> float:
    """Return how many bytes of the shipped text a token stands for, on average."""
    tokens, n_bytes = encoded(vocabulary)
    return n_bytes / len(tokens)


def token_batches(vocabulary: int, batch_size: int, length: int, seed: int) -> Iterator[Tensor]:
    """Yield batches of random windows of the encoded text without end, shape (batch_size, length + 1)."""
    tokens, _ = encoded(vocabulary)
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(tokens) - length - 1, (batch_size,), generator=generator)
        yield torch.stack([tokens[start : start + length + 1] for start in starts.tolist()])
