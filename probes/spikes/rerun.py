"""Run the steps before a spike again, with one thing changed, and say how high the loss is at its end."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from rheoscope.probes.batches import call
from rheoscope.probes.errors import ProbeError
from rheoscope.probes.losses import LossFunction, default_loss
from rheoscope.probes.replay import as_it_was
from rheoscope.probes.untouched import untouched
from torch import Tensor, nn
from torch.optim import Optimizer

from .bundle import Bundle, Forward, KeptStep

# A batch is unlike the others when its loss is: median absolute deviations as for spikes in training, at least a tenth.
FEWEST, MANY, FLOOR = 3, 6.0, 0.1
CLIPPED = 0.999  # of the gradient's own norm: below it the loop has clipped or scaled it
MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]


@dataclass(frozen=True)
class Change:
    """What is changed in the steps before a spike; nothing as it is made.

    Attributes:
        batches: by step, the step whose batches it is given instead of its own.
        is_float32: whether autocast is off.
        rates: by number of a parameter group, what its learning rate is multiplied by; -1 stands for every group.
        frozen: names of parameters that no update reaches.
        clip: the norm to which gradients are clipped; None as the loop has it.
    """

    batches: Mapping[int, int] = field(default_factory=dict)
    is_float32: bool = False
    rates: Mapping[int, float] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    clip: float | None = None


@dataclass(frozen=True)
class End:
    """Where a run of the steps ended.

    Attributes:
        own: loss of the spike's own batch with the weights that its step began with.
        others: mean loss of all other batches of the bundle with these weights.
        moved: distance of these weights from those at the start.
        weights: them, by name.
    """

    own: float
    others: float
    moved: float
    weights: Mapping[str, Tensor]


class Rerun:
    """Runs the steps of one bundle on one model, which is left as it was."""

    def __init__(
        self, model: nn.Module, bundle: Bundle, make: MakeOptimizer | None = None, loss_fn: LossFunction | None = None
    ) -> None:
        """Take the bundle's model, built as for the run.

        Raises:
            ProbeError: the model is not the bundle's, or its optimizer is unknown and ``make`` is not given.
        """
        self._model, self._bundle, self._loss_fn = model, bundle, loss_fn
        self._named = dict(model.named_parameters())
        held = self._named | dict(model.named_buffers())
        shapes = {name: tensor.shape for name, tensor in bundle.weights.items()}
        apart = [name for name in {**shapes, **held} if name not in held or shapes.get(name) != held[name].shape]
        if apart:
            raise ProbeError(
                f"Expected the model of the run, got one that differs in {apart[0]!r}. Build it as the training script does."
            )
        if make is None and not bundle.optimizer:
            raise ProbeError(
                "Expected an optimizer of torch.optim in the bundle, got another one. Pass optimizer=, a function that is given "
                "parameter groups and returns it."
            )
        self._make = make or getattr(torch.optim, bundle.optimizer)
        self._held = held
        self.ratios: dict[int, float] = {}  # by step, the gradient's norm as the loop had it over that of the loss
        self.limit = math.inf  # to which the loop clips
        self.ill: set[int] = set()  # steps whose batch is unlike the others

    def base(self) -> End:
        """Run the steps as they were, and learn how the loop scales and clips its gradients."""
        with self._as_the_run():
            self.ill = _unlike(self._losses(Change()))
        end = self.run(Change())
        largest = max(self.ratios.values(), default=1.0)
        clipped = [
            each.gradient_norm
            for each in self._bundle.before
            if each.gradient_norm is not None and self.ratios.get(each.step, largest) < largest * CLIPPED
        ]
        self.limit = min(clipped, default=math.inf)
        return end

    def run(self, change: Change) -> End:
        """Run the steps before the spike with a change, and return where they end."""
        with self._as_the_run():
            optimizer = self._optimizer()
            is_base = change == Change()
            given = {each.step: each for each in self._bundle.steps}
            for each in self._bundle.before:
                self._step(
                    each, given[change.batches.get(each.step, each.step)].forwards, optimizer, change, is_base=is_base
                )
            return self._end(change)

    @contextmanager
    def _as_the_run(self) -> Iterator[None]:
        mine = {name: tensor.detach().clone() for name, tensor in self._held.items()}
        flags = {name: parameter.requires_grad for name, parameter in self._named.items()}
        with untouched(self._model, training=True):
            try:
                self._put(self._bundle.weights)
                yield
            finally:
                self._put(mine)
                for name, parameter in self._named.items():
                    parameter.requires_grad_(flags[name])

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._held.items():
                tensor.copy_(values[name])

    def _optimizer(self) -> Optimizer:
        first = self._bundle.before[0].groups
        groups = [
            dict(numbers) | {"params": [self._named[name] for name in names]}
            for numbers, names in zip(first, self._bundle.names, strict=True)
        ]
        optimizer = self._make(groups)
        for name, own in self._bundle.state.items():
            parameter = self._named[name]
            optimizer.state[parameter] = {
                key: value.detach().clone().to(parameter.device if value.dim() else value.device)
                if isinstance(value, Tensor)
                else value
                for key, value in own.items()
            }
        for parameter in self._named.values():
            parameter.grad = None
        return optimizer

    def _step(
        self,
        each: KeptStep,
        forwards: tuple[Forward, ...],
        optimizer: Optimizer,
        change: Change,
        *,
        is_base: bool,
    ) -> None:
        if not each.groups:
            return  # the loop made no update
        for number, (group, numbers) in enumerate(zip(optimizer.param_groups, each.groups, strict=True)):
            group.update(numbers)
            group["lr"] = group["lr"] * change.rates.get(number, 1.0) * change.rates.get(-1, 1.0)
        optimizer.zero_grad(set_to_none=True)
        for forward in forwards:
            with torch.enable_grad():
                self._loss(forward, change).backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self._named.values() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        if is_base and each.gradient_norm is not None and norm > 0:
            self.ratios[each.step] = each.gradient_norm / norm
        factor = self._factor(each, norm, change, is_base=is_base)
        if factor != 1.0:
            torch._foreach_mul_(gradients, factor)
        held = {name: self._named[name].detach().clone() for name in change.frozen if name in self._named}
        optimizer.step()
        with torch.no_grad():
            for name, value in held.items():
                self._named[name].copy_(value)

    def _factor(self, each: KeptStep, norm: float, change: Change, *, is_base: bool) -> float:
        """Return what the loop multiplies this gradient by: its scale, and what clipping leaves."""
        if is_base:
            ratio = self.ratios.get(each.step, 1.0)
            return 1.0 if abs(ratio - 1) < 1 - CLIPPED else ratio
        scale = max(self.ratios.values(), default=1.0)
        scale = 1.0 if abs(scale - 1) < 1 - CLIPPED else scale
        limit = self.limit if change.clip is None else min(self.limit, change.clip)
        return scale * min(1.0, limit / (scale * norm)) if norm > 0 and math.isfinite(norm) else scale

    def _loss(self, forward: Forward, change: Change) -> Tensor:
        state = forward.state | ({"autocast": {}} if change.is_float32 else {})
        with as_it_was(state):
            output = call(self._model, forward.batch)
            return (
                default_loss(output, forward.batch) if self._loss_fn is None else self._loss_fn(output, forward.batch)
            )

    def _end(self, change: Change) -> End:
        losses, start = self._losses(change), self._bundle.weights
        with torch.no_grad():
            moved = sum(float((p.double() - start[name].double()).square().sum()) for name, p in self._named.items())
        own = losses.pop(self._bundle.step)
        others = [loss for loss in losses.values() if not math.isnan(loss)]
        is_known = len(others) == len(losses) and losses
        return End(
            own,
            statistics.fmean(others) if is_known else math.nan,
            math.sqrt(moved),
            {name: parameter.detach().clone() for name, parameter in self._named.items()},
        )

    def _losses(self, change: Change) -> dict[int, float]:
        """Return the loss of every step's batches with the weights as they are."""
        with torch.no_grad():
            return {
                each.step: statistics.fmean(float(self._loss(forward, change)) for forward in each.forwards)
                for each in self._bundle.steps
                if each.forwards
            }


def _unlike(losses: Mapping[int, float]) -> set[int]:
    """Return the steps whose batch has another loss than the others, all with the weights that the first step began with."""
    known = [loss for loss in losses.values() if math.isfinite(loss)]
    found = {step for step, loss in losses.items() if not math.isfinite(loss)}
    if len(known) > FEWEST:
        middle = statistics.median(known)
        spread = 1.4826 * statistics.median(abs(loss - middle) for loss in known)
        limit = max(MANY * spread, FLOOR * abs(middle))
        found |= {step for step, loss in losses.items() if abs(loss - middle) > limit}
    return found
