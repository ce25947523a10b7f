"""Record whatever is trained inside of a with statement, with no other line changed."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rheoscope.probes.errors import RecordingError
from rheoscope.probes.recording import Recording
from torch import Tensor
from torch.optim import Optimizer

from .script import ScriptProbes

logger = logging.getLogger("rheoscope")


class TrainingRecord:
    """Probes on everything that is trained while it is on; a context manager. Made by ``record``.

    Attributes:
        recordings: once it is closed, a recording of each model that was trained, in the order in which they were found; empty
            on a rank that writes nothing.
    """

    def __init__(
        self, folder: Path, *, label: str, on_loss: Callable[[Tensor], None] = lambda _: None, **options: Any
    ) -> None:
        """Prepare."""
        self.recordings: tuple[Recording, ...] = ()
        self._folder = folder
        self._is_over = False
        self._probes = ScriptProbes(
            folder, label=label, say=logger.warning, options=options, at_hard_exit=self.close, on_loss=on_loss
        )

    @property
    def recording(self) -> Recording:
        """The recording of the first model.

        Raises:
            RecordingError: nothing was recorded, or it is still open.
        """
        if not self.recordings:
            raise RecordingError(
                f"Expected a closed recording in {str(self._folder)!r}, got none: training is not over, or no optimizer of torch "
                "stepped, or another rank writes it. Ask for it after training, on the first rank."
            )
        return self.recordings[0]

    def start(self, optimizers: Iterable[Any] = ()) -> None:
        """Begin; ``optimizers`` are those that exist already."""
        self._probes.start()
        self._probes.know(optimizers)

    def event(self, kind: str, sentence: str) -> None:
        """Record something that happened."""
        self._probes.event(kind, sentence)

    def clipped(self, norm: Any) -> None:
        """Take in the norm of the gradient before clipping, from whoever clips without torch."""
        self._probes.clipped(norm)

    def close(self, error: BaseException | None = None) -> None:
        """End, with what ended the training where something did; safe to call twice."""
        if self._is_over:
            return
        self._is_over = True
        taken = self._probes.finish(error)
        self.recordings = tuple(each.recording for each in taken if each.recording is not None)

    def __enter__(self) -> Self:
        """Begin, with all optimizers that exist."""
        self.start(each for each in gc.get_objects() if issubclass(type(each), Optimizer))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self.close(error)


def record(folder: str | Path | None = None, *, every: int = 10, label: str = "", **options: Any) -> TrainingRecord:
    """Put probes on whatever is trained inside of a with statement; the training is left as it is.

    A step ends when the optimizers of a model have stepped; its loss is the sum of what backward was called on. Several models
    are kept apart: the first is recorded in ``folder``, others in folders of their own in there.

    Example::

        with rs.record("runs/a") as run:
            train()
        rs.write_report(run.recording, "report.html")

    Args:
        folder: where the recording is written; None for ``runs/<date and time>``.
        every: a step in so many is sampled in full.
        label: a name for the run.
        options: more of what ``attach`` takes.

    Returns:
        A context manager with ``recordings`` and ``recording``.
    """
    return TrainingRecord(folder_of(folder), label=label, every=every, **options)


def folder_of(given: str | Path | None) -> Path:
    """Return where to write."""
    return Path(given) if given is not None else Path("runs") / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S-%f")
