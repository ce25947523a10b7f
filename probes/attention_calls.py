"""Follow a forward into its attentions: which branch projects, and what queries and keys it goes into its softmax with.

Seen are torch's functions, whatever a model calls its own: a product with a parameter is a projection, the fused attention or a
softmax over a product of two activations is an attention. The branch is that of the module that runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .anatomy import Anatomy, Branch
from .batches import Batch, call
from .belonging import branch_of
from .hooked import Hook
from .wrappers import modules_of

_PRODUCTS = {
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm),
    *(torch.baddbmm, Tensor.baddbmm, torch.einsum, torch.functional.einsum),
}
_SOFTMAXES = {functional.softmax, torch.softmax, Tensor.softmax}
_ATTENTIONS = ("attention", "parallel", "cross_attention")


class AttentionCalls(TorchFunctionMode):
    """Tells of every projection and every attention of a branch that attends; subclasses say what to do with them."""

    def __init__(self, anatomy: Anatomy) -> None:
        """Follow the branches of ``anatomy``."""
        super().__init__()
        self.open: list[str] = []
        self._anatomy = anatomy
        self._branches: dict[str, Branch | None] = {}
        self._products: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._own: dict[str, list[Tensor]] = {}

    def projected(self, branch: Branch, result: Tensor) -> Tensor:
        """Take what a projection of ``branch`` gives; what is returned goes on in its place."""
        raise NotImplementedError

    def gave(self, branch: Branch, path: str, product: Tensor, output: Tensor) -> None:
        """Take what a module of ``branch`` with a single projection gave, beside the projection's result."""

    def attended_at_once(self, branch: Branch, query: Tensor, key: Tensor, scale: float) -> None:
        """Take the operands of a fused attention, (batch, head, position, head size), and the factor of its logits."""
        raise NotImplementedError

    def attended_by_hand(self, branch: Branch, product: Tensor, query: Tensor, key: Tensor, logits: Tensor) -> None:
        """Take the product of queries and keys, its operands, and the logits that a softmax reads."""
        raise NotImplementedError

    def follow(self, model: nn.Module, batch: Batch) -> None:
        """Run one forward without gradients and follow it."""
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), _paths(model, self), self:
            call(model, batch)

    def leave(self, _: nn.Module, __: object, output: object) -> None:
        """End the call of a module."""
        path = self.open.pop()
        products, branch = self._own.pop(path, []), self._branches.get(path)
        if len(products) == 1 and branch is not None and isinstance(output, Tensor):
            self.gave(branch, path, products[0], output)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one of torch's functions, and tell of it."""
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            self._fused(args, kwargs)
        elif func in _SOFTMAXES:
            self._by_hand(args, kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.is_floating_point():
            given = [leaf for leaf in _leaves(args) if leaf.is_floating_point() and leaf.dim() >= 2]
            if any(isinstance(leaf, nn.Parameter) for leaf in given):
                return self._project(result)
            if func in _PRODUCTS and len(given) >= 2 and result.dim() >= 3:
                self._products[result.numel()] = (result, given[-2], given[-1])
        return result

    def _project(self, result: Tensor) -> Tensor:
        branch = self._here()
        if branch is None:
            return result
        result = self.projected(branch, result)
        self._own.setdefault(self.open[-1], []).append(result)
        return result

    def _here(self) -> Branch | None:
        path = self.open[-1] if self.open else ""
        if path not in self._branches:
            self._branches[path] = branch_of(self._anatomy, path) if path else None
        branch = self._branches[path]
        return branch if branch is not None and branch.kind in _ATTENTIONS else None

    def _fused(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        query, key = (kwargs.get(name, args[i] if len(args) > i else None) for i, name in enumerate(("query", "key")))
        branch = self._here()
        if branch is not None and isinstance(query, Tensor) and isinstance(key, Tensor):
            scale = kwargs.get("scale")
            self.attended_at_once(branch, query, key, query.shape[-1] ** -0.5 if scale is None else float(scale))

    def _by_hand(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        logits, branch = args[0] if args else kwargs.get("input"), self._here()
        if branch is not None and isinstance(logits, Tensor):
            found = self._products.get(logits.numel())
            if found is not None:
                self.attended_by_hand(branch, *found, logits)
            self._products.clear()


def _leaves(args: Sequence[Any]) -> Iterator[Tensor]:
    for item in args:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, list | tuple):
            yield from _leaves(item)


@contextmanager
def _paths(model: nn.Module, watch: AttentionCalls) -> Iterator[None]:
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
