"""Read what an Adam step did from the optimizer's own state, without a copy of the weights.

Adam (Kingma and Ba 2015, Algorithm 1) and AdamW (Loshchilov and Hutter 2019, Algorithm 2) keep the moments m and v from which
the update was made: update = -lr * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) - lr * decay * weight. The first time, the
result is compared with the distance that the parameters really moved; where they differ, weights are copied instead.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from .kernels import by_c, by_torch

AGREES = 0.02  # of the update's size
VISIBLE = 1e-8  # energy of an update over that of the weights, above which float32 rounding leaves two digits of it
SUMS = 7  # as the kernel gives them: g^2, max |g|, w^2, update^2, (g / root)^2, root^2, roots below eps
UPDATE = 3


class Factors(NamedTuple):
    """What turns the moments into an update, the same for many parameters: floats, or tensors on a device."""

    rate: Any
    mean: Any
    spread: Any
    eps: float
    decay: Any


class AdamReader:
    """Reads the state of one optimizer after its step."""

    def __init__(self, optimizer: Optimizer) -> None:
        """Trust nothing yet."""
        self.is_trusted: bool | None = None
        self._optimizer = optimizer
        self._compared: list[tuple[Tensor, Tensor, Tensor]] = []
        self._table = torch.empty(0, 6, dtype=torch.int64)

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
        plain: dict[Factors, list[list[int]]] = defaultdict(list)
        for group in self._optimizer.param_groups:
            known: dict[float, Factors] = {}
            for parameter in group["params"]:
                row, state, gradient = rows.get(parameter), self._optimizer.state.get(parameter), parameter.grad
                if row is None or not state or gradient is None or gradient.layout != torch.strided:
                    continue
                first, second, count = state["exp_avg"], state["exp_avg_sq"], state["step"]
                done.add(row)
                if not by_c.is_float32(parameter, gradient, first, second) or sums.device.type != "cpu":
                    factors = _factors(group, count, parameter.device)
                    sums[row, :SUMS] = _reduced(parameter, gradient, first, second, factors).to(sums.device)
                    continue
                steps = float(count)
                if steps not in known:
                    known[steps] = _factors(group, steps, None)
                addresses = [gradient.data_ptr(), parameter.data_ptr(), first.data_ptr(), second.data_ptr()]
                plain[known[steps]].append([*addresses, parameter.numel(), sums.data_ptr() + 8 * sums.shape[1] * row])
        for factors, table in plain.items():
            self._table = torch.tensor(table, dtype=torch.int64)
            by_c.kernel.adam(self._table.data_ptr(), len(table), *factors)
        return done

    def compare(self, told: Tensor, parameter: Tensor, before: Tensor) -> None:
        """Keep, on the device, what the state tells of an update beside how far the parameter really moved."""
        wide = by_torch.wide_dtype(parameter.device)
        moved = (parameter.detach().to(wide) - before.to(wide)).square().sum()
        self._compared.append((told.clone(), moved, before.to(wide).square().sum()))

    def settle(self) -> None:
        """Decide, where a comparison was made, whether the state tells the updates; the host waits for it."""
        for told, moved, size in self._compared:
            if float(moved) > VISIBLE * float(size):
                self.is_trusted = self.is_trusted is not False and _agree(float(told), float(moved))
        self._compared.clear()


def _agree(told: float, moved: float) -> bool:
    return abs(math.sqrt(told) - math.sqrt(moved)) <= AGREES * math.sqrt(moved)


def _factors(group: dict[str, Any], count: Any, device: torch.device | None) -> Factors:
    """Return the factors of one group after ``count`` steps; with a device they stay there, so that the host does not wait."""
    beta_1, beta_2 = group["betas"]
    rate, eps = group["lr"], float(group["eps"])
    decay = group["weight_decay"] if group.get("decoupled_weight_decay") else 0.0
    if device is None:
        steps, lr = float(count), float(rate)
        mean, spread = 1 / (1 - float(beta_1) ** steps), 1 / math.sqrt(1 - float(beta_2) ** steps)
        return Factors(lr, mean, spread, eps, lr * float(decay))
    steps, lr = (torch.as_tensor(value, dtype=torch.float32, device=device) for value in (count, rate))
    return Factors(lr, 1 / (1 - beta_1**steps), (1 - beta_2**steps).rsqrt(), eps, lr * decay)


def _reduced(parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, factors: Factors) -> Tensor:
    """Return the seven sums by torch's operations."""
    wide = by_torch.wide_dtype(parameter.device)
    root = second.sqrt() * factors.spread
    step = factors.rate * factors.mean * first / (root + factors.eps)
    weight = parameter.detach()
    update = step + factors.decay * (weight + step) / (1 - factors.decay)
    ratio = gradient / (root + factors.eps)
    energies = [part.to(wide).square().sum() for part in (gradient, weight, update, ratio, root)]
    peak = gradient.abs().max().to(wide) if gradient.numel() else energies[0]
    below = (root < factors.eps).sum().to(wide)
    return torch.stack([energies[0], peak, *energies[1:], below])
