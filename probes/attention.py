"""Measure attention per head, wherever in a forward it is computed: fused, flexible, or a softmax by hand.

A softmax is attention where it behaves so: over the last axis of what has the shape of a batched product, and its
result enters a batched product. Router and vocabulary softmaxes do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.flex_attention import flex_attention as flex_operator
from torch.nn import functional

from .anatomy import Anatomy
from .attention_logits import default_scale, n_chosen, of_dot_products, of_modified_scores, of_softmax
from .attention_statistics import (
    N_CHOOSING,
    N_SUMS,
    bound,
    bound_by_kernel,
    head_sums,
    largest_alone,
    statistics,
    together,
)
from .counted import Counted
from .device_rows import DeviceRows
from .kernels import by_c
from .plain import is_plain
from .running import ATTENTION_KINDS, Moment, holders, place_of, places
from .scratch import Scratch

_SOFTMAXES = (functional.softmax, torch.softmax, Tensor.softmax, torch.special.softmax)
_PRODUCTS = (
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm),
    *(torch.baddbmm, Tensor.baddbmm, torch.einsum, torch.functional.einsum),
)
_MOST_LOGITS = 2**20  # worked on at once: 4 MB
_MOST_SHAPES = 16  # products that are remembered between two softmaxes
Measure = Callable[[Moment], None]
Shape = tuple[int, int, int]


@dataclass
class _Call:
    """One attention call: its place in the device's rows is its place in the list of calls."""

    micro_step: int
    moment: Moment
    first_head: int
    n_queries: int
    is_attention: bool = True
    is_bound: bool = False


class AttentionCalls:
    """Sees the torch calls of a forward and measures those that are attention."""

    def __init__(self, anatomy: Anatomy, *, is_exact: bool = True) -> None:
        """Measure logits exactly, or only bound them by the norms of queries and keys."""
        self._anatomy, self._is_exact = anatomy, is_exact
        self._paths = holders(anatomy)
        self._rows = DeviceRows(N_SUMS)
        self._scratch = Scratch()
        self._calls: list[_Call] = []
        self._products: set[Shape] = set()
        self._doubtful: tuple[_Call, Shape] | None = None
        self._batch: int | None = None
        self._n_heads: int | None = None
        self.micro_step = 0
        self.before: dict[Any, Callable[..., Measure | None]] = {
            functional.scaled_dot_product_attention: self._fused,
            flex_operator: self._flexible,
            **dict.fromkeys(_SOFTMAXES, self._by_hand),
            **dict.fromkeys(_PRODUCTS, self._confirm),
        }
        self.after: dict[Any, Callable[[Any], None]] = dict.fromkeys(_PRODUCTS, self._remember)

    def begin(self, micro_step: int, batch: int | None) -> None:
        """A forward begins: of which micro-batch, and the size of its batch where that is known."""
        self.micro_step, self._batch = micro_step, batch
        self._products.clear()
        self._doubtful = None

    def inside(self, n_heads: int | None) -> None:
        """Say that torch's own multi-head attention with ``n_heads`` heads runs from now on, or that it has ended."""
        self._n_heads = n_heads

    def forget(self, micro_step: int) -> None:
        """Drop a forward that failed."""
        for call in self._calls:
            call.is_attention &= call.micro_step != micro_step

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,  # noqa: ARG002
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,  # noqa: ARG002
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,  # noqa: ARG002
    ) -> Measure | None:
        if not is_plain(query, key, *(() if attn_mask is None else (attn_mask,))) or query.dim() < 3:
            return None

        def measure(moment: Moment) -> None:
            queries, keys, mask, first_head = self._with_heads(query, key, attn_mask)
            if self._is_exact:
                parts = []
                for some in _batches(queries, keys):
                    rows = None if mask is None else mask[some] if mask.dim() == 4 and len(mask) > 1 else mask
                    some_keys = keys[some] if len(keys) > 1 else keys
                    logits = of_dot_products(queries[some], some_keys, rows, is_causal, scale, self._scratch)
                    parts.append(head_sums(logits.values, logits.visible, self._scratch))
                self._add(together(parts), moment, first_head, query.shape[-2])
            else:
                factor = default_scale(query) if scale is None else scale
                self._bound(queries, keys, factor, moment, first_head)

        return measure

    def _flexible(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,  # noqa: ARG002
        score_mod: Callable[..., Tensor],
        block_mask: tuple[Any, ...],
        scale: float,
        kernel_options: dict[str, Any],  # noqa: ARG002
        score_mod_other_buffers: tuple[Any, ...] = (),
        mask_mod_other_buffers: tuple[Any, ...] = (),
    ) -> Measure | None:
        if not is_plain(query, key):
            return None
        buffers = (score_mod_other_buffers, mask_mod_other_buffers)

        def measure(moment: Moment) -> None:
            if self._is_exact:
                logits = of_modified_scores(query, key, score_mod, block_mask[-1], scale, buffers)
                self._add(head_sums(logits.values, logits.visible), moment, 0, query.shape[-2])
            else:
                self._bound(query, key, scale, moment, 0)

        return measure

    def _by_hand(self, *args: Any, **kwargs: Any) -> Measure | None:
        """A softmax: attention, if it follows a product of its shape; what comes after decides."""
        values = args[0] if args else kwargs.get("input")
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if not isinstance(values, Tensor) or values.dim() < 3 or dim not in (-1, values.dim() - 1):
            return None
        shape = _shape(values)
        if shape not in self._products:
            # A learned sink may stand beside the keys in the softmax, and not in the products around it.
            shape = (shape[0], shape[1] - 1, shape[2] // max(1, shape[1]) * (shape[1] - 1))
        if shape not in self._products or not is_plain(values):
            return None

        def measure(moment: Moment) -> None:
            logits, first_head = self._heads_of_logits(values)
            if self._is_exact:
                parts = []
                for some in _batches(logits, logits):
                    seen = of_softmax(logits[some], self._scratch)
                    parts.append(head_sums(seen.values, seen.visible, self._scratch))
                self._add(together(parts), moment, first_head, logits.shape[-2])
            else:
                self._add(largest_alone(logits), moment, first_head, logits.shape[-2])
            call = self._calls[-1]
            call.is_attention = False
            self._doubtful = (call, shape)

        return measure

    def _confirm(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """A product: the softmax before it was attention, if its result is one of the batched factors."""
        if self._doubtful is None:
            return
        call, shape = self._doubtful
        factors = [factor for factor in _flat(args) if isinstance(factor, Tensor)]
        if all(factor.dim() >= 3 for factor in factors) and any(_shape(factor) == shape for factor in factors):
            call.is_attention = True
            self._doubtful = None
            self._products.clear()

    def _remember(self, result: Any) -> None:
        if isinstance(result, Tensor) and result.dim() >= 3:
            if len(self._products) >= _MOST_SHAPES:
                self._products.clear()
            self._products.add(_shape(result))

    def _with_heads(self, query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, int]:
        """Return queries, keys and mask with the axes batch, heads, positions, size, and the first head's number."""
        if query.dim() == 4:
            return query, key, mask, 0
        if query.dim() == 3:
            is_single = self._batch == query.shape[0]
            if mask is not None and mask.dim() == 3:
                mask = mask.unsqueeze(1)
            return query.unsqueeze(1), key.unsqueeze(1), mask, 0 if is_single else -1
        if mask is not None and mask.dim() > 2:
            mask = mask.expand(*query.shape[:-2], *mask.shape[-2:]).flatten(0, -4)
        return query.flatten(0, -4), key.flatten(0, -4), mask, 0

    def _heads_of_logits(self, values: Tensor) -> tuple[Tensor, int]:
        """Return logits with the axes batch, heads, queries, keys, and the first head's number, -1 for all together."""
        if values.dim() == 4:
            return values, 0
        flat = values.flatten(0, -3)
        n = flat.shape[0]
        if values.dim() == 3 and self._n_heads and n % self._n_heads == 0:
            # torch's own attention flattens batch by batch.
            return flat.reshape(-1, self._n_heads, *flat.shape[1:]), 0
        return flat.unsqueeze(1), 0 if values.dim() == 3 and n == self._batch else -1

    def _add(self, rows: Tensor, moment: Moment, first_head: int, n_queries: int) -> None:
        self._rows.add(rows)
        self._calls.append(_Call(self.micro_step, moment, first_head, n_queries))

    def _bound(self, query: Tensor, key: Tensor, scale: float, moment: Moment, first_head: int) -> None:
        if by_c.has_rows(query) and by_c.has_rows(key):
            bound_by_kernel(query, key, scale, self._rows.address(query.shape[1]))
        else:
            self._rows.add(bound(query, key, scale))
        self._calls.append(_Call(self.micro_step, moment, first_head, query.shape[-2], is_bound=True))

    def counted(self) -> list[Counted]:
        """Return what was measured since the last call: this is the one copy to the host."""
        found, calls, self._calls = self._rows.take(), self._calls, []
        counted: list[Counted] = []
        for micro_step in dict.fromkeys(call.micro_step for call in calls):
            mine = [pair for pair in zip(calls, found, strict=True) if pair[0].micro_step == micro_step]
            mine = [pair for pair in mine if pair[0].is_attention]
            placed = places(self._anatomy, [call.moment for call, _ in mine], ATTENTION_KINDS, self._paths)
            for (call, sums), (branch, nth) in zip(mine, placed, strict=True):
                place = {"micro_step": micro_step, **place_of(branch), "call": nth, "is_bound": call.is_bound}
                asked = (n_chosen(call.n_queries), call.n_queries)
                counted += [
                    Counted("attention", place | {"head": call.first_head + head}, (*row, *asked), (largest,))
                    for head, (largest, *row) in enumerate(sums)
                ]
        return counted

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the attention table since the last call."""
        return [row_of(each) for each in self.counted()]


def row_of(counted: Counted) -> dict[str, Any]:
    """Return one row of the attention table."""
    *sums, n_looked_at, n_queries = counted.sums
    row = [*counted.peaks, *sums]
    is_exact = row[N_CHOOSING] == row[N_CHOOSING]
    counts = {
        "n_queries": int(row[N_CHOOSING]) if is_exact else None,
        "query_share": n_looked_at / n_queries if is_exact and n_queries else None,
    }
    place = {name: value for name, value in counted.place.items() if name != "is_bound"}
    return place | counts | statistics(row, is_bound=counted.place["is_bound"])


def unseen(anatomy: Anatomy, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return in a sentence which attention branches have no rows after a forward; None where all have."""
    seen = {(row["stack"], row["depth"]) for row in rows}
    wanted = [branch for branch in anatomy.branches if branch.kind in ("attention", "cross_attention")]
    missing = [branch for branch in wanted if (branch.stack, branch.depth) not in seen]
    if not missing:
        return None
    return (
        f"Attention of {len(missing)} of {len(wanted)} branches is not recorded (block {missing[0].block} of stack "
        f"{missing[0].stack} is the first): no torch call that computes it was seen inside them. A compiled model or a "
        "kernel of another library hides it."
    )


def _batches(query: Tensor, key: Tensor) -> list[slice]:
    """Return parts of the batch whose logits fit into the scratch memory; one that broadcasts is not parted."""
    n_keys = key.shape[-1] if key is query else key.shape[-2]
    size = max(1, _MOST_LOGITS // max(1, query.shape[1] * n_chosen(query.shape[-2]) * n_keys))
    return [slice(first, first + size) for first in range(0, len(query), size)] if len(query) > 1 else [slice(None)]


def _shape(tensor: Tensor) -> Shape:
    """Return queries, keys and everything: reshapes between heads and batch leave these three."""
    return (tensor.shape[-2], tensor.shape[-1], tensor.numel()) if tensor.dim() >= 2 else (0, 0, 0)


def _flat(args: tuple[Any, ...]) -> list[Any]:
    return [item for arg in args for item in (arg if isinstance(arg, list | tuple) else (arg,))]
