"""Measure how a mixture routes its tokens, where a branch behaves like one.

A branch routes where, inside its module, scores with one number an expert are reduced to the largest few (topk, argmax,
max), and its parameters are that many experts: modules of the same shapes side by side, or weights stacked on axis 0.
Any other choice of largest values is none of a router, and what is not certain is not recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .anatomy import Anatomy
from .counted import Counted
from .device_rows import DeviceRows
from .expert_weights import ExpertWeights
from .plain import is_plain
from .running import Moment, holder, holders, place_of, places
from .wrappers import modules_of

MOE_KINDS = ("moe", "mlp", "parallel", "mixer")
_SOFTMAXES = (functional.softmax, torch.softmax, Tensor.softmax, torch.special.softmax)
_SIGMOIDS = (functional.sigmoid, torch.sigmoid, Tensor.sigmoid, torch.special.expit)
_TOPKS = (torch.topk, Tensor.topk)
_LARGEST = (torch.argmax, Tensor.argmax, torch.max, Tensor.max)
Action = Callable[[], None]
See = Callable[[Moment, Any, tuple[Any, ...], dict[str, Any]], Action | None]


@dataclass
class _Gate:
    kind: str
    values: Tensor


@dataclass
class _Routing:
    """One router call, and what the experts of its branch were given."""

    micro_step: int
    moment: Moment
    kind: str
    n_tokens: int
    n_chosen: int
    scores: int
    is_certain: bool = True
    given: dict[tuple[int, int], dict[int, int]] = field(default_factory=dict)  # expert -> weight -> rows


class ExpertCalls:
    """Sees the torch calls of a forward and measures those that route tokens to experts."""

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        """Find the branches that hold experts."""
        modules = modules_of(model)
        paths = {holder(anatomy, branch) for branch in anatomy.branches if branch.kind in MOE_KINDS}
        self._weights = ExpertWeights({path: modules[path] for path in paths if path and path in modules})
        self._anatomy, self._paths = anatomy, holders(anatomy)
        self._rows = DeviceRows(2)
        self._calls: list[_Routing] = []
        self._gates: dict[Moment, _Gate] = {}
        self._current: dict[Moment, _Routing] = {}
        self._micro_step = 0
        after: dict[Any, See] = {
            **dict.fromkeys(_SOFTMAXES, self._softmax),
            **dict.fromkeys(_SIGMOIDS, self._sigmoid),
            **dict.fromkeys(_TOPKS, self._topk),
            **dict.fromkeys(_LARGEST, self._argmax),
            functional.linear: self._linear,
        }
        self.after = after if self._weights.sizes else {}

    def begin(self, micro_step: int) -> None:
        """A forward begins."""
        self._micro_step = micro_step
        self._gates.clear()
        self._current.clear()

    def end(self) -> None:
        """The forward has ended."""
        self._gates.clear()
        self._current.clear()

    def forget(self, micro_step: int) -> None:
        """Drop a forward that failed."""
        for call in self._calls:
            call.is_certain &= call.micro_step != micro_step

    def _softmax(self, moment: Moment, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Action | None:
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if self._scores(moment, result, dim) is not None:
            self._gates[moment] = _Gate("softmax", result.detach())
        return None

    def _sigmoid(self, moment: Moment, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Action | None:  # noqa: ARG002
        if self._scores(moment, result, -1) is not None:
            self._gates[moment] = _Gate("sigmoid", result.detach())
        return None

    def _topk(self, moment: Moment, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Action | None:
        dim = args[2] if len(args) > 2 else kwargs.get("dim", -1)
        largest = args[3] if len(args) > 3 else kwargs.get("largest", True)
        scores = self._scores(moment, args[0] if args else kwargs.get("input"), dim)
        return self._route(moment, scores, result[1]) if scores is not None and largest else None

    def _argmax(self, moment: Moment, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Action | None:
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        scores = self._scores(moment, args[0] if args else kwargs.get("input"), dim)
        if scores is None:
            return None
        indices = result if isinstance(result, Tensor) else result[1]
        return self._route(moment, scores, indices.reshape(*scores.shape[:-1], 1))

    def _scores(self, moment: Moment, values: Any, dim: Any) -> Tensor | None:
        """Return ``values`` if they are one number an expert of the running branch, along ``dim``."""
        sizes = self._weights.sizes.get(moment.module_path)
        if sizes is None or not isinstance(values, Tensor) or values.dim() < 2 or values.shape[-1] not in sizes:
            return None
        is_last = isinstance(dim, int) and dim in (-1, values.dim() - 1)
        return values if is_last and values.is_floating_point() and is_plain(values) else None

    def _route(self, moment: Moment, scores: Tensor, indices: Tensor) -> Action | None:
        n_experts, n_chosen = scores.shape[-1], indices.shape[-1]
        if n_chosen >= n_experts:
            return None
        before = self._current.get(moment)
        if before is not None and before.n_chosen > n_chosen:
            return None
        if before is not None:
            if before.n_chosen == n_chosen == 1 and before.scores != scores.data_ptr():
                # A second choice of one, after the first was masked: two experts a token, chosen one by one.
                before.is_certain = False
                return None
            before.is_certain = False
        n_tokens = scores.numel() // n_experts
        gate = self._gates.get(moment)
        if gate is None or gate.values.numel() != scores.numel():
            gate = _Gate("logits", scores.detach())

        def measure() -> None:
            self._rows.add(routing_rows(gate.values.reshape(n_tokens, n_experts), gate.kind, indices.detach()))
            routing = _Routing(self._micro_step, moment, gate.kind, n_tokens, n_chosen, scores.data_ptr())
            self._current[moment] = routing
            self._calls.append(routing)

        return measure

    def _linear(self, moment: Moment, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Action | None:
        routing = self._current.get(moment)
        if routing is None:
            return None
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        found = self._weights.expert_of(weight) if isinstance(weight, Tensor) else None
        if found is not None and isinstance(result, Tensor):
            expert, which = found
            given = routing.given.setdefault(expert, {})
            given[which] = given.get(which, 0) + result.numel() // result.shape[-1]
        return None

    def counted(self) -> list[Counted]:
        """Return what was measured since the last call: this is the one copy to the host."""
        found, calls, self._calls = self._rows.take(), self._calls, []
        counted: list[Counted] = []
        for micro_step in dict.fromkeys(call.micro_step for call in calls):
            mine = [
                (call, numbers)
                for call, numbers in zip(calls, found, strict=True)
                if call.micro_step == micro_step and call.is_certain
            ]
            placed = places(self._anatomy, [call.moment for call, _ in mine], MOE_KINDS, self._paths)
            for (call, numbers), (branch, nth) in zip(mine, placed, strict=True):
                place = {
                    "micro_step": micro_step,
                    **place_of(branch),
                    "call": nth,
                    "gate": call.kind,
                    "n_chosen": call.n_chosen,
                }
                counted += _counted(call, place, numbers)
        return counted

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the experts table since the last call."""
        return [row for each in self.counted() if (row := row_of(each)) is not None]


def routing_rows(gate: Tensor, kind: str, indices: Tensor) -> Tensor:
    """Return, on the device, a row an expert and one of the router, shape (experts + 1, 2).

    An expert's row is how often it was chosen, and the sum of its probability over tokens; the router's is the sum over
    tokens of the entropy of its distribution, and the number of tokens.

    Args:
        gate: shape (tokens, experts).
        kind: of the gate: softmax (its rows are distributions), sigmoid (they are made so by their sum) or logits.
        indices: of the chosen experts, any shape.
    """
    values = gate.to(gate.dtype if gate.dtype == torch.float64 else torch.float32)
    if kind == "logits":
        values = values.softmax(-1)
    elif kind == "sigmoid":
        values = values / values.sum(-1, keepdim=True)
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    chosen = indices.reshape(-1)
    load = torch.zeros(gate.shape[-1], dtype=wide, device=gate.device)
    load.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=wide))
    entropy = torch.special.entr(values).sum(dtype=wide)
    router = torch.stack([entropy, torch.full_like(entropy, len(gate))])
    return torch.cat([torch.stack([load, values.sum(0, dtype=wide)], -1), router.unsqueeze(0)])


def _counted(call: _Routing, place: dict[str, Any], numbers: list[list[float]]) -> list[Counted]:
    """Return sums of the router, expert -1: entropy, tokens, pairs given to experts, pairs chosen; and of each expert."""
    *experts, (entropy, n_tokens) = numbers
    place = place | {"n_experts": len(experts)}
    router = (entropy, n_tokens, *_given(call, [load for load, _ in experts]))
    return [
        Counted("experts", place | {"expert": -1}, router),
        *(
            Counted("experts", place | {"expert": index}, (load, probability, n_tokens))
            for index, (load, probability) in enumerate(experts)
        ),
    ]


def row_of(counted: Counted) -> dict[str, Any] | None:
    """Return one row of the experts table, None where no token came."""
    n_experts = counted.place["n_experts"]
    place = {name: value for name, value in counted.place.items() if name != "n_experts"}
    if counted.place["expert"] < 0:
        entropy, n_tokens, given, chosen = counted.sums
        if not n_tokens:
            return None
        mean = entropy / n_tokens
        return place | {
            "n_tokens": int(n_tokens),
            "router_entropy": _finite(mean),
            "entropy_ratio": _finite(mean / math.log(n_experts)),
            "dropped_share": _finite(1.0 - given / chosen) if chosen else None,
        }
    load, probability, n_tokens = counted.sums
    if not n_tokens:
        return None
    measured = {"load": load / (counted.place["n_chosen"] * n_tokens), "probability": _finite(probability / n_tokens)}
    return place | {"n_tokens": int(n_tokens)} | measured


def _given(call: _Routing, loads: list[float]) -> tuple[float, float]:
    """Return how many (token, expert) pairs the experts were given and how many were chosen; NaN where that is not seen.

    It is seen where every expert is given its tokens alone, by a linear map of its own; not where experts run batched,
    or are padded to their capacity.
    """
    given = {index: max(rows.values()) for (n, index), rows in call.given.items() if n == len(loads)}
    if not given or any(count > loads[index] for index, count in given.items()):
        return math.nan, math.nan
    return sum(given.values()), sum(loads)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
