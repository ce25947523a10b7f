"""Say how a tensor lies over its memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Form:
    """How a tensor lies over its value: shape and strides."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Distance in memory between the first and the last element."""
        return sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=False) if size)


def form_of(tensor: Tensor) -> Form:
    """Return shape and strides of ``tensor``; no strides where it has none."""
    try:
        return Form(tuple(tensor.shape), tuple(tensor.stride()))
    except (RuntimeError, NotImplementedError):
        return Form(tuple(tensor.shape), ())
