"""Measure parameters around an optimizer step: gradients as the optimizer saw them, weights, and how far they moved."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .adam import AdamReader
from .anatomy import Anatomy
from .kernels import by_c, by_torch
from .wrappers import here, is_summand, parameters_of

N_PARTS = 10  # columns of a row of sums
# The last three: cosine of a bias with itself at the sampled step before; or, where the row holds a part of the bias, their
# product and the energies of both.
GRADIENT, PEAK, WEIGHT, UPDATE, RATIO, ROOT, BELOW, TURN, NOW, BEFORE = range(N_PARTS)
LONGEST_VECTOR = 65_536  # elements of a bias whose direction is followed


NO_GRADIENTS = (
    "Expected parameters with gradients when the optimizer steps, or at probe.step without one, got none although a backward "
    "came through the model: gradients of parameters are not measured. They were zeroed before, freed by an optimizer inside "
    "the backward, or are kept elsewhere by a library that partitions them."
)


@dataclass(frozen=True)
class ParameterNumbers:
    """What one step gave.

    Attributes:
        sums: shape (parameters, 10), on the device, NaN where not measured; used again by the next step.
        has_gradient: who has one; None where that is not known.
        rows: parameter -> its row.
    """

    sums: Tensor
    has_gradient: tuple[bool | None, ...]
    rows: Mapping[Tensor, int]

    def without_gradients(self) -> ParameterNumbers:
        """Return the same with gradients that are not known."""
        return replace(self, has_gradient=(None,) * len(self.has_gradient))

    @property
    def gradient_norm(self) -> Tensor | None:
        """Norm of the whole gradient, on the device; None where no parameter has one."""
        return self.norm_of(self.rows)

    def norm_of(self, parameters: Iterable[Tensor]) -> Tensor | None:
        """Return the norm of the gradient of some parameters, on the device; None where none of them has one."""
        rows = [row for p in parameters if (row := self.rows.get(p)) is not None and self.has_gradient[row]]
        if not rows:
            return None
        column = self.sums[:, GRADIENT]
        return (column if len(rows) == len(column) else column[rows]).sum().sqrt()


class ParameterTaps:
    """Reads every parameter once a sampled step.

    Under Adam and AdamW everything is read after the step, from the optimizer's own state; under any other optimizer the
    weights are copied before the step, which takes the memory of the parameters once more.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, optimizer: Optimizer | None) -> None:
        """Name and place the parameters; a tied one counts once."""
        self._parameters = [(name, p) for name, p in parameters_of(model) if p.is_floating_point()]
        self._places = _places(anatomy)
        self._roles = _roles(anatomy, {name: p.dim() for name, p in self._parameters})
        self._optimizer: Any = optimizer
        self._adam = AdamReader(optimizer) if optimizer is not None and AdamReader.reads(optimizer) else None
        self._rows: dict[Tensor, int] = {p: row for row, (_, p) in enumerate(self._parameters)}
        self._sums: Tensor | None = None
        self._buffer: Tensor | None = None
        self._has_gradient: list[bool] = []
        self._before: dict[int, Tensor] = {}
        self._vectors: dict[int, Tensor] = {}
        self._followed = [
            (row, p)
            for row, (name, p) in enumerate(self._parameters)
            if p.dim() == 1 and self._roles[name] in ("bias", "norm_bias") and p.numel() <= LONGEST_VECTOR
        ]
        self._is_read = False

    def before_step(self) -> None:
        """Read the gradients and copy the weights, where they cannot be read from the optimizer's state afterwards."""
        self._open()
        if self._adam is not None and self._adam.is_trusted:
            return
        is_scaled = getattr(self._optimizer, "grad_scale", None) is not None  # a fused step divides by it
        for row, (_, parameter) in enumerate(self._parameters):
            if not is_scaled:
                self._read_gradient(row, parameter)
            if parameter.grad is not None:
                self._before[row] = here(parameter).detach().clone()

    def after_step(self) -> None:
        """Read weights, updates and, under Adam, gradients and second moments."""
        sums = self._sums
        if sums is None:
            return
        done = (
            self._adam.read(self._rows, sums)
            if self._adam is not None and self._adam.is_trusted is not False
            else set()
        )
        for row, (_, parameter) in enumerate(self._parameters):
            before = self._before.pop(row, None)
            if row in done and before is None:
                continue
            if row in done and self._adam is not None and before is not None:
                self._adam.compare(sums[row, UPDATE], here(parameter), before)
            if before is None or getattr(self._optimizer, "grad_scale", None) is not None:
                self._read_gradient(row, parameter)
            if before is not None:
                sums[row, UPDATE] = _distance(here(parameter), before).to(sums.device)
            self._read_weight(row, parameter)
        skipped = getattr(self._optimizer, "found_inf", None)
        if isinstance(skipped, Tensor):
            # A fused step that its scaler forbade moved nothing, whatever the state would tell.
            column = sums[:, UPDATE]
            sums[:, UPDATE] = torch.where(skipped.to(sums.device).reshape(()) > 0, torch.zeros_like(column), column)
        self._is_read = True

    def read_alone(self) -> None:
        """Read gradients and weights where there is no optimizer."""
        self._open()
        for row, (_, parameter) in enumerate(self._parameters):
            self._read_gradient(row, parameter)
            self._read_weight(row, parameter)
        self._is_read = True

    def take(self) -> ParameterNumbers | None:
        """Return what was read since the last call, on the host; None where nothing was."""
        if self._sums is None:
            return None
        if not self._is_read:
            for row, (_, parameter) in enumerate(self._parameters):
                self._read_gradient(row, parameter)
                self._read_weight(row, parameter)
        self._follow(self._sums)
        found = ParameterNumbers(self._sums, tuple(self._has_gradient), self._rows)
        self._sums, self._is_read = None, False
        self._before.clear()
        if self._adam is not None:
            self._adam.settle()
        return found

    def layout(self) -> list[tuple[str, int, tuple[int, int, str], str]]:
        """Return name, number of elements, place and role of every parameter, in the order of the numbers' rows."""
        return [(n, p.numel(), self._places.get(n, (-1, -1, "")), self._roles[n]) for n, p in self._parameters]

    def held(self) -> list[tuple[str, Tensor]]:
        """Return every parameter with its name, in the order of the numbers' rows."""
        return list(self._parameters)

    def rows_of(self, parameters: Iterable[Tensor]) -> tuple[int, ...]:
        """Return the rows of some parameters."""
        return tuple(self._rows[p] for p in parameters if p in self._rows)

    def _open(self) -> None:
        device = self._parameters[0][1].device if self._parameters else torch.device("cpu")
        if self._buffer is None or self._buffer.device != device:
            with torch.inference_mode(False):
                n = len(self._parameters)
                self._buffer = torch.empty((n, N_PARTS), dtype=by_torch.wide_dtype(device), device=device)
        self._sums = self._buffer.fill_(torch.nan)
        self._has_gradient = [parameter.grad is not None for _, parameter in self._parameters]
        self._before.clear()
        self._is_read = False

    def _read_gradient(self, row: int, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is None or is_summand(gradient):
            return
        gradient = here(gradient)
        if gradient.layout != torch.strided:
            # Of an embedding with sparse=True; what is not stored is zero.
            gradient = gradient.coalesce().values()
        self._read(row, GRADIENT, gradient, wants_peak=True)

    def _read_weight(self, row: int, parameter: Tensor) -> None:
        self._read(row, WEIGHT, here(parameter), wants_peak=False)

    def _read(self, row: int, column: int, tensor: Tensor, *, wants_peak: bool) -> None:
        """Write the sum of squares into ``column`` and, for a gradient, the largest magnitude beside it."""
        sums = self._sums
        assert sums is not None
        if sums.is_cpu and by_c.is_float32(tensor):
            out = sums.data_ptr() + 8 * (N_PARTS * row + column)
            by_c.kernel.squares(tensor.data_ptr(), tensor.numel(), out, out + 8 if wants_peak else 0)
            return
        wide = tensor.detach().reshape(-1).to(by_torch.wide_dtype(tensor.device))
        sums[row, column] = torch.dot(wide, wide).to(sums.device)
        if wants_peak:
            sums[row, column + 1] = (wide.abs().max() if wide.numel() else wide.sum()).to(sums.device)

    def _follow(self, sums: Tensor) -> None:
        """Write the cosine of every bias with itself at the sampled step before."""
        table = array("q")
        for row, whole in self._followed:
            parameter, before = here(whole), self._vectors.get(row)
            if before is None or before.shape != parameter.shape:
                self._vectors[row] = parameter.detach().to(torch.float32, copy=True)
            elif parameter is not whole:
                now = parameter.detach().to(torch.float32, copy=True)
                wide = torch.stack([now, before]).to(sums.dtype)
                sums[row, TURN:] = torch.stack([wide[0] @ wide[1], wide[0] @ wide[0], wide[1] @ wide[1]])
                before.copy_(now)
            elif sums.is_cpu and by_c.is_float32(parameter):
                out = sums.data_ptr() + 8 * (N_PARTS * row + TURN)
                table.extend((parameter.data_ptr(), before.data_ptr(), parameter.numel(), out))
            else:
                now = parameter.detach().to(torch.float32)
                sums[row, TURN] = (torch.dot(now, before) / (now.norm() * before.norm())).to(sums.device, sums.dtype)
                before.copy_(now)
        if table:
            by_c.kernel.turns(table.buffer_info()[0], len(table) // 4)


def _distance(after: Tensor, before: Tensor) -> Tensor:
    """Return the squared distance of two tensors, float64."""
    if by_c.is_float32(after, before):
        found = torch.empty(1, dtype=torch.float64)
        by_c.kernel.distance(after.data_ptr(), before.data_ptr(), after.numel(), found.data_ptr())
        return found[0]
    wide = by_torch.wide_dtype(before.device)
    moved = (after.detach().to(wide) - before.to(wide)).reshape(-1)
    return torch.dot(moved, moved)


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
