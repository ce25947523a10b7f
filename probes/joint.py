"""Join what the ranks of one model measured, step by step, and hand it to the one rank that writes.

Every ``probe.step`` starts one small collective, the *word* of each rank: which step, whether it was sampled, its loss of
the step before. It is read at the next step, when it has long arrived. Where all ranks say that they sampled a step, and only
then, its numbers are joined by two more collectives, one of sums and one of maxima, which are read when they are written. So
ranks never wait for each other in a step beyond what training makes them wait, and never start what another does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .anatomy import Anatomy
from .desk import Event, OwnDesk, lost
from .distributed import LostError, Ranks
from .host_copies import ScalarCopies
from .joining import Joining
from .meeting import Meeting
from .parameter_numbers import ParameterNumbers
from .parameters import ParameterTaps
from .reading import Reading
from .sample import Arriving
from .schedule import Sampler
from .silent import SilentWriter
from .spread import Spread
from .statistics import ChannelSheet
from .step_gauge import Parts
from .step_words import CLOSES, HAS_NEWS, IS_SAMPLED, STEP, UNTIL, HeldStep, Words
from .taps import Taps
from .writer import Writer

# A rank that closes waits so long for the others: the one that writes, one whose training failed, and any other, whose
# collectives go on without it.
CLOSING_SECONDS, FAILED_SECONDS, LEAVING_SECONDS = 30.0, 1.0, 15.0
MOST_HELD = 64  # steps on their way; then the oldest is waited for


class JointDesk:
    """The desk of one rank of several."""

    def __init__(
        self, ranks: Ranks, spread: Spread, writer: Writer | SilentWriter, sampler: Sampler, event: Event, say: Event
    ) -> None:
        """Join over ``ranks``; ``say(kind, sentence)`` logs and records once."""
        self.until: int | None = -1
        self.is_idle = False
        self._own = OwnDesk(writer, sampler, event, notes=spread.notes)
        self._ranks, self._spread = ranks, spread
        self._writer, self._sampler, self._event, self._say = writer, sampler, event, say
        self._is_on, self._writes = True, ranks.index == 0
        self._meeting = Meeting(ranks, spread)
        self._words = Words(ranks.n)
        self._taps: Taps | None = None
        self._current: HeldStep | None = None
        self._held: deque[HeldStep] = deque()
        self._asked: Any = None  # the words of the step before, on their way
        self._joining: Joining | None = None

    def agree(self, found: Anatomy | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Anatomy | None:
        """Return the anatomy that all ranks go on with: that of the first rank that found one."""
        if not self._is_on:
            return found
        try:
            agreed, told = self._meeting.anatomy(found, args, kwargs)
        except LostError as error:
            self._lose(error)
            return found
        for kind, sentence in told:
            self._say(kind, sentence)
        return agreed

    def know(self, anatomy: Anatomy, taps: Taps, parameters: ParameterTaps) -> None:
        """Lay out the tables."""
        taps.sheet = ChannelSheet
        self._taps = taps
        self._words.know(anatomy, taps.layout, parameters)
        self._own.know(anatomy, taps, parameters)

    def hold(
        self, step: int, readings: list[Reading], numbers: ParameterNumbers | None, scale: Tensor | None
    ) -> str | None:
        """Take the numbers of a sampled step."""
        assert self._taps is not None
        numbers = None if self._spread.has_flat_parameters else numbers
        if not readings and numbers is None:
            return None
        self._current = HeldStep({"step": step}, ScalarCopies({}), arriving=Arriving(step, readings, numbers, scale))
        self._taps.give_back(readings)
        if self._taps.relations is None:
            return None
        self._current.counted, told = self._taps.relations.take()
        return told

    def close_step(
        self, row: dict[str, Any], scalars: ScalarCopies, groups: Sequence[Mapping[str, Any]], parts: Parts | None
    ) -> None:
        """Take the row of a step, read the words of the step before and start those of this one."""
        held, self._current = self._current or HeldStep(row, scalars), None
        held.row, held.scalars, held.groups, held.parts = row, scalars, groups, parts
        self._held.append(held)
        if not self._is_on:
            self._deliver()
            return
        problems: list[Exception] = []
        # What is delivered may decide what the word tells.
        for action in (self._hear, self._deliver, lambda: self._speak(held), self._deliver):
            try:
                action()
            except LostError as error:
                self._lose(error)
            except Exception as error:  # noqa: BLE001 - the others wait for this rank's word
                problems.append(error)
        if problems:
            raise problems[0]

    def flush(self, *, only_full: bool = False) -> None:
        """Write what has been joined."""
        self._deliver()
        self._own.flush(only_full=only_full)

    def close(self, *, has_failed: bool) -> None:
        """Join and write what is left, without waiting long for a rank that does not close."""
        patience = FAILED_SECONDS if has_failed else CLOSING_SECONDS if self._writes else LEAVING_SECONDS
        left, self._current = self._current, None
        try:
            if self._is_on:
                self._hear(patience)
                step = self._held[-1].row["step"] + 1 if self._held else self._writer.first_step
                last = HeldStep({"step": step}, ScalarCopies({}))
                self._asked = self._ranks.gather(self._word(last, closes=True))
                words = self._asked.arrays(patience)[0]
                if len(set(words[:, STEP])) == 1:
                    self._take_in(words)
                for held in self._held:
                    if held.joined is not None:
                        held.joined.arrays(patience)
        except LostError as error:
            self._lose(error)
        finally:
            self._is_on = False
            self._deliver()
            if left is not None and left.arriving is not None and self._writes:
                self._own.flush()
                self._write_own(left)
            self._own.flush()

    def _speak(self, held: HeldStep) -> None:
        """Start this rank's word; one that cannot be said says that the probe closes."""
        if not self._is_on:
            return
        try:
            word = self._word(held)
        except Exception:
            self._lose(LostError("this rank cannot say what it measured"))
            self._ranks.gather([held.row["step"], 0, 0, -1, 1, *Words.nothing()])
            raise
        self._asked = self._ranks.gather(word)

    def _word(self, held: HeldStep, *, closes: bool = False) -> list[float]:
        """Return what this rank says at the end of a step: of this step what is known now, of the one before its numbers."""
        before = next((each for each in reversed(self._held) if each.row["step"] == held.row["step"] - 1), None)
        news = False
        if held.arriving is not None:
            lengths = self._joined().lengths(held.arriving, held.counted)
            agreed = self._joined().agreed
            news = any(agreed.get(name) != length for name, length in lengths.items())
        head = [0.0] * (CLOSES + 1)
        head[STEP], head[IS_SAMPLED], head[HAS_NEWS] = held.row["step"], held.arriving is not None, news
        head[UNTIL], head[CLOSES] = self._sampler.until, closes
        return [*head, *self._words.numbers(before)]

    def _hear(self, patience: float | None = None) -> None:
        """Read the words of the step before, and start to join its numbers where all have some."""
        if self._asked is None:
            return
        words, self._asked = self._asked.arrays(patience)[0], None
        self._take_in(words)
        if len(set(words[:, STEP])) > 1:
            raise LostError(f"they are at different steps ({sorted(set(words[:, STEP].astype(int)))})")
        if words[:, CLOSES].any():
            closed = np.flatnonzero(words[:, CLOSES]).tolist()
            raise LostError(f"rank {self._spread.ranks[closed[0]]} has closed its probe")
        self.until = int(max(-1 if self.until is None else self.until, words[0, UNTIL]))
        is_sampled = words[:, IS_SAMPLED] > 0
        held = next((each for each in self._held if each.row["step"] == words[0, STEP]), None)
        if held is None or not is_sampled.any():
            return
        if not is_sampled.all():
            self._say(
                "ranks_disagree",
                f"Expected all ranks to sample step {held.row['step']}, got {int(is_sampled.sum())} of {len(is_sampled)}: "
                "such a step holds this rank's numbers alone. Give all ranks the same schedule.",
            )
            return
        if words[:, HAS_NEWS].any():
            self._meet(held)
        self._join(held)

    def _meet(self, held: HeldStep) -> None:
        """Agree on a layout with all ranks; waits for them."""
        assert held.arriving is not None
        mine = self._joined().lengths(held.arriving, held.counted)
        if not self._joined().agree(self._ranks.distinct({name: list(lengths) for name, lengths in mine.items()})):
            raise LostError("they hold other blocks, or other parameters")

    def _join(self, held: HeldStep) -> None:
        assert held.arriving is not None
        try:
            sample = held.arriving.sample(self._meeting.n_batches)
            sample.counted = held.counted
            vectors = self._joined().vectors(sample, self._meeting.slot)
        except Exception:
            # The others have started: this rank comes with nothing, and they see it.
            held.layout = self._joined().agreed
            held.joined = self._ranks.reduce(*self._joined().vectors(None, 0))
            raise
        held.layout = self._joined().agreed
        held.joined = self._ranks.reduce(*vectors)

    def _joined(self) -> Joining:
        if self._joining is None:
            self._joining = self._words.joining(self._meeting.n_slots)
        return self._joining

    def _take_in(self, words: np.ndarray) -> None:
        """Keep what the ranks say of the step before theirs."""
        held = next((each for each in self._held if each.row["step"] == words[self._ranks.index, STEP] - 1), None)
        if held is not None:
            held.words = words[:, CLOSES + 1 :]

    def _deliver(self) -> None:
        """Have the oldest steps written whose numbers are all here."""
        while self._held and (not self._is_on or self._is_complete(self._held[0])):
            held = self._held.popleft()
            if not self._writes:
                continue
            try:
                self._write(held)
            except LostError as error:
                self._lose(error)
                self._write_own(held)

    def _is_complete(self, held: HeldStep) -> bool:
        is_here = held.words is not None and (held.joined is None or held.joined.is_here)
        return is_here or len(self._held) > MOST_HELD

    def _write(self, held: HeldStep) -> None:
        if held.words is None or (held.joined is None and held.arriving is not None):
            self._write_own(held)
            return
        sample = None
        if held.joined is not None:
            added, largest = held.joined.arrays(CLOSING_SECONDS)
            if added[0] != self._ranks.n:
                self._write_own(held)
                return
            sample = self._joined().sample(held.row["step"], added, largest, held.layout)
            self._own.hold_sample(sample)
            if self._joined().dropped:
                self._say("not_joined", self._joined().not_joined())
        row, scalars, groups = self._words.row(held, sample, self._meeting.n_slots)
        self._writer.add_step(row, ScalarCopies({}), groups)
        if sample is not None:
            self._writer.columns("ranks", self._words.table(held, self._spread.ranks))
        now = self._held[-1].row["step"] if self._held else row["step"]
        # What rank 0 decides now the others read with its next word.
        self._look(row["step"], scalars, now + 1)

    def _write_own(self, held: HeldStep) -> None:
        """Write what this rank alone has measured."""
        if held.arriving is not None:
            sample = held.arriving.sample()
            sample.counted = held.counted
            self._words.hide_parts(sample)
            self._own.hold_sample(sample)
        if "seconds" in held.row:
            own = self._words.own_row(held.row, held.scalars)
            self._writer.add_step(own | {"n_ranks": 1}, ScalarCopies({}), held.groups)
            if not self._is_on:
                self._look(held.row["step"], held.scalars)

    def _look(self, step: int, scalars: ScalarCopies, now: int | None = None) -> None:
        told = self._sampler.look(step, scalars, now=now)
        if told:
            self._event("triggered", told)

    def _lose(self, error: Exception) -> None:
        """Go on alone."""
        if not self._is_on:
            return
        self._is_on, self._asked, self.until = False, None, None
        self.is_idle = not self._writes
        step = self._held[0].row["step"] if self._held else self._writer.first_step
        self._say("ranks_lost", lost(self._spread, error, step))
