"""Ask the model itself: are all of its ``output_hidden_states`` among the states that discovery found?

The oracle shares no code with discovery: it calls the model with its own flag and compares contents. A hidden state
counts as found when every one of its rows (vectors along the stream's axis) is a row of one discovered state; which of
four ways it was found is told apart, because a model may return its states cut, padded or in another layout:

- ``same``: equal, element by element
- ``layout``: the same rows in another order or with the axes moved
- ``normed``: a discovered state after a norm: standardised rows times one gain, plus one bias, for each feature
- ``part``: rows of a longer discovered state (the model cuts or pads what it returns), or the other way round
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

CLOSE = 1e-4  # of the largest element
NAMES = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states", "vision_hidden_states")


@dataclass
class Verdict:
    """How many hidden states were found, and in which way.

    Attributes:
        found: way -> number.
        missing: names of those that were not found.
        is_asked: whether the model returns hidden states at all.
    """

    found: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    is_asked: bool = False
    repeated: int = 0

    @property
    def is_right(self) -> bool:
        """Whether all were found."""
        return not self.missing


def hidden_states(model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Return the model's own hidden states by name; none where it knows no such flag."""
    try:
        with torch.no_grad():
            output = model(**batch, output_hidden_states=True)
    except Exception:
        return {}
    found: dict[str, Tensor] = {}
    for name, value in _named(output):
        if isinstance(value, list | tuple):
            last = len(value) - 1
            for index, item in enumerate(value):
                if isinstance(item, Tensor) and item.is_floating_point() and item.numel():
                    found[f"{name}[{'last' if index == last else index}]"] = item.detach().float().cpu()
    return found


def _named(output: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if hasattr(output, "items") and depth < 3:
        for name, value in output.items():
            if name in NAMES:
                yield name, value
            elif hasattr(value, "items"):
                for inner, item in _named(value, depth + 1):
                    yield f"{name}.{inner}", item


def judge(states: dict[str, Tensor], discovered: list[Tensor]) -> Verdict:
    """Look every hidden state up among the discovered states.

    The last one of each list may be the final norm's output, which is no state: it may be missing.
    """
    verdict = Verdict(is_asked=bool(states))
    tables = [tensor.detach().float().cpu() for tensor in discovered]
    for name, state in states.items():
        way = _way(state, tables)
        if way is not None:
            verdict.found[way] = verdict.found.get(way, 0) + 1
        elif not name.endswith("[last]"):
            verdict.missing.append(name)
    return verdict


def _way(state: Tensor, discovered: list[Tensor]) -> str | None:
    for other in discovered:
        if other.shape == state.shape and _equal(other, state):
            return "same"
    for other in discovered:
        if other.numel() == state.numel() and _equal(_sorted(other), _sorted(state)):
            return "layout"
    for other in discovered:
        for rows in _rows(state):
            for others in _rows(other):
                if rows.shape[1] == others.shape[1] and _is_part(rows, others):
                    return "part"
                pairs = ((rows, others), (others, rows)) if rows.shape == others.shape else ()
                if any(_is_normed(*pair, is_centered) for pair in pairs for is_centered in (True, False)):
                    return "normed"
    return None


def _is_normed(rows: Tensor, others: Tensor, is_centered: bool) -> bool:
    """Whether every feature of ``rows`` is a line through the same feature of the standardised ``others``."""
    n = len(rows)
    if n < 6 or rows.shape[1] < 4:
        return False
    x = others - others.mean(1, keepdim=True) if is_centered else others
    x = x / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
    x, y = x - x.mean(0), rows - rows.mean(0)
    gain = (x * y).sum(0) / (x * x).sum(0).clamp(min=1e-12)
    return float((y - gain * x).norm()) < 1e-2 * float(y.norm())


def _equal(one: Tensor, other: Tensor) -> bool:
    size = max(float(one.abs().max()), 1e-6)
    return bool(((one - other).abs() <= CLOSE * size).all())


def _sorted(tensor: Tensor) -> Tensor:
    return tensor.flatten().sort().values


def _rows(tensor: Tensor) -> list[Tensor]:
    """Return the vectors along the last axis and, for an image-like tensor, along the second."""
    if tensor.dim() < 2:
        return []
    rows = [tensor.reshape(-1, tensor.shape[-1])]
    if tensor.dim() >= 3:
        rows.append(tensor.movedim(1, -1).reshape(-1, tensor.shape[1]))
    return rows


def _is_part(rows: Tensor, others: Tensor) -> bool:
    few, many = (rows, others) if len(rows) <= len(others) else (others, rows)
    if len(few) < 2 or len(many) > 20_000:
        return False
    size = max(float(few.abs().max()), 1e-6)
    nearest = torch.cdist(few, many, p=float("inf")).min(1).values <= CLOSE * size
    # Padding is zero, or the same vector again: it may differ between the two.
    return bool(nearest.all()) or (
        len(few) == len(rows) and bool((nearest | ~few.any(1)).all()) and bool(nearest.any())
    )
