"""Read the scalars of one step; what is no scalar is refused in a sentence, and the step is kept without it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .batches import describe

LARGEST = 2**63 - 1
NAME_LENGTH = 200  # characters kept of a batch's name


def loss_of(value: object) -> tuple[Tensor | None, str | None]:
    """Return a step's loss as a tensor of one element on its own device, or None and what is wrong with it."""
    if value is None:
        return None, None
    if isinstance(value, Tensor):
        if value.numel() == 1 and not value.is_complex() and not value.is_meta:
            return value.detach(), None
        got = describe(value)
    else:
        try:
            return torch.tensor(float(value), dtype=torch.float64), None  # type: ignore[arg-type]  # tried, not asked
        except (TypeError, ValueError, OverflowError):
            got = f"{type(value).__name__} {value!r:.80}"
    return None, (
        f"Expected a scalar loss in probe.step(loss), got {got}: the step is recorded without its loss. "
        "Pass the scalar that backward is called on."
    )


def count_of(value: object) -> tuple[int | None, str | None]:
    """Return a number of tokens, or None and what is wrong with it."""
    if value is None:
        return None, None
    try:
        count = int(value)  # type: ignore[call-overload]  # tried, not asked
    except (TypeError, ValueError, OverflowError):
        count = -1
    if 0 <= count <= LARGEST:
        return count, None
    return None, (
        f"Expected a whole number of tokens in probe.step(n_tokens=), got {type(value).__name__} {value!r:.80}: the "
        "step is recorded without it. Pass how many tokens the step trained on."
    )


def name_of(value: object) -> str | None:
    """Return a batch's name as text that can be written."""
    return None if value is None else str(value)[:NAME_LENGTH].encode("utf-8", "replace").decode()


def on_host(value: Any) -> float | None:
    """Return a number, None where it is not on the host."""
    is_here = isinstance(value, int | float) or (isinstance(value, Tensor) and value.is_cpu and value.numel() == 1)
    return float(value) if is_here else None
