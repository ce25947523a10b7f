"""Find how positions enter, and who sees whom, by changing tokens and looking at what changes.

- Shift test: when all tokens are the same, logits that depend on relative position alone are equal along every
  diagonal; without any positions all are equal; absolute positions break the diagonals.
- Causality test: when the last token changes, a causal stream changes at the last position only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rheoscope.probes.anatomy import Anatomy, Point
from rheoscope.probes.batches import Arguments, Batch, arguments, call
from rheoscope.probes.errors import BatchError
from rheoscope.probes.hooked import Hooked
from rheoscope.probes.wrappers import here
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .vocabulary import ATTENTION

_FLAT = 1e-3  # of the logits' spread
_ROUNDED = (
    3e-5  # of the logits' size: float32 sums over a few hundred features agree to about 1e-6, less where terms cancel
)


class _FirstLogits(TorchFunctionMode):
    """Keeps the logits of the first attention that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.logits: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        if self.logits is None and name == "scaled_dot_product_attention":
            self.logits = _product(args, kwargs)
        elif self.logits is None and name == "softmax" and args and isinstance(args[0], Tensor):
            given = args[0]
            if given.dim() >= 3 and given.shape[-1] == given.shape[-2] > 2:
                self.logits = given.detach().clone()
        elif self.logits is None and ATTENTION.fullmatch(name):
            self.logits = torch.empty(0)
        return func(*args, **kwargs)


def _product(args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    query, key = (kwargs.get(name, args[i] if len(args) > i else None) for i, name in enumerate(("query", "key")))
    mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
    if not isinstance(query, Tensor) or not isinstance(key, Tensor) or query.shape[-2] != key.shape[-2]:
        return torch.empty(0)
    if query.shape[1] != key.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    logits: Tensor = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return logits + mask if isinstance(mask, Tensor) and mask.is_floating_point() else logits


@dataclass(frozen=True)
class Positions:
    """What the shift test showed: constant, toeplitz, linear (in the distance), absolute; "" where it could not run."""

    pattern: str = ""

    @property
    def is_shift_invariant(self) -> bool | None:
        """Whether logits depend on relative position alone."""
        return None if not self.pattern else self.pattern != "absolute"


def shift_test(model: nn.Module, batch: Batch) -> Positions:
    """Run the model on one token repeated, and look at the first attention's logits.

    Call it inside ``untouched(model, training=False)``.
    """
    places = _token_places(batch)
    if not places:
        return Positions()
    same = _changed(batch, places, lambda tokens: tokens[:, :1].expand_as(tokens).clone())
    mode = _FirstLogits()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), mode:
            call(model, same)
    except BatchError:
        return Positions()
    logits = mode.logits
    if logits is None or logits.dim() < 3 or logits.shape[-1] != logits.shape[-2] or logits.shape[-1] < 5:
        return Positions()
    return Positions(_pattern(logits.double().reshape(-1, *logits.shape[-2:])[:16]))


def _pattern(logits: Tensor) -> str:
    """Return how the logits on and below the diagonal depend on the two positions."""
    n = logits.shape[-1]
    allowed = torch.isfinite(logits) & (logits > -1e4) & torch.ones(n, n, dtype=torch.bool).tril()
    if not bool(allowed.diagonal(dim1=-2, dim2=-1).all()):
        return ""
    # A constant for each row changes no share of attention: some biases count from the start, not from the query.
    rounding = _ROUNDED * float(logits[allowed].abs().max())
    logits = logits - logits.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    flat = max(_FLAT * float(logits[allowed].abs().max()), rounding)
    diagonals = [logits.diagonal(-k, -2, -1) for k in range(n)]
    usable = [d for k, d in enumerate(diagonals) if bool(allowed.diagonal(-k, -2, -1).all())]
    if any(float((d - d[:, :1]).abs().max()) > flat for d in usable):
        return "absolute"
    steps = torch.stack([d[:, 0] for d in usable], -1)
    if float((steps - steps[:, :1]).abs().max()) <= flat:
        return "constant"
    bends = steps.diff(dim=-1).diff(dim=-1)
    return "linear" if bends.numel() and float(bends.abs().max()) <= flat else "toeplitz"


def causal_stacks(model: nn.Module, batch: Batch, anatomy: Anatomy) -> list[bool | None]:
    """Return, for each stack, whether its last state at earlier positions ignores the last token.

    Call it inside ``untouched(model, training=False)``.
    """
    points = [next((b.sum or b.state for b in reversed(s.branches) if b.sum or b.state), None) for s in anatomy.stacks]
    found: list[bool | None] = [None] * len(points)
    before = _seen(model, batch, points)
    for place in _token_places(batch):
        length: list[int] = []

        def last_changed(tokens: Tensor, length: list[int] = length) -> Tensor:
            length.append(tokens.shape[1])
            changed = tokens.clone()
            other = tokens[:, :-1]
            changed[:, -1] = torch.where(other[:, 0] == tokens[:, -1], other.max(1).values, other[:, 0])
            return changed

        after = _seen(model, _changed(batch, [place], last_changed), points)
        verdicts = [
            _confined(before[point], after[point], length[0])
            if point in before and point in after and before[point].shape == after[point].shape
            else None
            for point in points
        ]
        for index, verdict in enumerate(verdicts):
            # What crosses over from a stack that has changed tells nothing of who sees whom within this one.
            crosses = any(branch.kind == "cross_attention" for branch in anatomy.stacks[index].branches)
            others = [other for number, other in enumerate(verdicts) if number != index]
            if verdict is not None and not (crosses and not verdict and any(other is not None for other in others)):
                found[index] = verdict or bool(found[index])
    return found


def _confined(one: Tensor, other: Tensor, length: int) -> bool | None:
    """Return whether two states differ at the last position only; None where they are equal or have no positions."""
    axes = [axis for axis, size in enumerate(one.shape[:-1]) if size == length]
    difference = (one - other).abs()
    size = float(one.abs().max()) + 1e-12
    if not axes or float(difference.max()) <= 1e-6 * size:
        return None
    earlier = difference.narrow(axes[-1], 0, length - 1)
    return float(earlier.max()) <= 1e-6 * size


def _seen(model: nn.Module, batch: Batch, points: list[Point | None]) -> dict[Point | None, Tensor]:
    seen: dict[Point | None, Tensor] = {}

    def see(point: Point, tensor: Tensor) -> None:
        seen[point] = here(tensor).detach().to("cpu", torch.float64)

    hooks = Hooked(model, [point for point in points if point is not None], lambda point: partial(see, point))
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            call(model, batch)
    except BatchError:
        return {}
    finally:
        hooks.remove()
    return seen


def _token_places(batch: Batch) -> list[int | str]:
    """Return which arguments are token ids: whole numbers of at least two values, (batch, position)."""
    positional, keywords = arguments(batch)
    given: list[tuple[int | str, Any]] = [*enumerate(positional), *keywords.items()]
    return [name for name, value in given if _is_tokens(value)]


def _is_tokens(value: object) -> bool:
    if not isinstance(value, Tensor) or value.dtype not in (torch.int64, torch.int32) or value.dim() != 2:
        return False
    return value.shape[1] >= 3 and value.numel() > 0 and int(value.max()) > 2 and int(value.min()) != int(value.max())


def _changed(batch: Batch, places: list[int | str], change: Any) -> Arguments:
    positional, keywords = arguments(batch)
    changed: Mapping[str, Any] = {n: change(v) if n in places else v for n, v in keywords.items()}
    return Arguments(tuple(change(v) if i in places else v for i, v in enumerate(positional)), changed)
