"""Measure parameters as the optimizer sees them: weights and gradients before its step, updates after it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy
from .statistics import ABSMAX, SECOND, power_sums

_WEIGHT, _GRADIENT, _PEAK, _UPDATE = range(4)


class ParameterTaps:
    """Reads every parameter once before and once after the optimizer's step."""

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        """Name and place the parameters; a tied one counts once."""
        self._parameters = [(name, p) for name, p in model.named_parameters() if p.is_floating_point()]
        self._places = _places(anatomy)
        self._roles = _roles(anatomy, {name: p.dim() for name, p in self._parameters})
        self._sums: Tensor | None = None
        self._has_gradient: list[bool] = []
        self._before: list[Tensor] = []

    def before_step(self, *, snapshot: bool) -> None:
        """Read weights and gradients; keep a copy of the weights when ``snapshot``, for the update's size."""
        rows = []
        self._before = []
        self._has_gradient = [parameter.grad is not None for _, parameter in self._parameters]
        for _, parameter in self._parameters:
            weight = power_sums(parameter)
            gradient = parameter.grad
            if gradient is not None and gradient.layout != torch.strided:
                # Of an embedding with sparse=True; what is not stored is zero.
                gradient = gradient.coalesce().values()
            found = torch.zeros_like(weight) if gradient is None else power_sums(gradient)
            update = torch.full_like(weight[0], torch.nan)
            rows.append(torch.stack([weight[SECOND], found[SECOND], found[ABSMAX], update]))
            if snapshot:
                self._before.append(parameter.detach().clone())
        self._sums = torch.stack([row.to(rows[0].device) for row in rows]) if rows else None

    def after_step(self) -> None:
        """Read how far each parameter moved since ``before_step``."""
        if self._sums is None or not self._before:
            return
        for row, ((_, parameter), before) in enumerate(zip(self._parameters, self._before, strict=True)):
            wide = before.dtype if before.device.type == "mps" else torch.float64
            self._sums[row, _UPDATE] = power_sums(parameter.detach().to(wide) - before.to(wide))[SECOND]
        self._before = []

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the parameters table, one copy to the host; empty where nothing was read."""
        if self._sums is None:
            return []
        table, self._sums = self._sums.cpu().tolist(), None
        rows = []
        for (name, parameter), sums, has_gradient in zip(self._parameters, table, self._has_gradient, strict=True):
            n = max(1, parameter.numel())
            stack, block, branch = self._places.get(name, (-1, -1, ""))
            weight, update = math.sqrt(sums[_WEIGHT] / n), math.sqrt(sums[_UPDATE] / n)
            rows.append(
                {
                    "name": name,
                    "stack": stack,
                    "block": block,
                    "branch": branch,
                    "role": self._roles[name],
                    "n": parameter.numel(),
                    "gradient_state": "none" if not has_gradient else "zero" if sums[_GRADIENT] == 0 else "value",
                    "weight_rms": weight,
                    "gradient_rms": math.sqrt(sums[_GRADIENT] / n) if has_gradient else None,
                    "gradient_absmax": sums[_PEAK] if has_gradient else None,
                    "update_rms": None if math.isnan(update) else update,
                    "update_ratio": None if math.isnan(update) or weight == 0 else update / weight,
                }
            )
        return rows


def bias_rows(anatomy: Anatomy, parameter_rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the activations table for the bias that each branch's last projection adds.

    Only its scale is known: the root mean square over channels, the same at every token.
    """
    scales = {row["name"]: row["weight_rms"] for row in parameter_rows}
    return [
        {
            "micro_step": 0,
            "stack": branch.stack,
            "block": branch.block,
            "branch": branch.kind,
            "depth": branch.depth,
            "site": "bias",
            "call": 0,
            "direction": "forward",
            "module_path": branch.output_bias,
            "rms": scales[branch.output_bias],
        }
        for branch in anatomy.branches
        if branch.output_bias in scales
    ]


def _places(anatomy: Anatomy) -> dict[str, tuple[int, int, str]]:
    places = {name: (stack.index, -1, "embedding") for stack in anatomy.stacks for name in stack.start_parameters}
    for branch in anatomy.branches:
        places.update(dict.fromkeys(branch.parameters, (branch.stack, branch.block, branch.kind)))
    return places


def _roles(anatomy: Anatomy, axes: dict[str, int]) -> dict[str, str]:
    """Return what each parameter is: by its behaviour in a norm, else by where it stands and its number of axes."""
    gains, norm_biases = set(anatomy.gains), set(anatomy.norm_biases)
    inside = {name for branch in anatomy.branches for name in branch.parameters}
    start = {name for stack in anatomy.stacks for name in stack.start_parameters} - inside
    roles = {}
    for name, n_axes in axes.items():
        if name in gains:
            roles[name] = "gain"
        elif name in norm_biases:
            roles[name] = "norm_bias"
        elif name in start:
            roles[name] = "embedding"
        elif n_axes >= 2:
            roles[name] = "weight"
        else:
            roles[name] = "bias" if n_axes == 1 else "other"
    return roles
