"""Measure a model while it trains, step by step, and hand what was measured to the writer."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from .anatomy import Anatomy
from .batches import Arguments
from .compiled import EAGER, IN_GRAPH, compilation
from .desk import Desk
from .discovery import discover
from .door import Door
from .errors import ProbeError
from .faults import Faults
from .hooked import Hook
from .host_copies import ScalarCopies
from .parameters import NO_GRADIENTS, ParameterNumbers, ParameterTaps
from .reading import Reading
from .recording import Recording
from .relations import RelationTaps
from .scalars import count_of, loss_of, name_of
from .schedule import Sampler
from .silent import SilentWriter
from .step_gauge import StepGauge
from .taps import MOST_READINGS, Taps
from .wrappers import bare, shell
from .writer import Writer

MakeDesk = Callable[[Callable[[str, str], None], Callable[[str, str], None]], Desk]
MOST_TRIES = 3  # forwards on which discovery is tried before the probe does without


class Probe:
    """Measures a model while it trains; a context manager. Made by ``attach``."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        writer: Writer | SilentWriter,
        *,
        desk: MakeDesk,
        sampler: Sampler,
        scaler: Any,
        anatomy: Anatomy | None,
        strict: bool,
        attention: bool,
    ) -> None:
        """Hook the model's door and the optimizer; the other hooks come with the first forward."""
        self.model, self.optimizer = bare(model), optimizer
        self._compilation = compilation(shell(model))
        self._writer = writer
        self._faults = Faults(self._event, strict=strict)
        self._gauge = StepGauge(self.model, optimizer, scaler)
        self._taps: Taps | None = None
        self._parameters: ParameterTaps | None = None
        self._sees_attention = attention
        self._step = writer.first_step
        self._desk = desk(self._event, self._faults.say)
        self._n_tries = self._n_forwards = self._n_steps = self._n_before = 0
        self._n_measured: int | None = None
        self._read: ParameterNumbers | None = None
        self._is_closed = False
        self._sampler = sampler
        sampler.choose(self._step)
        self._started = time.perf_counter()
        self._given = anatomy
        if anatomy is not None and self._desk.until is None:
            self._know(anatomy)
        self._door = Door(shell(model), self._forward_begins, self._forward_ends)
        self._handles: list[Any] = []
        if optimizer is not None:
            before, after = Hook(self._before_step), Hook(self._after_step)
            self._handles.append(optimizer.register_step_pre_hook(before))
            self._handles.append(optimizer.register_step_post_hook(after))

    def __enter__(self) -> Self:
        """Return the probe."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the recording, also when training raised."""
        if error is not None:
            self._event("interrupted", f"Training stopped with {type(error).__name__}: {str(error)[:300]}")
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
        self._faults.guard("step", self._advance)

    def close(self) -> None:
        """Take the hooks off and close the recording; safe to call twice."""
        self._close(has_failed=False)

    def _close(self, *, has_failed: bool) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._door.close()
        for handle in self._handles:
            handle.remove()
        self._gauge.close()
        if self._taps is not None:
            self._taps.detach()
            self._taps.leave_graph()
        try:
            self._faults.guard("close", self._keep_unstepped)
            self._faults.guard("close", lambda: self._desk.close(has_failed=has_failed))
        finally:
            self._faults.guard("close", self._writer.close)

    def _forward_begins(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._faults.measure("forward", lambda: self._begin(args, kwargs))

    def _begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._n_forwards += 1
        self._gauge.forward_begins()
        if self._taps is None and self._n_tries < MOST_TRIES:
            self._n_tries += 1
            self._discover(args, kwargs)
        if self._taps is None or not self._is_sampled():
            return
        self._taps.attach()
        if not self._taps.begin(args, kwargs) and self._n_steps == 0:
            self._faults.say(
                "never_stepped",
                f"Expected probe.step(loss) after every optimizer.step(), got {MOST_READINGS} forwards without one: "
                "they are recorded as one step, and the following are not. Call probe.step(loss) in the training loop.",
            )
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
        if self._taps is not None:
            told = self._taps.end(failed=has_failed)
            if told:
                self._faults.say("compiled", told)

    def _know(self, anatomy: Anatomy) -> None:
        relations = RelationTaps(self.model, anatomy, self._faults.measure, exact_logits=self._sees_attention)
        self._taps = Taps(self.model, anatomy, self._faults.fail, relations, self._compilation)
        self._parameters = ParameterTaps(self.model, anatomy, self.optimizer)
        self._desk.know(anatomy, self._taps, self._parameters)
        if self._compilation != "none":
            self._event("compiled", IN_GRAPH if self._taps.is_in_graph else EAGER)

    def _is_sampled(self) -> bool:
        return self._sampler.is_on and not (self._faults.are_too_many or self._desk.is_idle)

    def _before_step(self, *_: object) -> None:
        parameters = self._parameters
        if parameters is not None and self._is_sampled():
            self._faults.measure("optimizer", parameters.before_step)

    def _after_step(self, *_: object) -> None:
        self._gauge.updated()
        parameters = self._parameters
        if parameters is not None and self._is_sampled():
            self._faults.measure("optimizer", parameters.after_step)

    def _keep(self) -> None:
        """Write what a sampled step measured: the one copy to the host."""
        self._n_measured = self._read = None
        if self._taps is None or self._parameters is None or not self._is_sampled():
            return
        readings = self._taps.take()
        self._n_measured = len(readings)
        if self.optimizer is None:
            self._parameters.read_alone()
        elif not self._gauge.n_updates and self._gauge.scale is None:
            self._event(
                "no_update",
                "Expected optimizer.step() before probe.step(loss), got none in this step: parameters are not measured "
                "in it. A loss scaler that skips a step leaves this too: pass it as scaler= to attach.",
            )
        if any(reading.is_repeated for reading in readings):
            self._faults.say(
                "repeated_backward",
                "Expected one backward through each forward, got several: gradients are those of the last alone. Add "
                "the losses up before one backward to measure their sum.",
            )
        self._read = self._parameters.take()
        if self._read is not None and not any(self._read.has_gradient) and any(each.came_back for each in readings):
            self._faults.say("no_gradients", NO_GRADIENTS)
            self._read = self._read.without_gradients()
        self._hold(readings, self._read)

    def _close_step(self, loss: Tensor | float | None, batch_id: object, n_tokens: int | None) -> None:
        now, groups = time.perf_counter(), self._gauge.groups()
        (scalar, no_scalar), (count, no_count) = loss_of(loss), count_of(n_tokens)
        row = {
            "step": self._step,
            "n_tokens": count,
            "batch_id": name_of(batch_id),
            "lr": groups[0]["lr"] if groups else None,
            "seconds": now - self._started,
            "micro_batches": self._n_measured,
            "is_sampled": self._n_measured is not None,
            "memory_bytes": self._gauge.memory() if self._n_measured is not None else None,
        }
        self._started = now
        had_forward = self._n_forwards > self._n_before
        # Copied now: a loop may scale its loss in place afterwards.
        scalars = ScalarCopies({"loss": scalar, **self._gauge.scalars(self._read, had_forward=had_forward)})
        self._desk.close_step(row, scalars, groups, self._gauge.parts(self._parameters if self._read else None))
        for problem in (no_scalar, no_count):
            if problem:
                raise ProbeError(problem)

    def _advance(self) -> None:
        if self._n_steps == 0 and self._n_forwards == 0:
            self._faults.say(
                "never_forwarded",
                f"Expected forwards of the attached {type(self.model).__name__} in training mode, got none before "
                "probe.step(loss): only the loss is recorded. Attach to the module that the loop calls, in train(); one "
                "compiled whole by model.compile() shows no forward, torch.compile(model) does.",
            )
        was_sampled = self._n_measured is not None
        self._n_steps += 1
        self._n_before = self._n_forwards
        self._gauge.restart()
        self._step += 1
        self._sampler.choose(self._step, self._desk.until)
        if self._taps is not None and self._taps.is_attached and not self._is_sampled():
            self._taps.detach()
        if was_sampled:
            self._desk.flush(only_full=True)

    def _keep_unstepped(self) -> None:
        """Write what was measured since the last step; say so when ``step`` was never called."""
        if self._taps is None or not self._taps.readings:
            return
        readings = self._taps.take()
        if self._n_steps == 0:
            self._faults.say(
                "never_stepped",
                "Expected probe.step(loss) after every optimizer.step(), got none: all forwards are recorded as one "
                "step. Call probe.step(loss) in the training loop.",
            )
        else:
            self._event("open_step", f"The last forward ({len(readings)} micro-batches) was not closed by probe.step.")
        self._hold(readings, self._parameters.take() if self._parameters is not None else None)

    def _hold(self, readings: list[Reading], parameters: ParameterNumbers | None) -> None:
        told = self._desk.hold(self._step, readings, parameters, self._gauge.scale)
        if told:
            self._event("attention_not_seen", told)

    def _refuse(self) -> None:
        raise ProbeError("Expected an open probe, got probe.step after close: nothing is recorded. Attach a new one.")

    def _event(self, kind: str, sentence: str) -> None:
        self._writer.event(self._step, kind, sentence)
