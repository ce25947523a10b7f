"""Read what an Adam step did from the optimizer's own state, without a copy of the weights.

Adam (Kingma and Ba 2015, Algorithm 1) and AdamW (Loshchilov and Hutter 2019, Algorithm 2) keep the moments m and v from which
the update was made: update = -lr * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) - lr * decay * weight. The first time, the
result is compared with the distance that the parameters really moved; where they differ, weights are copied instead.
"""

from __future__ import annotations

import math
from array import array
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from .kernels import by_c, by_torch
from .wrappers import here, is_summand

AGREES = 0.02  # of the update's size
VISIBLE = 1e-8  # energy of an update over that of the weights, above which float32 rounding leaves two digits of it
SUMS = 7  # as the kernel gives them: g^2, max |g|, w^2, update^2, (g / root)^2, root^2, roots below eps


class Stepped(NamedTuple):
    """One parameter with what the optimizer keeps of it; the addresses where all of it is plain float32, else empty."""

    row: int
    parameter: Tensor
    state: dict[str, Any]
    addresses: tuple[int, ...]


class AdamReader:
    """Reads the state of one optimizer after its step.

    Attributes:
        is_trusted: whether the state tells what a step did; None until it was compared.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        """Trust nothing yet."""
        self.is_trusted: bool | None = None
        self._optimizer = optimizer
        self._compared: list[tuple[Tensor, Tensor, Tensor]] = []
        self._known: dict[int, tuple[Any, list[Tensor], int, list[Stepped]]] = {}

    @staticmethod
    def reads(optimizer: Optimizer) -> bool:
        """Return whether the optimizer is one whose step is known: torch's own Adam or AdamW, not a subclass."""
        return type(optimizer) in (Adam, AdamW) and not any(group["amsgrad"] for group in optimizer.param_groups)

    def read(self, rows: dict[Tensor, int], sums: Tensor) -> set[int]:
        """Fill the first seven columns of the rows of parameters that just stepped; return which rows.

        Args:
            rows: parameter -> its row.
            sums: where to, shape (rows, 8), float64.
        """
        done: set[int] = set()
        start, width = sums.data_ptr(), 8 * sums.shape[1]
        for index, group in enumerate(self._optimizer.param_groups):
            table = array("q")
            for row, parameter, state, addresses in self._stepped(index, group, rows, is_here=sums.is_cpu):
                gradient = parameter.grad
                if gradient is None or not state or is_summand(gradient):
                    continue
                gradient = here(gradient)
                done.add(row)
                now = _addresses(parameter, state) if addresses else ()
                if now and now == addresses and gradient.dtype is torch.float32 and gradient.is_contiguous():
                    table.extend((gradient.data_ptr(), *now, here(parameter).numel(), start + width * row))
                elif gradient.layout is torch.strided:
                    sums[row, :SUMS] = _reduced(parameter, gradient, state, group).to(sums.device)
                else:
                    done.discard(row)
            if table:
                factors = (*group["betas"], group["eps"], _decay(group))
                by_c.kernel.adam(
                    table.buffer_info()[0], len(table) // 7, float(group["lr"]), *(float(value) for value in factors)
                )
        return done

    def compare(self, told: Tensor, parameter: Tensor, before: Tensor) -> None:
        """Keep, on the device, what the state tells of an update beside how far the parameter really moved."""
        wide = by_torch.wide_dtype(parameter.device)
        moved = (parameter.detach().to(wide) - before.to(wide)).square().sum()
        self._compared.append((told.clone(), moved, before.to(wide).square().sum()))

    def forget(self) -> None:
        """Look parameters and their states up again: some were replaced."""
        self._known.clear()

    def settle(self) -> None:
        """Decide, where a comparison was made, whether the state tells the updates; the host waits for it."""
        for told, moved, size in self._compared:
            if float(moved) > VISIBLE * float(size):
                self.is_trusted = self.is_trusted is not False and _agree(float(told), float(moved))
        self._compared.clear()

    def _stepped(self, index: int, group: dict[str, Any], rows: dict[Tensor, int], *, is_here: bool) -> list[Stepped]:
        """Return the group's parameters with their state, looked up again where the optimizer's own lists changed."""
        states, members = self._optimizer.state, group["params"]
        known = self._known.get(index)
        # The first step makes the states, a checkpoint replaces them.
        if known is None or known[0] is not states or known[1] is not members or known[2] != len(members):
            found = [
                Stepped(rows[p], p, states[p], _addresses(p, states[p]) if is_here and _is_plain(p, states[p]) else ())
                for p in members
                if p in rows and states.get(p)
            ]
            known = (states, members, len(found), found)
            if len(found) == len(members):
                self._known[index] = known
        return known[3]


def _is_plain(parameter: Tensor, state: dict[str, Any]) -> bool:
    return by_c.is_float32(
        *(here(tensor) for tensor in (parameter, state["exp_avg"], state["exp_avg_sq"], state["step"]))
    )


def _addresses(parameter: Tensor, state: dict[str, Any]) -> tuple[int, ...]:
    tensors = (parameter, state["exp_avg"], state["exp_avg_sq"], state["step"])
    return tuple(here(tensor).data_ptr() for tensor in tensors)


def _agree(told: float, moved: float) -> bool:
    return abs(math.sqrt(told) - math.sqrt(moved)) <= AGREES * math.sqrt(moved)


def _decay(group: dict[str, Any]) -> Any:
    return group["weight_decay"] if group.get("decoupled_weight_decay") else 0.0


def _reduced(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """Return the seven sums by torch's operations; the count stays on its device, so that the host does not wait."""
    device, wide = parameter.device, by_torch.wide_dtype(parameter.device)
    (beta_1, beta_2), eps = group["betas"], float(group["eps"])
    parameter, first, second = here(parameter), here(state["exp_avg"]), here(state["exp_avg_sq"])
    count, rate = (torch.as_tensor(value, dtype=wide, device=device) for value in (here(state["step"]), group["lr"]))
    root = second.to(wide).sqrt() / (1 - beta_2**count).sqrt()
    step = rate / (1 - beta_1**count) * first.to(wide) / (root + eps)
    weight, seen = parameter.detach().to(wide), gradient.detach().to(wide)
    decay = rate * _decay(group)
    update = step + decay * (weight + step) / (1 - decay)
    energies = [part.square().sum() for part in (seen, weight, update, seen / (root + eps), root)]
    peak = seen.abs().max() if seen.numel() else energies[0]
    below = (root < eps).sum().to(wide)
    return torch.stack([energies[0], peak, *energies[1:], below])
