"""Read what an Adam step did from the optimizer's own state, without a copy of the weights.

Adam (Kingma and Ba 2015, Algorithm 1) and AdamW (Loshchilov and Hutter 2019, Algorithm 2) keep the moments m and v from which
the update was made: update = -lr * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) - lr * decay * weight. The first time, the
result is compared with the distance that one parameter really moved; where they differ, weights are copied instead.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from .kernels import by_c, by_torch

AGREES = 0.02  # of the update's size
VISIBLE = 1e-8  # energy of an update over that of the weights, above which float32 rounding leaves two digits of it
SUMS = 7  # as the kernel gives them: g^2, max |g|, w^2, update^2, (g / root)^2, root^2, roots below eps
RATIO = 4


class AdamReader:
    """Reads the state of one optimizer after its step."""

    def __init__(self, optimizer: Optimizer) -> None:
        """Remember which parameter is in which group."""
        self._optimizer = optimizer
        self._groups: dict[int, dict[str, Any]] = {}
        self._is_trusted: bool | None = None
        self._compared: list[tuple[Tensor, Tensor, Tensor]] = []

    @staticmethod
    def reads(optimizer: Optimizer) -> bool:
        """Return whether the optimizer is one whose step is known: torch's own Adam or AdamW, not a subclass."""
        return type(optimizer) in (Adam, AdamW)

    def knows(self, parameter: Tensor) -> bool:
        """Return whether the update of ``parameter`` can be read after the step; until it was once compared, no."""
        if self._is_trusted is None or not self._is_trusted:
            return False
        group = self._group(parameter)
        return group is not None and not group["amsgrad"] and bool(self._optimizer.state.get(parameter))

    def read(self, parameter: Tensor, sums: Tensor, row: int, before: Tensor | None) -> bool:
        """Fill the first seven columns of ``row``; return whether it could be read.

        Args:
            parameter: after the step.
            sums: where to, float64.
            row: of ``sums``.
            before: a copy from before the step, where one was made; it is compared once.
        """
        group, state = self._group(parameter), self._optimizer.state.get(parameter)
        if self._is_trusted is False or group is None or not state or group["amsgrad"] or parameter.grad is None:
            return False
        found = _sums(parameter, parameter.grad, state, group)
        if found is None:
            return False
        if self._is_trusted is None:
            if before is None:
                return False
            self._compare(found, parameter, before)
            sums[row, RATIO:SUMS] = found[RATIO:].to(sums.device)
            return False  # the copy is there: it is exact
        sums[row, :SUMS] = found.to(sums.device)
        return True

    def _group(self, parameter: Tensor) -> dict[str, Any] | None:
        if id(parameter) not in self._groups:
            self._groups = {id(p): group for group in self._optimizer.param_groups for p in group["params"]}
        return self._groups.get(id(parameter))

    def settle(self) -> None:
        """Decide, where a comparison was made, whether the state tells the updates; the host waits for it."""
        for told, moved, size in self._compared:
            if float(moved) > VISIBLE * float(size):
                self._is_trusted = self._is_trusted is not False and _agree(float(told), float(moved))
        self._compared.clear()

    def _compare(self, found: Tensor, parameter: Tensor, before: Tensor) -> None:
        """Keep, on the device, what the state tells of an update beside how far the parameter really moved."""
        wide = by_torch.wide_dtype(parameter.device)
        moved = (parameter.detach().to(wide) - before.to(wide)).square().sum()
        self._compared.append((found[3], moved, before.to(wide).square().sum()))


def _agree(told: float, moved: float) -> bool:
    return abs(math.sqrt(told) - math.sqrt(moved)) <= AGREES * math.sqrt(moved)


def _sums(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor | None:
    """Return the seven sums, float64; None where the state is not on the host or of another layout."""
    first, second, count = state.get("exp_avg"), state.get("exp_avg_sq"), state.get("step")
    rate = group["lr"]
    if first is None or second is None or count is None or gradient.layout != torch.strided:
        return None
    if any(isinstance(value, Tensor) and value.device.type != "cpu" for value in (count, rate)):
        return _by_torch(parameter, gradient, first, second, group, count, rate)
    beta_1, beta_2 = (float(beta) for beta in group["betas"])
    steps, lr = float(count), float(rate)
    mean, spread = 1 / (1 - beta_1**steps), 1 / math.sqrt(1 - beta_2**steps)
    decay = lr * float(group["weight_decay"]) if group.get("decoupled_weight_decay") else 0.0
    eps = float(group["eps"])
    if by_c.is_float32(parameter, gradient, first, second):
        out = torch.empty(SUMS, dtype=torch.float64)
        addresses = (gradient.data_ptr(), parameter.data_ptr(), first.data_ptr(), second.data_ptr())
        by_c.kernel.adam(*addresses, parameter.numel(), out.data_ptr(), lr, mean, spread, eps, decay)
        return out
    return _reduced(parameter, gradient, lr * mean * first, second.sqrt() * spread, eps, decay)


def _by_torch(
    parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, group: dict[str, Any], count: Any, rate: Any
) -> Tensor:
    """Return the sums with step and learning rate on the device, so that the host does not wait."""
    beta_1, beta_2 = group["betas"]
    steps = torch.as_tensor(count, dtype=torch.float32, device=parameter.device)
    lr = torch.as_tensor(rate, dtype=torch.float32, device=parameter.device)
    mean, spread = 1 / (1 - beta_1**steps), (1 - beta_2**steps).rsqrt()
    decay = lr * group["weight_decay"] if group.get("decoupled_weight_decay") else torch.zeros_like(lr)
    return _reduced(parameter, gradient, lr * mean * first, second.sqrt() * spread, float(group["eps"]), decay)


def _reduced(parameter: Tensor, gradient: Tensor, moved: Tensor, root: Tensor, eps: float, decay: Any) -> Tensor:
    wide = by_torch.wide_dtype(parameter.device)
    step = moved / (root + eps)
    weight = parameter.detach()
    update = step + decay * (weight + step) / (1 - decay)
    ratio = gradient / (root + eps)
    energies = [part.to(wide).square().sum() for part in (gradient, weight, update, ratio, root)]
    peak = gradient.abs().max().to(wide) if gradient.numel() else energies[0]
    below = (root < eps).sum().to(wide)
    return torch.stack([energies[0], peak, *energies[1:], below])
