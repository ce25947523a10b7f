"""Reuse memory for what a measurement needs for a moment.

On the CPU a fresh tensor of some hundred kilobytes costs ten times the arithmetic on it, in pages that the system has to
hand out; and what is reused is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Scratch:
    """Tensors by number: asking for the same one again gives the same memory."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._flat: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}

    def empty(self, number: int, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return tensor ``number``, of the device of ``like`` and its dtype, float32 where that is narrower."""
        dtype = like.dtype if like.dtype == torch.float64 else torch.float32
        key, n = (number, like.device, dtype), torch.Size(shape).numel()
        flat = self._flat.get(key)
        if flat is None or flat.numel() < n:
            # Outside inference mode, or it could not be written later.
            with torch.inference_mode(False):
                flat = self._flat[key] = torch.empty(n, dtype=dtype, device=like.device)
        return flat[:n].view(tuple(shape))

    def copy(self, number: int, tensor: Tensor) -> Tensor:
        """Return tensor ``number`` with the contents of ``tensor``, contiguous, outside its graph."""
        return self.empty(number, tensor.shape, tensor).copy_(tensor.detach())

    def clear(self) -> None:
        """Give the memory back."""
        self._flat.clear()
