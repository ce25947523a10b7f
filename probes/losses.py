"""Find the loss of a model's output: its own, or that of predicting the next token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .batches import Batch, arguments, describe, tensors
from .errors import BatchError

LossFunction = Callable[[Any, Batch], Tensor]


def default_loss(output: Any, batch: Batch) -> Tensor:
    """Return the loss that a model's output carries, or next-token cross-entropy of its logits.

    Raises:
        BatchError: the output holds neither.
    """
    own = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if isinstance(own, Tensor) and own.dim() == 0:
        return own
    found = [tensor for _, tensor in tensors(output) if tensor.is_floating_point()]
    scalars = [tensor for tensor in found if tensor.dim() == 0]
    if scalars:
        return scalars[0]
    ids = [t for _, t in tensors(arguments(batch)) if t.dtype == torch.int64 and t.dim() == 2]
    for logits in found:
        for tokens in ids:
            if logits.dim() == 3 and logits.shape[:2] == tokens.shape and int(tokens.max()) < logits.shape[-1]:
                return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
    shapes = ", ".join(describe(tensor) for tensor in found) or type(output).__name__
    raise BatchError(
        f"Expected an output with a scalar loss, or logits for a batch of token ids, got {shapes}. "
        "Pass loss_fn=lambda output, batch: ... that returns a scalar."
    )
