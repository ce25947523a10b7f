"""Put probes into a loop of Hugging Face's Accelerate, as one of its trackers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker
from rheoscope.probes.recording import Recording

from .record import TrainingRecord, folder_of


class RheoscopeTracker(GeneralTracker):  # type: ignore[misc]  # untyped
    """Records what an Accelerate loop trains, from its making to ``accelerator.end_training()``.

    Make it before ``accelerator.prepare``, and pass it as ``Accelerator(log_with=[RheoscopeTracker("runs/a")])``. Steps are those
    of the optimizer: where gradients are accumulated, those in which they are synchronised. The norm of the gradient is that
    before ``accelerator.clip_grad_norm_`` beside the one the optimizer saw.
    """

    name = "rheoscope"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self, folder: str | Path | None = None, *, every: int = 10, label: str = "", **options: Any) -> None:
        """Begin to record.

        Args:
            folder: where the recording is written; None for ``runs/<date and time>``.
            every: a step in so many is sampled in full.
            label: a name for the run.
            options: more of what ``attach`` takes.
        """
        super().__init__()
        self._record = TrainingRecord(folder_of(folder), label=label, every=every, **options)
        self._record.start()

    @property
    def tracker(self) -> TrainingRecord:
        """The record, for ``accelerator.get_tracker("rheoscope", unwrap=True)``."""
        return self._record

    @property
    def recording(self) -> Recording:
        """What was recorded.

        Raises:
            RecordingError: ``accelerator.end_training()`` was not called, nothing was trained, or this rank writes nothing.
        """
        return self._record.recording

    @property
    def recordings(self) -> tuple[Recording, ...]:
        """What was recorded of each model, where several are trained."""
        return self._record.recordings

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Take nothing: a recording holds no arguments of the program."""

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Take nothing: what is recorded was measured."""

    def finish(self) -> None:
        """End."""
        self._record.close()
