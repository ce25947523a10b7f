"""Take a batch apart into its examples, where that does not change what the model makes of them."""

from __future__ import annotations

import torch
from rheoscope.probes.batches import Arguments, Batch, arguments, call, tensors
from rheoscope.probes.errors import BatchError
from torch import Tensor, nn
from torch.utils._pytree import tree_map

ALIKE = 1e-3  # of the output's size: how far an example alone may be from its row in the batch


def examples(model: nn.Module, batch: Batch) -> list[Arguments]:
    """Return a batch's examples, each as a batch of one; none where they cannot be told apart.

    Every tensor that is as long as the first one is cut. The first and last example alone must give what they give in the batch,
    four forwards without gradients; where the model gives a loss alone, that of all must be the mean of theirs, a forward each.
    Call it inside ``at_rest(model)``.
    """
    size = batch_size(batch)
    if size < 2:
        return []
    positional, keywords = arguments(batch)

    def cut(row: int) -> Arguments:
        def one(value: object) -> object:
            is_cut = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == size
            return value[row : row + 1] if is_cut else value  # type: ignore[index]

        return Arguments(*tree_map(one, (positional, keywords)))

    found = [cut(row) for row in range(size)]
    with torch.no_grad():
        try:
            is_sound = _is_cut_soundly(model, batch, found)
        except BatchError:
            return []
    return found if is_sound else []


def batch_size(batch: Batch) -> int:
    """Return the length of the batch's first tensor that has one, 0 without."""
    return next((tensor.shape[0] for _, tensor in tensors(arguments(batch)) if tensor.dim() > 1), 0)


def _is_cut_soundly(model: nn.Module, batch: Batch, found: list[Arguments]) -> bool:
    output = call(model, batch)
    whole = _rows(output, len(found))
    if whole is None:
        one = next((t for _, t in tensors(output) if t.is_floating_point() and t.numel() == 1), None)
        alone = [next((t for _, t in tensors(call(model, each)) if t.numel() == 1), None) for each in found]
        if one is None or any(each is None for each in alone):
            return False
        mean = sum(float(each) for each in alone if each is not None) / len(found)
        return abs(mean - float(one)) <= ALIKE * abs(float(one))
    for row in (0, len(found) - 1):
        mine = _rows(call(model, found[row]), 1)
        if mine is None or mine.shape[1:] != whole.shape[1:]:
            return False
        if float((whole[row] - mine[0]).norm()) > ALIKE * float(whole[row].norm()):
            return False
    return True


def _rows(output: object, size: int) -> Tensor | None:
    """Return the first floating tensor of the output that has one row an example."""
    found = (t for _, t in tensors(output) if t.is_floating_point() and t.dim() > 1 and t.shape[0] == size)
    return next(found, None)
