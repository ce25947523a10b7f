"""Ways to train wrongly: optimizer settings of one block's own, gradients with a gap, a stream of 16 bits that is too large."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .planting import RATE, others
from .subjects import Subject

GAP = 40  # steps of small gradients


def block_epsilon(subject: Subject, block: int, severity: float) -> bool:
    """Give one block an epsilon of its own."""
    own = list(subject.model.get_submodule(subject.parts[block].block).parameters())
    subject.groups = [{"params": others(subject, own)}, {"params": own, "eps": severity}]
    return True


def query_rate(subject: Subject, block: int, severity: float) -> bool:
    """Let the queries and keys of one block learn faster."""
    parts = subject.parts[block]
    if subject.fused_qkv:
        return False
    own = [p for path in (parts.query, parts.key) for p in subject.model.get_submodule(path).parameters()]
    subject.groups = [{"params": others(subject, own)}, {"params": own, "lr": RATE * severity}]
    return True


def gap(subject: Subject, block: int, severity: float) -> bool:
    """Scale the gradients of one block in the first steps."""
    for parameter in subject.model.get_submodule(subject.parts[block].block).parameters():
        _scaled_at_first(parameter, severity)
    return True


def _scaled_at_first(parameter: nn.Parameter, severity: float) -> None:
    seen = iter(range(10**9))

    def hook(gradient: Tensor) -> Tensor:
        return gradient * severity if next(seen) < GAP else gradient

    parameter.register_hook(hook)  # type: ignore[no-untyped-call]


def drowned(subject: Subject, _: int, severity: float) -> bool:
    """Keep everything in bfloat16 and make the embedding so large that writes beside it are lost."""
    if "post" in subject.name:
        return False  # every state is normed
    subject.model.bfloat16()
    embedding: Any = subject.model.get_submodule(subject.embedding)
    with torch.no_grad():
        embedding.weight.mul_(severity / embedding.weight.std())
    return True
