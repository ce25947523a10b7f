"""Say, when the loss of a run spikes, whose update raised it: the weights and batches of the last steps are kept for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from .anatomy import Anatomy
from .desk import Desk, Event, MakeDesk
from .desk_around import DeskAround
from .door import Door
from .errors import RheoscopeError
from .host_copies import ScalarCopies
from .parameters import ParameterTaps
from .replay import Replay
from .schedule import Sampler
from .silent import SilentWriter
from .step_gauge import Parts
from .taps import Taps
from .wrappers import shell
from .writer import Writer

MOST_BATCHES = 4  # micro-batches of one step whose loss is attributed
ALIKE = 0.1  # of the loss: further apart dropout, precision or the loop's own loss makes a difference worth a sentence
RANKS = "Spikes are not attributed: several ranks train this model."
GONE = (
    "The spike of step {} is not attributed: the weights and batches of this step and the one before are not both kept."
)
CANNOT = "The spike of step {} is not attributed: {}"
OTHER = (
    "The loop's loss was {:.4g}, the one of the model's output in evaluation and float32 {:.4g}: dropout, precision or the loss "
    "itself makes a difference here."
)


def with_blame(desk: MakeDesk, model: nn.Module, writer: Writer | SilentWriter, sampler: Sampler) -> MakeDesk:
    """Return what makes a desk that attributes the spikes that ``sampler`` tells of as well."""

    def made(event: Event, say: Event) -> Desk:
        inner = desk(event, say)
        if inner.until is not None:
            event("blame", RANKS)
            return inner
        return BlameDesk(inner, model, writer, sampler, event)

    return made


class BlameDesk(DeskAround):
    """Hands everything on, keeps what the last steps began with, and attributes a spike of the loss once it is told of."""

    def __init__(
        self, inner: Desk, model: nn.Module, writer: Writer | SilentWriter, sampler: Sampler, event: Event
    ) -> None:
        """Hand on to ``inner``; write rows with ``writer``, and sentences as ``event``."""
        super().__init__(inner)
        self._model, self._writer, self._sampler, self._event = model, writer, sampler, event
        self._told: int | None = None
        self._replay = Replay(model)
        self._anatomy: Anatomy | None = None
        self._error: Exception | None = None
        self._step = writer.first_step
        self._door = Door(shell(model), self._begin, lambda _: None, self._fail)

    def know(self, anatomy: Anatomy, taps: Taps, parameters: ParameterTaps) -> None:
        """Keep the anatomy, and hand on."""
        self._anatomy = anatomy
        super().know(anatomy, taps, parameters)

    def close_step(
        self, row: dict[str, Any], scalars: ScalarCopies, groups: Sequence[Mapping[str, Any]], parts: Parts | None
    ) -> None:
        """Hand on, and attribute the spike that this step or one shortly before it is found to be.

        What goes wrong while the batch was kept comes out here: the probe guards a step's end, and training goes on.
        """
        self._step = row["step"] + 1
        super().close_step(row, scalars, groups, parts)
        error, self._error = self._error, None
        if error is not None:
            raise error
        step = self._sampler.spiked
        if step is not None and step != self._told and self._anatomy is not None:
            self._told = step
            self._attribute(step, self._anatomy, scalars.values().get("loss") if step == row["step"] else None)

    def close(self, *, has_failed: bool) -> None:
        """Take the hooks off, and hand on."""
        self._door.close()
        super().close(has_failed=has_failed)

    def _begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._replay.keep(self._step, args, kwargs)

    def _fail(self, error: Exception) -> None:
        self._error = error

    def _attribute(self, step: int, anatomy: Anatomy, loss: float | None) -> None:
        # Loaded only where a spike comes: captum is not needed before.
        from .attribution.blame import update_between

        before, now = self._replay.begun(step - 1), self._replay.begun(step)
        if before is None or now is None:
            self._event("blame", GONE.format(step))
            return
        try:
            found = update_between(
                self._model,
                now[1][:MOST_BATCHES],
                before[0],
                now[0],
                previous=before[1][:MOST_BATCHES],
                anatomy=anatomy,
                step=step,
            )
        except RheoscopeError as error:
            self._event("blame", CANNOT.format(step, error))
            return
        rows = [dict(row) for row in found.rows]
        told = f"Spike of step {step}. {found}"
        own = next(row["value"] for row in rows if row["method"] == "loss_after")
        if loss is not None and abs(loss - own) > ALIKE * abs(loss):
            told += " " + OTHER.format(loss, own)
        names = dict.fromkeys(name for row in rows for name in row)
        self._writer.columns("attributions", {name: [row.get(name) for row in rows] for name in names})
        self._event("blame", told)
