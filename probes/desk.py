"""Take in what steps gave, and have it written: at once, where a model is one process's alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from .anatomy import Anatomy
from .host_copies import ScalarCopies
from .parameter_numbers import ParameterNumbers
from .parameters import ParameterTaps
from .pending import Pending
from .reading import Reading
from .sample import Arriving, Sample
from .schedule import Sampler
from .silent import SilentWriter
from .spread import Spread
from .step_gauge import Parts
from .step_words import Words
from .taps import Taps
from .writer import Writer

Event = Callable[[str, str], None]


class Desk(Protocol):
    """What a probe hands its numbers to."""

    @property
    def until(self) -> int | None:
        """The step up to which all steps are sampled, as all ranks agree; None where a process decides alone."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing more is taken in."""

    def agree(self, found: Anatomy | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Anatomy | None:
        """Return the anatomy that all ranks go on with, at a forward with these arguments."""

    def know(self, anatomy: Anatomy, taps: Taps, parameters: ParameterTaps) -> None:
        """Lay out the tables."""

    def hold(
        self, step: int, readings: list[Reading], numbers: ParameterNumbers | None, scale: Tensor | None
    ) -> str | None:
        """Take the numbers of a sampled step; return, once, whose attention was not seen."""

    def close_step(
        self, row: dict[str, Any], scalars: ScalarCopies, groups: Sequence[Mapping[str, Any]], parts: Parts | None
    ) -> None:
        """Take the row of a step."""

    def flush(self, *, only_full: bool = False) -> None:
        """Write what can be written; ``only_full`` where it is worth it."""

    def close(self, *, has_failed: bool) -> None:
        """Write everything; ``has_failed`` where training ended in an exception."""


MakeDesk = Callable[[Event, Event], Desk]


def lost(spread: Spread, error: Exception, step: int) -> str:
    """Return in a sentence that ranks do not join their numbers any longer."""
    return (
        f"Expected {len(spread.ranks)} ranks to join their numbers, got that {error}. From step {step} on the recording holds "
        f"those of rank {spread.ranks[0]} alone: gradients of its own loss, and no parameter that is cut into parts."
    )


class OwnDesk:
    """The desk of a model that is one process's alone."""

    until: int | None = None
    is_idle = False

    def __init__(
        self,
        writer: Writer | SilentWriter,
        sampler: Sampler,
        event: Event,
        *,
        spread: Spread | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """Write with ``writer``; tell ``sampler`` of scalars. Of what is ``spread`` only the own part is known."""
        self._writer, self._sampler, self._event = writer, sampler, event
        self._spread, self._notes = spread, [*notes, *(() if spread is None else spread.notes)]
        self._words = None if spread is None else Words(len(spread.ranks))
        self._pending: Pending | None = None
        self._taps: Taps | None = None

    def agree(self, found: Anatomy | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Anatomy | None:  # noqa: ARG002
        """Return what was found."""
        return found

    def know(self, anatomy: Anatomy, taps: Taps, parameters: ParameterTaps) -> None:
        """Lay out the tables."""
        self._taps = taps
        self._pending = Pending(anatomy, taps.layout, parameters)
        if self._words is not None:
            self._words.know(anatomy, taps.layout, parameters)
        hidden = [*taps.layout.not_measured, *anatomy.problems, *parameters.not_measured, *self._notes]
        self._writer.know(anatomy, hidden)

    def hold(
        self, step: int, readings: list[Reading], numbers: ParameterNumbers | None, scale: Tensor | None
    ) -> str | None:
        """Keep the numbers of a sampled step until they are written."""
        assert self._pending is not None
        assert self._taps is not None
        if self._words is None:
            self._pending.add(step, readings, numbers, scale)
        elif readings or numbers is not None:
            numbers = None if self._spread is not None and self._spread.has_flat_parameters else numbers
            sample = Arriving(step, readings, numbers, scale).sample()
            self._words.hide_parts(sample)
            self._pending.hold(sample)
        self._taps.give_back(readings)
        if self._taps.relations is None:
            return None
        counted, told = self._taps.relations.take()
        self._taps.relations.hold(step, counted)
        return told

    def close_step(
        self,
        row: dict[str, Any],
        scalars: ScalarCopies,
        groups: Sequence[Mapping[str, Any]],
        parts: Parts | None,  # noqa: ARG002
    ) -> None:
        """Keep the row of a step until it is written."""
        if self._words is None:
            self._writer.add_step(row | {"n_ranks": 1}, scalars, groups)
        else:
            self._writer.add_step(self._words.own_row(row, scalars) | {"n_ranks": 1}, ScalarCopies({}), groups)
        told = self._sampler.look(row["step"], scalars)
        if told:
            self._event("triggered", told)

    def hold_sample(self, sample: Sample) -> None:
        """Keep numbers that are on the host until they are written."""
        assert self._pending is not None
        assert self._taps is not None
        self._pending.hold(sample)
        if self._taps.relations is not None:
            self._taps.relations.hold(sample.step, sample.counted)

    def flush(self, *, only_full: bool = False) -> None:
        """Write everything held."""
        if only_full and (self._pending is None or not self._pending.is_full):
            return
        try:
            if self._pending is not None:
                self._pending.write(self._writer.columns)
            if self._taps is not None and self._taps.relations is not None:
                self._taps.relations.write(self._writer.columns)
        finally:
            self._writer.flush()

    def close(self, *, has_failed: bool) -> None:  # noqa: ARG002
        """Write everything held."""
        self.flush()
