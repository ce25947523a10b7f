"""Measure parameters around an optimizer step: gradients as the optimizer saw them, weights, and how far they moved."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .adam import AdamReader
from .anatomy import Anatomy
from .kernels import by_c, by_torch
from .optimizers import Optimizers
from .parameter_numbers import GRADIENT, N_PARTS, TURN, UPDATE, WEIGHT, ParameterNumbers
from .parameter_places import places, roles
from .slots import Slots, outside
from .wrappers import here, is_summand

LONGEST_VECTOR = 65_536  # elements of a bias whose direction is followed


class ParameterTaps:
    """Reads every parameter once a sampled step.

    Under Adam and AdamW everything is read after the step, from the optimizer's own state; under any other optimizer the
    weights are copied before the step, which takes the memory of the parameters once more.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, optimizers: Optimizers | None) -> None:
        """Name and place the parameters; a tied one counts once."""
        self._slots = Slots(model)
        self._parameters = self._slots.parameters
        self._places = places(anatomy)
        axes = {name: p.dim() for name, p in zip(self._slots.names, self._parameters, strict=True) if p is not None}
        self._roles = roles(anatomy, axes)
        self._sizes = [0 if p is None else p.numel() for p in self._parameters]
        self._optimizers = () if optimizers is None else optimizers.all
        self._readers = {id(each): AdamReader(each) for each in self._optimizers if AdamReader.reads(each)}
        self._sums: Tensor | None = None
        self._buffer: Tensor | None = None
        self._has_gradient: list[bool] = []
        self._unread: set[int] = set()
        self._stepped: set[int] = set()
        self._before: dict[int, Tensor] = {}
        self._vectors: dict[int, Tensor] = {}
        self._followed = [
            row
            for row, name in enumerate(self._slots.names)
            if axes[name] == 1 and self._roles[name] in ("bias", "norm_bias") and self._sizes[row] <= LONGEST_VECTOR
        ]
        self._news: list[str] = []
        self._index()
        free = [
            name
            for row, (name, p) in enumerate(zip(self._slots.names, self._parameters, strict=True))
            if self._optimizers and row in self._free and p is not None and p.requires_grad
        ]
        self.not_measured = [*self._slots.not_measured, *outside(free)]
        for each in () if optimizers is None else optimizers.running:
            self.before_step(each, has_closure=True)

    def before_step(self, optimizer: Any, *, has_closure: bool = False) -> None:
        """Read the gradients and copy the weights, where they cannot be read from the optimizer's state afterwards.

        Args:
            optimizer: the one that is about to step.
            has_closure: whether gradients may come while it steps.
        """
        key = id(optimizer)
        if self._sums is None or key in self._stepped:
            self._open()
        self._stepped.add(key)
        reader = self._readers.get(key)
        if reader is not None and reader.is_trusted:
            return
        is_scaled = getattr(optimizer, "grad_scale", None) is not None  # a fused step divides by it
        for row in self._owned.get(key, ()):
            parameter = self._parameters[row]
            assert parameter is not None
            if not is_scaled:
                self._read_gradient(row, parameter)
            if parameter.grad is not None or (has_closure and parameter.requires_grad):
                self._before[row] = here(parameter).detach().clone()

    def after_step(self, optimizer: Any) -> None:
        """Read weights, updates and, under Adam, gradients and second moments."""
        sums, key = self._sums, id(optimizer)
        if sums is None or key not in self._stepped:
            return
        reader = self._readers.get(key)
        done = reader.read(self._rows, sums) if reader is not None and reader.is_trusted is not False else set()
        is_scaled = getattr(optimizer, "grad_scale", None) is not None
        owned = self._owned.get(key, [])
        for row in (*owned, *self._free.intersection(self._unread)):
            parameter, before = self._parameters[row], self._before.pop(row, None)
            self._unread.discard(row)
            if row in done:
                self._has_gradient[row] = True
                if before is None:
                    continue
            if parameter is None:
                continue
            if row in done and reader is not None and before is not None:
                reader.compare(sums[row, UPDATE], here(parameter), before)
            if before is None or is_scaled or not self._has_gradient[row]:
                self._read_gradient(row, parameter)
            if before is not None:
                sums[row, UPDATE] = _distance(here(parameter), before).to(sums.device)
            self._read_weight(row, parameter)
        skipped = getattr(optimizer, "found_inf", None)
        if isinstance(skipped, Tensor):
            # A fused step that its scaler forbade moved nothing, whatever the state would tell.
            column = sums[owned, UPDATE]
            is_forbidden = skipped.to(sums.device).reshape(()) > 0
            sums[owned, UPDATE] = torch.where(is_forbidden, torch.zeros_like(column), column)

    def read_alone(self) -> None:
        """Read gradients and weights where no optimizer stepped."""
        self._open()

    def take(self, *, came_back: bool = False) -> ParameterNumbers | None:
        """Return what was read since the last call; None where nothing was.

        Args:
            came_back: whether gradients reached the activations: parameters without any had one that is gone by now.
        """
        if self._sums is None:
            return None
        missed = self._read_rest()
        unknown = missed if came_back else set()
        self._follow(self._sums)
        states = tuple(
            "some" if has else None if p is None or row in unknown else "none" if p.requires_grad else "frozen"
            for row, (has, p) in enumerate(zip(self._has_gradient, self._parameters, strict=True))
        )
        found = ParameterNumbers(self._sums, tuple(self._has_gradient), self._rows, states, len(unknown))
        self._sums = None
        self._before.clear()
        for reader in self._readers.values():
            reader.settle()
        return found

    def news(self) -> list[str]:
        """Return in sentences what was replaced since the last call."""
        told, self._news = self._news, []
        return told

    def layout(self) -> list[tuple[str, int, tuple[int, int, str], str]]:
        """Return name, number of elements, place and role of every parameter, in the order of the numbers' rows."""
        return [
            (name, n, self._places.get(name, (-1, -1, "")), self._roles[name])
            for name, n in zip(self._slots.names, self._sizes, strict=True)
        ]

    def groups(self) -> list[int | None]:
        """Return the optimizer's group of every parameter, counted on over several optimizers; None for one in no group."""
        found = {row: i for i, members in enumerate(_groups(self._optimizers)) for row in self.rows_of(members)}
        return [found.get(row) for row in range(len(self._parameters))]

    def held(self) -> list[tuple[str, Tensor]]:
        """Return every parameter with its name, in the order of the numbers' rows; one that is gone is empty."""
        pairs = zip(self._slots.names, self._parameters, strict=True)
        return [(name, torch.empty(0) if p is None else p) for name, p in pairs]

    def rows_of(self, parameters: Iterable[Tensor]) -> tuple[int, ...]:
        """Return the rows of some parameters."""
        return tuple(self._rows[p] for p in parameters if p in self._rows)

    def _open(self) -> None:
        device = next((p.device for p in self._parameters if p is not None), torch.device("cpu"))
        if self._buffer is None or self._buffer.device != device:
            with torch.inference_mode(False):
                n = len(self._parameters)
                self._buffer = torch.empty((n, N_PARTS), dtype=by_torch.wide_dtype(device), device=device)
        self._sums = self._buffer.fill_(torch.nan)
        told = self._slots.renew()
        self._news += told
        if told or not self._is_indexed():
            self._index()
        self._has_gradient = [False] * len(self._parameters)
        self._unread = set(range(len(self._parameters)))
        self._stepped.clear()
        self._before.clear()

    def _index(self) -> None:
        """Find the rows of every optimizer's parameters, and those of none."""
        self._rows = {p: row for row, p in enumerate(self._parameters) if p is not None}
        # The lists themselves: an address may be used again.
        self._indexed = [(members, len(members)) for members in _groups(self._optimizers)]
        self._owned = {
            id(each): [self._rows[p] for group in each.param_groups for p in group["params"] if p in self._rows]
            for each in self._optimizers
        }
        self._free = set(range(len(self._parameters))).difference(*self._owned.values())
        for reader in self._readers.values():
            reader.forget()

    def _is_indexed(self) -> bool:
        now = _groups(self._optimizers)
        return len(now) == len(self._indexed) and all(
            members is known and len(members) == n for members, (known, n) in zip(now, self._indexed, strict=True)
        )

    def _read_rest(self) -> set[int]:
        """Read what no optimizer's step had read; return the rows of which none has a gradient left, though they need one."""
        rest, self._unread = self._unread, set()
        for row in rest:
            parameter = self._parameters[row]
            if parameter is not None:
                self._read_gradient(row, parameter)
                self._read_weight(row, parameter)
        if any(self._has_gradient[row] for row in rest):
            return set()
        return {row for row in rest if (p := self._parameters[row]) is not None and p.requires_grad}

    def _read_gradient(self, row: int, parameter: Tensor) -> None:
        gradient = parameter.grad
        self._has_gradient[row] = gradient is not None
        if gradient is None or is_summand(gradient):
            return
        gradient = here(gradient)
        if gradient.layout != torch.strided:
            # Of an embedding with sparse=True; what is not stored is zero.
            gradient = gradient.coalesce().values()
        self._read(row, GRADIENT, gradient, wants_peak=True)

    def _read_weight(self, row: int, parameter: Tensor) -> None:
        if parameter.numel() == 0:
            return  # a library keeps it elsewhere between steps; of one cut into parts this is the size of the whole
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
        for row in self._followed:
            whole, before = self._parameters[row], self._vectors.get(row)
            if whole is None:
                continue
            parameter = here(whole)
            if before is None or before.device != parameter.device or before.shape != parameter.shape:
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


def _groups(optimizers: tuple[Any, ...]) -> list[Any]:
    """Return the lists of parameters of all groups."""
    return [group["params"] for each in optimizers for group in each.param_groups]
