"""Measure by what factor an attention scales its logits, against its own projections: blocks of one class share it exactly.

Between what a block's first projections give and what enters the softmax stand a rotation at most, which keeps norms, and one
factor; or norms of queries and keys, which make their size a constant. Either way one number a block is the same in all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Branch
from .attention_calls import AttentionCalls
from .batches import Batch
from .running import place_of

TOLERANCE = 0.005
FIT = 1e-3  # of what a module gives: what is left when it is explained by its matrix, channel by channel
_HIDDEN = -1e4  # a logit below it is masked
_AT_CAP = 0.99  # of a soft cap: beyond it float32 does not tell what was capped


@dataclass
class _Seen:
    """What ran inside one branch: sizes of what its projections gave, and its first attention."""

    projections: list[float] = field(default_factory=list)
    factor: float | None = None
    size: float = 0.0
    usual: float = 0.0


def logit_scale(model: nn.Module, batch: Batch, anatomy: Anatomy) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``logit_scale`` and ``logit_size`` of every branch with one attention, and more.

    ``logit_scale`` is the factor of the logits times the sizes of queries and keys, over the sizes of what the branch's first two
    projections gave; ``logit_size`` is the same without the division, of a median token. ``projection_scale``, of every module of
    such a branch with a matrix, is what it gives over what its product with the matrix gave, in the channel in which the two are
    furthest apart: 1 where nothing stands between; ``projection_rest`` is the share that no such factor explains. One forward.
    Call it inside ``untouched(model, training=False)``.
    """
    watch = _Sizes(anatomy)
    watch.follow(model, batch)
    rows = []
    for (stack, depth), seen in sorted(watch.seen.items()):
        branch = next(b for b in anatomy.branches if (b.stack, b.depth) == (stack, depth))
        if seen.factor is None or len(seen.projections) == 0:
            continue
        first, second = (seen.projections * 2)[:2]
        size = abs(seen.factor) * seen.size
        if first > 0 and second > 0 and math.isfinite(size):
            rows.append(_row("logit_scale", branch, size / math.sqrt(first * second)))
            rows.append(_row("logit_size", branch, abs(seen.factor) * seen.usual))
    return rows + watch.given


class _Sizes(AttentionCalls):
    """Keeps sizes of projections and of the first attention by the branch that runs."""

    def __init__(self, anatomy: Anatomy) -> None:
        """Keep nothing yet."""
        super().__init__(anatomy)
        self.seen: dict[tuple[int, int], _Seen] = {}
        self.given: list[dict[str, Any]] = []

    def _of(self, branch: Branch) -> _Seen:
        return self.seen.setdefault((branch.stack, branch.depth), _Seen())

    def projected(self, branch: Branch, result: Tensor) -> Tensor:
        """Keep the size of what was projected before the attention."""
        seen = self._of(branch)
        if seen.factor is None:
            seen.projections.append(_energy(result))
        return result

    def gave(self, branch: Branch, path: str, product: Tensor, output: Tensor) -> None:
        """Keep by what the result is multiplied before others read it."""
        fit = _furthest(product, output)
        if fit is None:
            return
        scale, rest = fit
        row = {**place_of(branch), "module_path": path}
        note = "what a module gives, less a multiple of what its matrix gave, channel by channel, over it"
        of_rest = {"check": "projection_rest", "observed": rest, "expected": 0.0, "tolerance": FIT, "note": note}
        self.given.append(row | of_rest)
        if rest <= FIT:
            note = "what a module gives over what its matrix gave, in the channel in which they are furthest apart"
            of_scale = {"check": "projection_scale", "observed": scale, "expected": 1.0, "tolerance": TOLERANCE}
            self.given.append(row | of_scale | {"note": note})

    def attended_at_once(self, branch: Branch, query: Tensor, key: Tensor, scale: float) -> None:
        """Keep the factor as it is said."""
        seen = self._of(branch)
        if seen.factor is None:
            seen.factor = scale
            seen.size, seen.usual = _sizes(query, key, -1)

    def attended_by_hand(self, branch: Branch, product: Tensor, query: Tensor, key: Tensor, logits: Tensor) -> None:
        """Keep the factor as the logits show it."""
        seen = self._of(branch)
        if seen.factor is None:
            cap = branch.attention.soft_cap if branch.attention is not None else None
            seen.factor = _slope(product, logits if cap is None else _uncapped(logits, cap))
            # Keys come transposed into a product, but for einsum's.
            seen.size, seen.usual = _sizes(query, key, -1 if key.shape[-1] == query.shape[-1] else -2)


def _furthest(product: Tensor, output: Tensor) -> tuple[float, float] | None:
    """Return the factor between two tensors in the channel in which it is furthest from 1, and the share it does not explain."""
    width = product.shape[-1]
    if product.numel() != output.numel() or output.shape[-1] != width or not output.is_floating_point():
        return None
    x, y = (tensor.detach().double().reshape(-1, width) for tensor in (product, output))
    if torch.equal(x, y):
        return 1.0, 0.0
    energy, size = x.square().sum(0), float(y.norm())
    scales = torch.where(energy > 0, (x * y).sum(0) / energy, 1.0)
    rest = float((y - scales * x).norm()) / size if size > 0 else 0.0
    return (float(scales[(scales - 1).abs().argmax()]), rest) if math.isfinite(rest) else None


def _uncapped(logits: Tensor, cap: float) -> Tensor:
    """Return what a soft cap, ``cap * tanh(logits / cap)``, has bent; those at the cap, and those that are masked, at -inf."""
    bent = logits.detach().double() / cap
    return torch.where(bent.abs() < _AT_CAP, cap * torch.atanh(bent.clamp(-_AT_CAP, _AT_CAP)), -math.inf)


def _slope(product: Tensor, logits: Tensor) -> float | None:
    """Return the slope of the logits that are not masked on the products they were made of."""
    x, y = product.detach().double().flatten(), logits.detach().double().reshape(-1)
    seen = torch.isfinite(y) & (y > _HIDDEN)
    x, y = x[seen], y[seen]
    if len(x) < 2:
        return None
    x = x - x.mean()
    spread = float(x.square().sum())
    return float((x * (y - y.mean())).sum()) / spread if spread > 0 else None


def _sizes(query: Tensor, key: Tensor, axis: int) -> tuple[float, float]:
    """Return the product of the RMS of queries and of keys, and of those of a median one: padding may be 0."""
    energies = (query.detach().double().square().mean(-1), key.detach().double().square().mean(axis))
    whole, usual = (math.prod(float(of(e)) for e in energies) for of in (torch.mean, torch.median))
    return math.sqrt(whole), math.sqrt(usual)


def _energy(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean())


def _row(check: str, branch: Branch, value: float) -> dict[str, Any]:
    return {
        "check": check,
        **place_of(branch),
        "observed": value,
        "tolerance": TOLERANCE,
        "note": "factor of the attention logits, times the RMS of queries and of keys"
        + (", over that of what the first two projections gave" if check == "logit_scale" else ""),
    }
