"""Open the desk of a model: its own, or one of several that belong to one recording."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import nn

from .desk import Desk, Event, OwnDesk, lost
from .errors import RecordingError, RheoscopeError
from .schedule import Sampler
from .silent import SilentWriter
from .writer import Writer

if TYPE_CHECKING:
    from .distributed import Ranks


def opened(
    model: nn.Module, sampler: Sampler, write: Callable[[], Writer], *, is_alone: bool = True
) -> tuple[Writer | SilentWriter, Callable[[Event, Event], Desk]]:
    """Return who writes, and what makes the desk when it is told whom to tell of events.

    Where the model is spread over ranks, every one of them must come here; the first writes.

    Args:
        model: what is attached to.
        sampler: is told of every step's scalars.
        write: opens the writer.
        is_alone: whether nothing is known of other processes that hold parts of the model, beyond what torch's wrappers tell.

    Raises:
        RecordingError: the first rank cannot open the recording.
    """
    from .spread import spread_of

    spread = spread_of(model)
    if spread is None:
        own, notes = write(), _of_one_rank() if is_alone else []
        return own, lambda event, say: OwnDesk(own, sampler, event, notes=notes)  # noqa: ARG005
    from .distributed import LostError, Ranks
    from .joint import JointDesk

    try:
        ranks = Ranks(spread.ranks)
        writer = _joint_writer(ranks, write)
    except LostError as error:
        # As before there were ranks: the first records what it has itself. Not two of them into one folder.
        alone = write() if spread.ranks[0] == dist.get_rank() else SilentWriter(0)
        sentence = lost(spread, error, alone.first_step)

        def desk(event: Event, say: Event) -> Desk:
            say("ranks_lost", sentence)
            return OwnDesk(alone, sampler, event, spread=spread)

        return alone, desk
    return writer, lambda event, say: JointDesk(ranks, spread, writer, sampler, event, say)


def _of_one_rank() -> list[str]:
    """Return in a sentence, where there are other ranks, that theirs is not known to be the same model."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return []
    return [
        f"Other ranks are not measured: this is what rank {dist.get_rank()} of {dist.get_world_size()} saw of its own data. "
        "The model is in no wrapper of torch that spreads it, and has no DTensor; what a library spreads by itself is not joined."
    ]


def _joint_writer(ranks: Ranks, write: Callable[[], Writer]) -> Writer | SilentWriter:
    """Open the writer on the first rank; on the others what stands in for it, or the reason why it cannot be opened."""
    writer: Writer | SilentWriter | None = None
    problem: RheoscopeError | None = None
    if ranks.index == 0:
        try:
            writer = write()
        except RheoscopeError as error:
            problem = error
    first_step, reason = ranks.tell([None if writer is None else writer.first_step, str(problem or "")], 0)
    if problem is not None:
        raise problem
    if first_step is None:
        raise RecordingError(f"The first rank could not open the recording. {reason}")
    return writer or SilentWriter(first_step)
