"""Measure by what factor an attention scales its logits, against its own projections: blocks of one class share it exactly.

Between what a block's first projections give and what enters the softmax stand a rotation at most, which keeps norms, and one
factor; or norms of queries and keys, which make their size a constant. Either way one number a block is the same in all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .anatomy import Anatomy, Branch
from .batches import Batch, call
from .belonging import branch_of
from .hooked import Hook
from .running import place_of
from .wrappers import modules_of

TOLERANCE = 0.005
_PRODUCTS = {
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm),
    *(torch.baddbmm, Tensor.baddbmm, torch.einsum, torch.functional.einsum),
}
_SOFTMAXES = {functional.softmax, torch.softmax, Tensor.softmax}
_HIDDEN = -1e4  # a logit below it is masked


@dataclass
class _Seen:
    """What ran inside one branch: sizes of what its projections gave, and its first attention."""

    projections: list[float] = field(default_factory=list)
    factor: float | None = None
    size: float = 0.0
    usual: float = 0.0


def logit_scale(model: nn.Module, batch: Batch, anatomy: Anatomy) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``logit_scale`` and ``logit_size`` of every branch with one attention.

    ``logit_scale`` is the factor of the logits times the sizes of queries and keys, over the sizes of what the branch's first two
    projections gave; ``logit_size`` is the same without the division, of a median token. One forward. Call it inside
    ``untouched(model, training=False)``.
    """
    watch = _Watch(anatomy)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), _paths(model, watch), watch:
        call(model, batch)
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
    return rows


class _Watch(TorchFunctionMode):
    """Keeps sizes of projections and attentions by the branch that runs."""

    def __init__(self, anatomy: Anatomy) -> None:
        super().__init__()
        self.seen: dict[tuple[int, int], _Seen] = {}
        self.open: list[str] = []
        self._anatomy = anatomy
        self._branches: dict[str, Branch | None] = {}
        self._products: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def leave(self, *_: object) -> None:
        """End the call of a module."""
        self.open.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            self._fused(args, kwargs)
        elif func in _SOFTMAXES:
            self._by_hand(args, kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.is_floating_point():
            given = [leaf for leaf in _leaves(args) if leaf.is_floating_point() and leaf.dim() >= 2]
            if any(isinstance(leaf, nn.Parameter) for leaf in given):
                here = self._here()
                if here is not None and here.factor is None:
                    here.projections.append(_energy(result))
            elif func in _PRODUCTS and len(given) >= 2 and result.dim() >= 3:
                self._products[result.numel()] = (result, given[-2], given[-1])
        return result

    def _here(self) -> _Seen | None:
        path = self.open[-1] if self.open else ""
        if path not in self._branches:
            self._branches[path] = branch_of(self._anatomy, path) if path else None
        branch = self._branches[path]
        if branch is None or branch.kind not in ("attention", "parallel", "cross_attention"):
            return None
        return self.seen.setdefault((branch.stack, branch.depth), _Seen())

    def _fused(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        query, key = (kwargs.get(name, args[i] if len(args) > i else None) for i, name in enumerate(("query", "key")))
        here = self._here()
        if here is None or here.factor is not None or not isinstance(query, Tensor) or not isinstance(key, Tensor):
            return
        scale = kwargs.get("scale")
        here.factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
        here.size, here.usual = _sizes(query, key, -1)

    def _by_hand(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        logits, here = args[0] if args else kwargs.get("input"), self._here()
        if here is None or here.factor is not None or not isinstance(logits, Tensor):
            return
        found = self._products.get(logits.numel())
        if found is not None:
            product, query, key = found
            here.factor = _slope(product, logits)
            # Keys come transposed into a product, but for einsum's.
            here.size, here.usual = _sizes(query, key, -1 if key.shape[-1] == query.shape[-1] else -2)
        self._products.clear()


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


def _leaves(args: Sequence[Any]) -> Iterator[Tensor]:
    for item in args:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, list | tuple):
            yield from _leaves(item)


@contextmanager
def _paths(model: nn.Module, watch: _Watch) -> Iterator[None]:
    handles = []
    for path, module in modules_of(model, remove_duplicate=True).items():
        before = Hook(lambda *_, path=path: watch.open.append(path))
        after = Hook(watch.leave)
        handles += [module.register_forward_pre_hook(before, prepend=True), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _row(check: str, branch: Branch, value: float) -> dict[str, Any]:
    return {
        "check": check,
        **place_of(branch),
        "observed": value,
        "tolerance": TOLERANCE,
        "note": "factor of the attention logits, times the RMS of queries and of keys"
        + (", over that of what the first two projections gave" if check == "logit_scale" else ""),
    }
