"""Measure how far the loss of a step's own batch falls by the update, beside what its gradient promised.

Along an update d of gradient g the loss changes by ``g d + d H d / 2 + ...``. Over ``g d`` that is 1 where the loss is straight,
a half at the bottom of a parabola, 0 where the update went twice as far, and below 0 where the loss rose: the update is larger
than the curvature allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from .batches import Arguments, call
from .compiled import compilation
from .desk import Desk, Event, MakeDesk
from .desk_around import DeskAround
from .door import Door
from .host_copies import ScalarCopies
from .losses import default_loss
from .optimizers import Optimizers
from .replay import as_it_was, copied, state_now
from .schedule import Sampler
from .step_gauge import Parts
from .untouched import untouched
from .wrappers import shell

ALIKE = 1e-3  # of the loss: further apart the loop's loss is not the one that the output gives
OTHER_LOSS = (
    "Decrease ratios are not measured: the loss of step {} is {:.6g}, and the one that the model's output gives {:.6g}."
)
RANKS = "Decrease ratios are not measured: several ranks train this model."
COMPILED = (
    "Decrease ratios are not measured: the model is compiled, and the same forward cannot be run beside its graph."
)
FAILED = "Decrease ratios are not measured from step {} on: {}: {}"


def with_overshoot(
    desk: MakeDesk, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], sampler: Sampler
) -> MakeDesk:
    """Return what makes a desk that measures the decrease ratio of every sampled step as well."""

    def made(event: Event, say: Event) -> Desk:
        inner = desk(event, say)
        if inner.until is not None:
            event("decrease_ratio", RANKS)
            return inner
        if compilation(shell(model)) != "none":
            event("decrease_ratio", COMPILED)
            return inner
        return OvershootDesk(inner, Overshoot(model, Optimizers(optimizer), sampler), event)

    return made


class Overshoot:
    """Runs the batch of a sampled step before and after its update: two forwards, without gradients, as the loop's own ran.

    Random state, buffers, flags and gradients are put back. A step of several micro-batches, under a loss scaler, or whose
    optimizer calls a closure is not measured.
    """

    def __init__(self, model: nn.Module, optimizers: Optimizers, sampler: Sampler) -> None:
        """Hook the model's door and the optimizers."""
        self._model, self._optimizers, self._sampler = model, optimizers, sampler
        self.error: Exception | None = None
        self._restart()
        self._door = Door(shell(model), self._begin, lambda _: None, self._fail)
        optimizers.watch(self._before, self._after, self._fail)

    def take(self) -> tuple[float, float, float] | None:
        """Return the loss before and after the update, and what gradient times update is; None where they are not known."""
        batch, before, promised = self._batch, self._loss, self._promised
        try:
            if self.error is not None or batch is None or before is None or promised is None or self._n_forwards != 1:
                return None
            return float(before), float(self._loss_of(*batch)), float(promised)
        except Exception as error:  # noqa: BLE001 - training goes on
            self._fail(error)
            return None
        finally:
            self._restart()

    def close(self) -> None:
        """Take the hooks off."""
        self._door.close()
        self._optimizers.close()

    def _restart(self) -> None:
        self._n_forwards = 0
        self._batch: tuple[Arguments, dict[str, Any]] | None = None
        self._loss: Tensor | None = None
        self._promised: Tensor | None = None
        self._held: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def _begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self.error is not None or not self._sampler.is_on:
            return
        self._n_forwards += 1
        if self._n_forwards == 1:
            self._batch = Arguments(*tree_map(copied, (args, dict(kwargs)))), state_now()

    def _before(self, optimizer: Any, has_closure: bool) -> None:
        if self.error is not None or self._batch is None or self._n_forwards != 1 or has_closure:
            return
        if self._loss is None:
            self._loss = self._loss_of(*self._batch)
        moving = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._held[id(optimizer)] = [(p, p.detach().clone()) for p in moving]

    def _after(self, optimizer: Any) -> None:
        with torch.no_grad():
            for parameter, old in self._held.pop(id(optimizer), []):
                if parameter.grad is not None:
                    mine = (parameter.grad.double() * (parameter.double() - old.double())).sum()
                    self._promised = mine if self._promised is None else self._promised + mine

    def _loss_of(self, batch: Arguments, state: dict[str, Any]) -> Tensor:
        with untouched(self._model), torch.no_grad(), as_it_was(state):
            return default_loss(call(self._model, batch), batch).detach().double()

    def _fail(self, error: Exception) -> None:
        self.error = error
        self._restart()


class OvershootDesk(DeskAround):
    """Hands everything on, and writes the decrease ratio into the rows of steps."""

    def __init__(self, inner: Desk, overshoot: Overshoot, event: Event) -> None:
        """Hand on to ``inner``; tell ``event`` why nothing is measured."""
        super().__init__(inner)
        self._overshoot, self._event = overshoot, event
        self._is_over = False

    def close_step(
        self, row: dict[str, Any], scalars: ScalarCopies, groups: Sequence[Mapping[str, Any]], parts: Parts | None
    ) -> None:
        """Hand on the row with ``decrease_ratio``."""
        super().close_step(row | {"decrease_ratio": self._ratio(row, scalars)}, scalars, groups, parts)

    def close(self, *, has_failed: bool) -> None:
        """Take the hooks off, and hand on."""
        self._overshoot.close()
        super().close(has_failed=has_failed)

    def _ratio(self, row: dict[str, Any], scalars: ScalarCopies) -> float | None:
        if self._is_over:
            return None
        found = self._overshoot.take()
        if self._overshoot.error is not None:
            error = self._overshoot.error
            self._stop(FAILED.format(row["step"], type(error).__name__, str(error)[:200]))
        if found is None:
            return None
        before, after, promised = found
        known = scalars.values()
        loss, clipped = known.get("loss"), known.get("clip_coefficient")
        if loss is None or known.get("loss_scale") is not None:
            return None
        if not abs(loss - before) <= ALIKE * abs(before):
            self._stop(OTHER_LOSS.format(row["step"], loss, before))
            return None
        # A gradient that was clipped is that of the loss times the coefficient.
        promised = promised / clipped if clipped else promised
        return (after - before) / promised if promised else None

    def _stop(self, sentence: str) -> None:
        self._is_over = True
        self._event("decrease_ratio", sentence)
        self._overshoot.close()
