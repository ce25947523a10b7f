"""Put probes into a Trainer of Hugging Face's transformers, or one that extends it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rheoscope.probes.errors import ProbeError
from rheoscope.probes.recording import Recording
from torch import Tensor

from .record import TrainingRecord, folder_of
from .replacements import Replacements
from .resuming import place

HIDDEN = (
    "The Trainer logged a loss of {} up to step {}, while that of a micro-batch was not finite: it leaves such losses out "
    "(logging_nan_inf_filter). Read the loss recorded here, or pass logging_nan_inf_filter=False."
)


class AttachedTrainer:
    """Records the next ``trainer.train()``, and then leaves the trainer as it was. Made by ``attach_trainer``."""

    def __init__(self, trainer: Any, folder: Path, *, label: str, **options: Any) -> None:
        """Put the callback into the trainer, and the recording around its training."""
        from transformers import TrainerCallback

        attached = self

        class RheoscopeCallback(TrainerCallback):
            """Tells of what happens inside the loop."""

            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
                """Begin: the model and the optimizer are as they will be called."""
                attached._begin(state.global_step)

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
                """Compare what is logged with what happened."""
                attached._look(logs or {}, state.global_step)

        self._trainer, self._folder = trainer, folder
        self._label, self._options = label, options
        self._record: TrainingRecord | None = None
        self._is_ill: Tensor | None = None
        self._is_told = False
        self._callback = RheoscopeCallback()
        self._replacements = Replacements()
        trainer.add_callback(self._callback)
        self._replacements.put_on(trainer, "train", self._around_train)
        self._replacements.put_on(trainer, "_clip_grad_norm", self._around_clip)

    @property
    def recording(self) -> Recording:
        """What was recorded.

        Raises:
            RecordingError: ``trainer.train()`` was not called, is not over, or this rank writes nothing.
        """
        return (self._record or TrainingRecord(self._folder, label="")).recording

    @property
    def recordings(self) -> tuple[Recording, ...]:
        """What was recorded of each model, where the trainer trains several."""
        return () if self._record is None else self._record.recordings

    def detach(self) -> None:
        """Leave the trainer as it was; it is done by itself when training ends."""
        self._replacements.put_back()
        self._trainer.remove_callback(self._callback)

    def _begin(self, n_done: int) -> None:
        if self._record is not None:
            return
        folder, more = place(self._folder, n_done)
        self._record = TrainingRecord(folder, label=self._label, on_loss=self._see, **self._options, **more)
        self._record.start([self._trainer.optimizer])

    def _see(self, loss: Tensor) -> None:
        # Read where the trainer itself waits for its losses: when it logs.
        is_ill = ~torch.isfinite(loss.detach())
        self._is_ill = is_ill if self._is_ill is None else self._is_ill.to(is_ill.device) | is_ill

    def _look(self, logs: dict[str, Any], step: int) -> None:
        logged, is_ill = logs.get("loss"), self._is_ill
        if logged is None or is_ill is None or self._record is None:
            return
        self._is_ill = None
        if bool(is_ill) and math.isfinite(float(logged)) and not self._is_told:
            self._is_told = True
            self._record.event("hidden_loss", HIDDEN.format(logged, step))

    def _around_train(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def train(*args: Any, **kwargs: Any) -> Any:
            failed: BaseException | None = None
            try:
                return original(*args, **kwargs)
            except BaseException as error:
                failed = error
                raise
            finally:
                self.detach()
                if self._record is not None:
                    self._record.close(failed)

        return train

    def _around_clip(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def _clip_grad_norm(*args: Any, **kwargs: Any) -> Any:
            norm = original(*args, **kwargs)
            if self._record is not None:
                self._record.clipped(norm)
            return norm

        return _clip_grad_norm


def attach_trainer(
    trainer: Any, folder: str | Path | None = None, *, every: int = 10, label: str = "", **options: Any
) -> AttachedTrainer:
    """Record what ``trainer.train()`` trains: call it before.

    The norm of the gradient is that before clipping beside the one the optimizer saw; the loss is that of every micro-batch as it
    was, also where the Trainer's log leaves out losses that are not finite. A run that goes on from a checkpoint goes on with
    its recording, where ``folder`` holds it.

    Args:
        trainer: of transformers, or of a library that extends it.
        folder: where the recording is written; None for ``runs/<date and time>``.
        every: a step in so many is sampled in full.
        label: a name for the run.
        options: more of what ``attach`` takes.

    Returns:
        Its ``recording``, after the training.

    Raises:
        ProbeError: ``trainer`` is none.
    """
    if not (callable(getattr(trainer, "train", None)) and callable(getattr(trainer, "add_callback", None))):
        raise ProbeError(
            f"Expected a transformers.Trainer, got {type(trainer).__name__}. Pass the trainer whose train() is called."
        )
    return AttachedTrainer(trainer, folder_of(folder), label=label, every=every, **options)
