"""Stand in for the writer on the ranks that write nothing: one rank writes for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .anatomy import Anatomy
from .errors import RecordingError
from .host_copies import ScalarCopies
from .recording import Recording


class SilentWriter:
    """Takes what a writer takes, and writes nothing.

    Attributes:
        first_step: the number of the first step, as the rank that writes has it.
    """

    def __init__(self, first_step: int) -> None:
        """Begin where the rank begins that writes."""
        self.first_step = first_step

    @property
    def recording(self) -> Recording:
        """Refuse.

        Raises:
            RecordingError: always: the recording is where rank 0 writes it.
        """
        raise RecordingError(
            "Expected probe.recording on the first of the ranks that train this model, got it on another, which writes "
            "nothing. Read it where torch.distributed.get_rank() is 0, or load its folder when the run has ended."
        )

    def know(self, anatomy: Anatomy, not_measured: Sequence[str]) -> None:
        """Take what discovery found."""

    def columns(self, name: str, columns: Mapping[str, Any]) -> None:
        """Take columns of a table."""

    def event(self, step: int, kind: str, sentence: str) -> None:
        """Take an event."""

    def add_step(self, row: Mapping[str, Any], scalars: ScalarCopies, groups: Sequence[Mapping[str, Any]] = ()) -> None:
        """Take a step."""

    def flush(self) -> None:
        """Write nothing."""

    def close(self, *, has_failed: bool = False) -> None:
        """Close nothing."""
