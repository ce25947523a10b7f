"""Keep what the last steps of a run began with, and write it as a bundle where the loss spikes."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rheoscope.probes.batches import Arguments
from rheoscope.probes.desk import Desk, Event, MakeDesk
from rheoscope.probes.desk_around import DeskAround
from rheoscope.probes.door import Door
from rheoscope.probes.errors import ProbeError
from rheoscope.probes.host_copies import ScalarCopies
from rheoscope.probes.optimizers import Optimizers
from rheoscope.probes.replay import copied, state_now
from rheoscope.probes.schedule import Sampler
from rheoscope.probes.step_gauge import Parts
from rheoscope.probes.wrappers import bare, shell
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from .bundle import Bundle, Forward, KeptStep

SPACING = 4  # steps between two copies of weights and optimizer state, of which two are kept
MOST_FORWARDS = 8  # of one step
MOST_BUNDLES = 3  # of one run: the first spikes are the causes
USUAL = 16  # steps whose median loss is the usual one
LONG = 64  # steps whose median learning rate is
RANKS = "Bundles of spikes are not kept: several ranks train this model."
CLOSURE = "Bundles of spikes are not kept: the optimizer calls a closure."


def with_bundles(
    desk: MakeDesk, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], sampler: Sampler, folder: Path
) -> MakeDesk:
    """Return what makes a desk that keeps the bundles of spikes as well."""

    def made(event: Event, say: Event) -> Desk:
        inner = desk(event, say)
        if inner.until is not None:
            event("bundle", RANKS)
            return inner
        return BundleDesk(inner, model, Optimizers(optimizer), sampler, folder, event)

    return made


@dataclass
class _Step:
    """One step as it is kept in memory."""

    step: int
    forwards: list[Forward] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    gradient_norm: Tensor | None = None
    scalars: ScalarCopies | None = None

    @property
    def loss(self) -> float | None:
        """Its loss, where it is on the host."""
        return None if self.scalars is None or not self.scalars.is_here else self.scalars.values().get("loss")


@dataclass(frozen=True)
class _Snapshot:
    """Weights and optimizer state as a step began with them."""

    step: int
    weights: dict[str, Tensor]
    state: dict[str, dict[str, Any]]


class BundleDesk(DeskAround):
    """Hands everything on, keeps what the last steps began with, and writes it once a spike is told of."""

    def __init__(
        self, inner: Desk, model: nn.Module, optimizers: Optimizers, sampler: Sampler, folder: Path, event: Event
    ) -> None:
        """Hook the model's door and the optimizers; bundles go into ``folder``."""
        super().__init__(inner)
        self._model, self._optimizers, self._sampler, self._event = bare(model), optimizers, sampler, event
        self._folder, self._n_bundles = folder, 0
        self._steps: deque[_Step] = deque(maxlen=3 * SPACING)
        self._snapshots: deque[_Snapshot] = deque(maxlen=2)
        self._losses: deque[float] = deque(maxlen=USUAL)
        self._rates: deque[tuple[float, ...]] = deque(maxlen=LONG)
        self._spiked: int | None = None
        self._now: _Step | None = None
        self._next = 0
        self._is_over = False
        self._error: Exception | None = None
        self._door = Door(shell(model), self._begin, lambda _: None, self._fail)
        optimizers.watch(self._before, lambda _: None, self._fail)

    def close_step(
        self, row: dict[str, Any], scalars: ScalarCopies, groups: Sequence[Mapping[str, Any]], parts: Parts | None
    ) -> None:
        """Hand on, and write the bundle of a spike that has come to light."""
        nonfinite = self._sampler.nonfinite
        super().close_step(row, scalars, groups, parts)
        now, self._now = self._now, None
        self._next = row["step"] + 1
        error, self._error = self._error, None
        if error is not None:
            raise error
        if self._is_over or now is None:
            return
        now.step, now.scalars = row["step"], scalars
        self._steps.append(now)
        if self._sampler.nonfinite not in (None, nonfinite):
            self._write(self._sampler.nonfinite)
        if self._sampler.spiked not in (None, self._spiked):
            self._spiked = self._sampler.spiked
            self._write(self._spiked)
        self._rates.append(tuple(float(group.get("lr") or 0.0) for group in now.groups))
        if (loss := now.loss) is not None and math.isfinite(loss):
            self._losses.append(loss)

    def close(self, *, has_failed: bool) -> None:
        """Take the hooks off, and hand on."""
        self._stop()
        super().close(has_failed=has_failed)

    def _stop(self) -> None:
        self._is_over = True
        self._door.close()
        self._optimizers.close()
        self._steps.clear()
        self._snapshots.clear()

    def _fail(self, error: Exception) -> None:
        self._error = error

    def _begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self._is_over:
            return
        if self._now is None:
            self._now = _Step(self._next)
            if self._next % SPACING == 0 or not self._snapshots:
                self._snapshots.append(self._snapshot(self._next))
        if len(self._now.forwards) < MOST_FORWARDS:
            batch, state = Arguments(*tree_map(copied, (args, dict(kwargs)))), state_now()
            autocast = tuple((kind, str(dtype).removeprefix("torch.")) for kind, dtype in state["autocast"].items())
            self._now.forwards.append(Forward(batch, state["cpu"], tuple(state["cuda"]), autocast))

    def _snapshot(self, step: int) -> _Snapshot:
        named = dict(self._model.named_parameters())
        names = {id(parameter): name for name, parameter in named.items()}
        held = [*named.items(), *self._model.named_buffers()]
        state: dict[str, dict[str, Any]] = {}
        for optimizer in self._optimizers.all:
            for parameter, own in optimizer.state.items():
                if (name := names.get(id(parameter))) is not None:
                    state[name] = {key: _own(value) for key, value in own.items()}
        return _Snapshot(step, {name: tensor.detach().clone() for name, tensor in held}, state)

    def _before(self, optimizer: Any, has_closure: bool) -> None:  # noqa: ARG002
        if self._is_over or self._now is None:
            return
        if has_closure:
            self._event("bundle", CLOSURE)
            self._stop()
            return
        self._now.groups = [_numbers(group) for group in self._optimizers.param_groups]
        given = [p.grad for group in self._optimizers.param_groups for p in group["params"] if p.grad is not None]
        if given:
            self._now.gradient_norm = torch.nn.utils.get_total_norm([gradient.detach() for gradient in given])

    def _write(self, step: int) -> None:
        """Write the bundle of the spike of ``step``, from the earliest snapshot before it."""
        snapshot = next((each for each in self._snapshots if each.step < step), None)
        kept = [each for each in self._steps if snapshot is not None and each.step >= snapshot.step]
        if snapshot is None or step not in {each.step for each in kept} or not self._losses:
            self._event("bundle", f"The spike of step {step} has no bundle: what it began with is not kept any longer.")
            return
        if self._n_bundles >= MOST_BUNDLES:
            return
        self._n_bundles += 1
        bundle = Bundle(
            step,
            statistics.median(self._losses),
            self._class(),
            self._names(),
            snapshot.weights,
            snapshot.state,
            tuple(_kept(each) for each in kept),
            tuple(map(statistics.median, zip(*self._rates, strict=False))),
        )
        try:
            path = bundle.save(self._folder / f"step-{step}")
        except (ProbeError, OSError) as error:
            self._event("bundle", f"The spike of step {step} has no bundle: {error!s:.300}")
            return
        self._event(
            "bundle",
            f"What the spike of step {step} began with is kept in {path.parent.name}/{path.name}: rheoscope bisect says which "
            "change of the steps before removes it.",
        )

    def _class(self) -> str:
        kinds = {type(optimizer) for optimizer in self._optimizers.all}
        kind = kinds.pop()
        is_torch = not kinds and len(self._optimizers.all) == 1 and getattr(torch.optim, kind.__name__, None) is kind
        return kind.__name__ if is_torch else ""

    def _names(self) -> tuple[tuple[str, ...], ...]:
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        groups = self._optimizers.param_groups
        return tuple(tuple(names[id(p)] for p in group["params"] if id(p) in names) for group in groups)


def _own(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in group.items():
        if name != "params":
            plain = value.item() if isinstance(value, Tensor) and value.numel() == 1 and value.is_cpu else value
            if plain is None or isinstance(plain, bool | int | float | str):
                found[name] = plain
            elif isinstance(plain, tuple | list) and all(isinstance(item, bool | int | float) for item in plain):
                found[name] = tuple(plain)
    return found


def _kept(each: _Step) -> KeptStep:
    norm = each.gradient_norm
    return KeptStep(
        each.step,
        tuple(each.forwards),
        tuple(each.groups),
        None if norm is None else float(norm),
        each.loss,
    )
