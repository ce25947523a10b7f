"""Put probes into Lightning's Trainer, as a callback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from rheoscope.probes.recording import Recording

from .record import TrainingRecord, folder_of
from .resuming import place


class RheoscopeCallback(Callback):
    """Records what a ``lightning.Trainer`` fits.

    The norm of the gradient is that before clipping beside the one the optimizer saw; several optimizers, manual optimization,
    accumulation and the strategies that wrap the module in DistributedDataParallel are followed. A fit that goes on from a
    checkpoint goes on with the recording in ``folder``; one that begins anew writes beside it.
    """

    def __init__(self, folder: str | Path | None = None, *, every: int = 10, label: str = "", **options: Any) -> None:
        """Prepare.

        Args:
            folder: where the recording is written; None for ``runs/<date and time>``.
            every: a step in so many is sampled in full.
            label: a name for the run.
            options: more of what ``attach`` takes.
        """
        super().__init__()
        self._folder, self._label = folder, label
        self._options: dict[str, Any] = {"every": every, **options}
        self._record: TrainingRecord | None = None

    @property
    def recording(self) -> Recording:
        """What was recorded of the last fit.

        Raises:
            RecordingError: nothing was fitted, the fit is not over, or this rank writes nothing.
        """
        return (self._record or TrainingRecord(folder_of(self._folder), label="")).recording

    @property
    def recordings(self) -> tuple[Recording, ...]:
        """What was recorded of each model, where several are trained."""
        return () if self._record is None else self._record.recordings

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Begin: the optimizers are there, and sanity checks are over."""
        folder, more = place(folder_of(self._folder), trainer.global_step)
        self._record = TrainingRecord(folder, label=self._label, **self._options, **more)
        self._record.start(trainer.optimizers)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """End."""
        self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """End with what ended the fit."""
        self._end(exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        """End, whatever came before."""
        self._end()

    def __getstate__(self) -> dict[str, Any]:
        """Copy what it was made with: a record that is open belongs to this process."""
        return self.__dict__ | {"_record": None}

    def _end(self, error: BaseException | None = None) -> None:
        if self._record is not None:
            self._record.close(error)
