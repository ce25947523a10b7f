"""What the lab trains on: tokens that follow from those before by a rule, and real text. Batches without end, from a seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from rheoscope.probes.errors import LabError
from torch import Tensor

from .byte_pairs import token_batches
from .corpus import batches

RULE_HOLDS = 0.8  # share of tokens that follow the rule; the others are uniformly random
HELD_OUT = -1  # a seed: batches that no other seed gives
BACK = 2  # which earlier token the rule looks at

Batches = Iterator[Tensor]


def task(name: str) -> Callable[[int, int, int, int], Batches]:
    """Return the function of (vocabulary, batch size, length, seed) that yields a task's batches.

    ``recall``: each token is a fixed permutation of the one before the last, four times in five. ``text``: bytes of the standard
    library's source. ``bpe``: the same in byte pairs, of a vocabulary of the given size that is trained on it. ``zipf``:
    independent tokens, the k-th as frequent as 1 / k. ``uniform``: independent and equally frequent.

    The seed HELD_OUT gives batches apart from all others: of text, from its part that is kept apart.

    Raises:
        LabError: there is no such task.
    """
    if name not in _TASKS:
        raise LabError(f"Expected a task among {sorted(_TASKS)}, got {name!r}. Pass one of these.")
    return _TASKS[name]


def floor_of_recall(vocabulary: int) -> float:
    """Return the loss, in nats, of whoever knows the rule of ``recall``: no model can do better."""
    hit = RULE_HOLDS + (1 - RULE_HOLDS) / vocabulary
    miss = (1 - RULE_HOLDS) / vocabulary
    return -hit * math.log(hit) - (vocabulary - 1) * miss * math.log(miss)


def _recall(vocabulary: int, batch_size: int, length: int, seed: int) -> Batches:
    rule = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(12_345))
    generator = torch.Generator().manual_seed(seed)
    while True:
        tokens = torch.randint(vocabulary, (batch_size, length + 1), generator=generator)
        follows = torch.rand(batch_size, length + 1, generator=generator) < RULE_HOLDS
        for place in range(BACK, length + 1):
            tokens[:, place] = torch.where(follows[:, place], rule[tokens[:, place - BACK]], tokens[:, place])
        yield tokens


def _text(vocabulary: int, batch_size: int, length: int, seed: int) -> Batches:
    if vocabulary < 256:
        raise LabError(f"Expected a vocabulary of at least 256, the bytes, for the task text, got {vocabulary}.")
    return batches(batch_size, length, seed, held_out=seed == HELD_OUT)


def _zipf(vocabulary: int, batch_size: int, length: int, seed: int) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    weights = 1 / torch.arange(1, vocabulary + 1, dtype=torch.float64)
    while True:
        yield torch.multinomial(weights, batch_size * (length + 1), True, generator=generator).view(batch_size, -1)


def _uniform(vocabulary: int, batch_size: int, length: int, seed: int) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(vocabulary, (batch_size, length + 1), generator=generator)


_TASKS = {"recall": _recall, "text": _text, "bpe": token_batches, "zipf": _zipf, "uniform": _uniform}
