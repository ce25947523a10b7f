"""Measure a model while it trains, step by step, and hand what was measured to the writer."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from . import complaints
from .anatomy import Anatomy
from .at_exit import at_exit
from .batches import Arguments
from .compiled import EAGER, IN_GRAPH, compilation
from .desk import MakeDesk
from .discovery import discover
from .door import Door
from .errors import ProbeError
from .faults import Faults
from .host_copies import ScalarCopies
from .optimizers import Optimizers
from .parameter_numbers import ParameterNumbers
from .parameters import ParameterTaps
from .reading import Reading
from .recording import Recording
from .relations import RelationTaps
from .replay import Replay
from .scalars import count_of, loss_of, name_of
from .schedule import Sampler
from .silent import SilentWriter
from .step_gauge import StepGauge
from .taps import Taps
from .wrappers import bare, shell
from .writer import Writer

MOST_TRIES = 3  # forwards on which discovery is tried before the probe does without


class Probe:
    """Measures a model while it trains; a context manager. Made by ``attach``."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None,
        writer: Writer | SilentWriter,
        *,
        desk: MakeDesk,
        sampler: Sampler,
        scaler: Any,
        anatomy: Anatomy | None,
        strict: bool,
        attention: bool,
        replay: bool,
    ) -> None:
        """Hook the model's door and the optimizer; the other hooks come with the first forward."""
        self.model, self.optimizer = bare(model), optimizer
        self.optimizers = None if optimizer is None else Optimizers(optimizer)
        self._compilation = compilation(shell(model))
        self._writer = writer
        self._faults = Faults(self.event, strict=strict)
        self.gauge = StepGauge(self.model, self.optimizers, scaler, self._faults.guard)
        self._taps: Taps | None = None
        self._parameters: ParameterTaps | None = None
        self._sees_attention = attention
        self._step = writer.first_step
        self._desk = desk(self.event, self._faults.say)
        self._n_tries = self._n_forwards = self._n_steps = self._n_before = 0
        self._n_measured: int | None = None
        self._read: ParameterNumbers | None = None
        self._is_closed = False
        self._sampler = sampler
        sampler.choose(self._step)
        self._started = time.perf_counter()
        # Ranks would have to run a step again together.
        self._replay = Replay(self.model) if replay and self._desk.until is None else None
        self._given = anatomy
        if anatomy is not None and self._desk.until is None:
            self._know(anatomy)
        self.door = Door(shell(model), self._forward_begins, self._forward_ends, partial(self._faults.fail, "forward"))
        if self.optimizers is not None:
            self.optimizers.watch(self._before_step, self._after_step, partial(self._faults.fail, "optimizer"))
        self._take_back_exit = at_exit(self._close_left)

    def __enter__(self) -> Self:
        """Return the probe."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the recording, also when training raised."""
        if error is not None:
            self.event("interrupted", f"Training stopped with {type(error).__name__}: {str(error)[:300]}")
        self._close(has_failed=error is not None)

    @property
    def anatomy(self) -> Anatomy | None:
        """What discovery found; None before the first forward."""
        return self._taps.anatomy if self._taps else None

    @property
    def recording(self) -> Recording:
        """The recording so far.

        Raises:
            RecordingError: the folder is gone or damaged.
        """
        if not self._is_closed:
            self._faults.guard("recording", self._desk.flush)
        return self._writer.recording

    def step(self, loss: Tensor | float | None = None, *, batch_id: object = None, n_tokens: int | None = None) -> None:
        """Close one optimizer step: call it after ``optimizer.step()``, once, whatever the number of micro-batches.

        Args:
            loss: the step's loss, a scalar; it is copied to the host only when the step is written.
            batch_id: anything that names the batch; kept as text.
            n_tokens: tokens in the step.
        """
        if self._is_closed:
            self._faults.guard("step", self._refuse)
            return
        # Each on its own: where one part fails the others are kept.
        self._faults.guard("step", self._keep)
        self._faults.guard("step", lambda: self._close_step(loss, batch_id, n_tokens))
        self._faults.guard("step", self._explain)
        self._faults.guard("step", self._advance)

    def close(self) -> None:
        """Take the hooks off and close the recording; safe to call twice."""
        self._close(has_failed=False)

    def _close(self, *, has_failed: bool) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._take_back_exit()
        with contextlib.ExitStack() as rest:
            # Each on its own, from the last to the first: where one fails the others are done.
            for close in (self._writer.close, self._desk.close):
                rest.callback(self._faults.guard, "close", partial(close, has_failed=has_failed))
            for part in (self._keep_unstepped, *self._ends()):
                rest.callback(self._faults.guard, "close", part)

    def _ends(self) -> list[Callable[[], None]]:
        """Return what takes the hooks off."""
        taps = [] if self._taps is None else [self._taps.leave_graph, self._taps.detach]
        watched = [] if self.optimizers is None else [self.optimizers.close]
        return [*taps, self.gauge.close, *watched, self.door.close]

    def _forward_begins(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._faults.measure("forward", lambda: self._begin(args, kwargs))

    def _begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._n_forwards += 1
        self.gauge.forward_begins()
        if self._replay is not None:
            self._replay.keep(self._step, args, kwargs)
        if self._taps is None and self._n_tries < MOST_TRIES:
            self._n_tries += 1
            self._discover(args, kwargs)
        if self._taps is None or not self._is_sampled():
            return
        self._taps.attach()
        if not self._taps.begin(args, kwargs) and self._n_steps == 0:
            self._faults.say("never_stepped", complaints.MANY_FORWARDS)
            self._desk.flush()

    def _discover(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Find the anatomy, and agree on it with other ranks, who find it at the same forward."""
        found: list[Anatomy] = [] if self._given is None else [self._given]
        # What a forward warns of comes again, from the loop's own; reentrant checkpointing warns without need.
        with warnings.catch_warnings(action="ignore"):
            if not found:
                self._faults.guard("forward", lambda: found.append(discover(self.model, Arguments(args, dict(kwargs)))))
            agreed = self._desk.agree(found[0] if found else None, args, kwargs)
        if agreed is not None:
            self._know(agreed)

    def _forward_ends(self, has_failed: bool) -> None:
        self._faults.guard("forward", lambda: self._end(has_failed=has_failed))

    def _end(self, *, has_failed: bool) -> None:
        if self._taps is not None and (told := self._taps.end(failed=has_failed)):
            self._faults.say("compiled", told)

    def _know(self, anatomy: Anatomy) -> None:
        relations = RelationTaps(self.model, anatomy, self._faults.measure, exact_logits=self._sees_attention)
        self._taps = Taps(self.model, anatomy, self._faults.fail, relations, self._compilation)
        self._parameters = ParameterTaps(self.model, anatomy, self.optimizers)
        self._desk.know(anatomy, self._taps, self._parameters)
        if self._compilation != "none":
            self.event("compiled", IN_GRAPH if self._taps.is_in_graph else EAGER)

    def _is_sampled(self) -> bool:
        return self._sampler.is_on and not (self._faults.are_too_many or self._desk.is_idle)

    def _before_step(self, optimizer: Any, has_closure: bool) -> None:
        parameters = self._parameters
        if parameters is not None and self._is_sampled():
            self._faults.measure("optimizer", lambda: parameters.before_step(optimizer, has_closure=has_closure))

    def _after_step(self, optimizer: Any) -> None:
        self._faults.guard("optimizer", self.gauge.updated)
        parameters = self._parameters
        if parameters is not None and self._is_sampled():
            self._faults.measure("optimizer", lambda: parameters.after_step(optimizer))

    def _keep(self) -> None:
        """Write what a sampled step measured: the one copy to the host."""
        self._n_measured = self._read = None
        if self._taps is None or self._parameters is None or not self._is_sampled():
            return
        readings = self._taps.take()
        self._n_measured = len(readings)
        if self.optimizer is None:
            self._parameters.read_alone()
        elif not self.gauge.n_updates and self.gauge.scale is None:
            self._faults.say("no_update", complaints.NO_UPDATE)
        if any(reading.is_repeated for reading in readings):
            self._faults.say("repeated_backward", complaints.REPEATED_BACKWARD)
        came_back = any(reading.came_back for reading in readings)
        self._read = self._parameters.take(came_back=came_back)
        if self._read is not None and self._read.are_gone:
            self._faults.say("gradients_gone", complaints.GRADIENTS_GONE)
        for told in self._parameters.news():
            self._faults.say("replaced", told, key=told)
            self.gauge.follow(self.model)
        self._hold(readings, self._read)

    def _close_step(self, loss: Tensor | float | None, batch_id: object, n_tokens: int | None) -> None:
        now, groups = time.perf_counter(), self.gauge.groups()
        (scalar, no_scalar), (count, no_count) = loss_of(loss), count_of(n_tokens)
        seconds = now - self._started if now >= self._started else None
        row = {"step": self._step, "n_tokens": count, "batch_id": name_of(batch_id), "seconds": seconds}
        row |= self.gauge.row(groups, self._n_measured)
        self._started = now
        found = self.gauge.scalars(self._read, had_forward=self._n_forwards > self._n_before)
        # Copied now: a loop may scale its loss in place afterwards.
        scalars = ScalarCopies({"loss": scalar, **found})
        self._desk.close_step(row, scalars, groups, self.gauge.parts(self._parameters if self._read else None))
        if no_scalar or no_count:
            raise ProbeError(no_scalar or no_count)

    def _advance(self) -> None:
        if self._n_steps == 0 and self._n_forwards == 0:
            self._faults.say("never_forwarded", complaints.NEVER_FORWARDED.format(type(self.model).__name__))
        was_sampled = self._n_measured is not None
        self._n_steps += 1
        self._n_before = self._n_forwards
        self.gauge.restart()
        if self.optimizers is not None:
            self.optimizers.settle()
        self._step += 1
        self._sampler.choose(self._step, self._desk.until)
        if self._taps is not None and self._taps.is_attached and not self._is_sampled():
            self._taps.detach()
        if was_sampled:
            self._desk.flush(only_full=True)

    def _explain(self) -> None:
        """Run a step again whose loss was not finite, where it was kept."""
        step, self._sampler.nonfinite = self._sampler.nonfinite, None
        if step is not None and self._replay is not None and self.anatomy is not None:
            self._replay.tell(step, self.anatomy, self._writer, self.door)

    def _keep_unstepped(self) -> None:
        """Write what was measured since the last step; say so when ``step`` was never called."""
        if self._taps is None or not self._taps.readings or self._faults.are_too_many:
            return
        readings = self._taps.take()
        if self._n_steps == 0:
            self._faults.say("never_stepped", complaints.NEVER_STEPPED)
        else:
            self.event("open_step", f"The last forward ({len(readings)} micro-batches) was not closed by probe.step.")
        self._hold(readings, self._parameters.take() if self._parameters is not None else None)

    def _hold(self, readings: list[Reading], parameters: ParameterNumbers | None) -> None:
        told = self._desk.hold(self._step, readings, parameters, self.gauge.scale)
        if told:
            self.event("attention_not_seen", told)

    def _close_left(self) -> None:
        self.event("left_open", complaints.LEFT_OPEN)
        self.close()

    def _refuse(self) -> None:
        raise ProbeError("Expected an open probe, got probe.step after close: nothing is recorded. Attach a new one.")

    def event(self, kind: str, sentence: str) -> None:
        """Record something that happened in the step."""
        self._writer.event(self._step, kind, sentence)
