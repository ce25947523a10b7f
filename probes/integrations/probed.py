"""One model of a program under its probe: its optimizers, the loss that is open, and when a step of it has ended."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rheoscope.probes.door import Door
from rheoscope.probes.errors import RecordingError
from rheoscope.probes.hooked import Fail
from rheoscope.probes.optimizers import stepping
from rheoscope.probes.probe import Probe
from rheoscope.probes.recording import Recording
from rheoscope.probes.wrappers import bare, shell
from torch import Tensor, nn


class Probed:
    """A model that a program trains, and its probe.

    A step has ended when all its optimizers have stepped; where one of them waits, when the next forward begins.

    Attributes:
        model: the model as it was found, in its wrappers; None when it was let go of.
        name: of its class.
        folder: where it is recorded.
        n_steps: how many steps were closed.
        n_idle: how many steps others closed since.
        is_open: whether it is recorded still.
        recording: what was recorded, once it is closed; None on a rank that writes nothing.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Any], probe: Probe, folder: Path, fail: Fail) -> None:
        """Watch the model's forwards, in front of its probe."""
        self.model: nn.Module | None = model
        self.folder = folder
        self.recording: Recording | None = None
        self._probe: Probe | None = probe
        self.name = type(bare(model)).__name__
        self.n_steps = self.n_idle = 0
        self.is_open = True
        self._parameters = frozenset(id(parameter) for parameter in model.parameters())
        self._expected = {id(stepping(each)) for each in optimizers}
        self._all = frozenset(self._expected)
        self._stepped: set[int] = set()
        self._before: set[int] = set()
        self._loss: Tensor | None = None
        self._fail = fail
        self._front: Door | None = None

    @property
    def parameters(self) -> frozenset[int]:
        """The ``id`` of each of its parameters, as it was found."""
        return self._parameters

    def holds(self, optimizer: Any) -> bool:
        """Return whether ``optimizer`` is one of its own."""
        return id(optimizer) in self._all

    def watch(self) -> None:
        """Hear of forwards before the probe does: its first one has ended."""
        if self._front is None and self.model is not None:
            self._front = Door(shell(self.model), self._forward_begins, lambda _: None, self._fail)

    def add_loss(self, loss: Tensor, scaler: Any) -> None:
        """Take in the loss of one backward: micro-batches add up."""
        if scaler is not None and self._probe is not None:
            self._probe.gauge.scaled_by(scaler)
        # The program may go on to write into its loss.
        value = loss.detach().to(torch.promote_types(loss.dtype, torch.float32), copy=True)
        self._loss = value if self._loss is None else self._loss.to(value.device) + value

    def before_step(self, optimizer: Any) -> bool:
        """Hear that ``optimizer`` is about to step; return whether that closed a step."""
        return id(optimizer) in self._stepped and self._close_step()

    def after_step(self, optimizer: Any) -> bool:
        """Hear that ``optimizer`` has stepped, or was kept from it by its scaler; return whether that closed a step."""
        self._stepped.add(id(optimizer))
        return self._stepped >= self._expected and self._close_step()

    def clipped(self, norm: Any) -> None:
        """Take in the norm before clipping, where it was not torch that clipped."""
        if self._probe is not None:
            self._probe.gauge.clipped_from(norm)

    def event(self, kind: str, sentence: str) -> None:
        """Record something that happened."""
        if self._probe is not None:
            self._probe.event(kind, sentence)

    def close(self, error: BaseException | None = None) -> None:
        """Close the recording, with what ended the training where something did, and let go of the model."""
        if self._probe is None:
            return
        if self._stepped:
            self._close_step()
        probe, self._probe, self.model, self.is_open = self._probe, None, None, False
        if self._front is not None:
            self._front.close()
            self._front = None
        probe.__exit__(type(error) if error is not None else None, error, None)
        with contextlib.suppress(RecordingError):
            self.recording = probe.recording

    def _forward_begins(self, *_: object) -> None:
        if self._stepped:
            self._close_step()

    def _close_step(self) -> bool:
        # An optimizer that never steps is not waited for at every step.
        if self._stepped < self._expected and self._stepped == self._before:
            self._expected = set(self._stepped)
        self._before, self._stepped = self._stepped, set()
        loss, self._loss = self._loss, None
        self.n_steps += 1
        self.n_idle = 0
        if self._probe is not None:
            self._probe.step(loss)
        return True
