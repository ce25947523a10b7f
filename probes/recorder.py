"""Record training step by step: the probe that ``attach`` puts on a model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .anatomy import Anatomy
from .batches import Arguments
from .discovery import discover
from .errors import ProbeError, RheoscopeError
from .log import Log
from .manifest import manifest
from .parameters import ParameterTaps, bias_rows
from .recording import Recording
from .schema import STATISTICS, TABLES
from .taps import Taps

FLUSH_EVERY = 50  # steps whose loss is kept on the device before it is written
MOST_MICRO_STEPS = 64  # forwards measured in one step; more are not
MOST_FAULTS = 20  # errors inside the probe before it gives up measuring
logger = logging.getLogger("rheoscope")


class Probe:
    """Measures a model while it trains; a context manager. Made by ``attach``."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        folder: Path | None,
        *,
        every: int,
        anatomy: Anatomy | None,
        resume: bool,
        strict: bool,
        label: str,
    ) -> None:
        """Open the recording; hooks come with the first forward."""
        self.model, self.optimizer, self.every, self.strict = model, optimizer, every, strict
        self._log = Log(folder, resume=resume)
        self._taps: Taps | None = None
        self._parameters: ParameterTaps | None = None
        self._manifest = manifest(model, every=every, label=label)
        self._events: list[dict[str, Any]] = []
        self._steps: list[dict[str, Any]] = []
        self._losses: list[Tensor | float | None] = []
        self._step = self._first_step = 0
        self._n_forwards = self._n_faults = 0
        self._is_writable, self._is_closed, self._is_discovering = True, False, False
        self._has_stepped = False
        self._started = time.perf_counter()
        if resume and folder is not None and (folder / "manifest.json").exists():
            self._continue(folder)
        if anatomy is not None:
            self._know(anatomy)
        self._handles: list[Any] = [
            model.register_forward_pre_hook(self._forward_begins, with_kwargs=True, prepend=True),
            model.register_forward_hook(self._forward_ends, always_call=True),
        ]
        if optimizer is not None:
            self._handles.append(
                optimizer.register_step_pre_hook(lambda *_: self._guard("optimizer", self._before_step))
            )
            self._handles.append(
                optimizer.register_step_post_hook(lambda *_: self._guard("optimizer", self._after_step))
            )
        self._write_manifest()

    def __enter__(self) -> Self:
        """Return the probe."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the recording, also when training raised."""
        if error is not None:
            self._event("interrupted", f"Training stopped with {type(error).__name__}: {str(error)[:300]}")
        self.close()

    @property
    def anatomy(self) -> Anatomy | None:
        """What discovery found; None before the first forward."""
        return self._taps.anatomy if self._taps else None

    @property
    def recording(self) -> Recording:
        """The recording so far.

        Raises:
            RecordingError: the folder is gone or damaged.
        """
        if self._log.folder is not None:
            return Recording.load(self._log.folder)
        return Recording(self._manifest, self.anatomy or Anatomy(), self._log.memory())

    def step(self, loss: Tensor | float | None = None, *, batch_id: object = None, n_tokens: int | None = None) -> None:
        """Close one optimizer step: call it after ``optimizer.step()``, once, whatever the number of micro-batches.

        Args:
            loss: the step's loss, a scalar; it is copied to the host only when the step is written.
            batch_id: anything that names the batch; kept as text.
            n_tokens: tokens in the step.
        """
        self._guard("step", lambda: self._close_step(loss, batch_id, n_tokens))

    def close(self) -> None:
        """Take the hooks off and close the recording; safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        for handle in self._handles:
            handle.remove()
        if self._taps is not None:
            self._guard("close", self._keep_unstepped)
            self._taps.detach()
        self._guard("close", self._flush)
        self._manifest["status"] = "closed"
        self._write_manifest()
        self._guard("close", self._compact)

    def _forward_begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training and not self._is_discovering and not torch.compiler.is_compiling():
            self._guard("forward", lambda: self._begin(args, kwargs))

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._taps is None and self._n_forwards == 0:
            self._is_discovering = True
            try:
                self._n_forwards += 1
                self._know(discover(self.model, Arguments(args, kwargs)))
                self._write_manifest()
            finally:
                self._is_discovering = False
        if self._taps is None or not self._is_sampled():
            return
        self._taps.attach()
        if len(self._taps.readings) < MOST_MICRO_STEPS:
            self._taps.begin()

    def _forward_ends(self, *_: object) -> None:
        if self._taps is not None and not self._is_discovering:
            self._taps.end()

    def _know(self, anatomy: Anatomy) -> None:
        self._taps = Taps(self.model, anatomy, self._guard)
        self._parameters = ParameterTaps(self.model, anatomy)
        self._manifest["anatomy"] = anatomy.to_json()
        self._manifest["not_measured"] = [*self._taps.layout.not_measured, *anatomy.problems]

    def _is_sampled(self) -> bool:
        return self._step % self.every == 0 and self._n_faults < MOST_FAULTS

    def _before_step(self) -> None:
        if self._parameters is not None and self._is_sampled():
            self._parameters.before_step(snapshot=True)

    def _after_step(self) -> None:
        if self._parameters is not None and self._is_sampled():
            self._parameters.after_step()

    def _close_step(self, loss: Tensor | float | None, batch_id: object, n_tokens: int | None) -> None:
        self._has_stepped = True
        is_sampled = self._taps is not None and self._is_sampled()
        parameter_rows: list[dict[str, Any]] = []
        n_micro = 1
        if is_sampled and self._taps is not None and self._parameters is not None:
            if self.optimizer is None:
                self._parameters.before_step(snapshot=False)
            readings = self._taps.take()
            n_micro = len(readings)
            parameter_rows = self._parameters.rows()
            rows = [*self._taps.activation_rows(readings), *bias_rows(self._taps.anatomy, parameter_rows)]
            self._write("activations", rows)
            self._write("gradient_paths", self._taps.path_rows(readings))
            self._write("parameters", parameter_rows)
        now = time.perf_counter()
        self._losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        self._steps.append(
            {
                "step": self._step,
                "n_tokens": n_tokens,
                "batch_id": None if batch_id is None else str(batch_id)[:200],
                "lr": _learning_rate(self.optimizer),
                "gradient_norm": _norm(parameter_rows),
                "seconds": now - self._started,
                "micro_batches": n_micro if is_sampled else None,
                "is_sampled": is_sampled,
            }
        )
        self._started = now
        self._step += 1
        if is_sampled or len(self._steps) >= FLUSH_EVERY:
            self._flush()
        if self._taps is not None and self._taps.is_attached and not self._is_sampled():
            self._taps.detach()

    def _keep_unstepped(self) -> None:
        """Write what was measured since the last step; say so when ``step`` was never called."""
        if self._taps is None or not self._taps.readings:
            return
        readings = self._taps.take()
        if not self._has_stepped:
            self._event(
                "never_stepped",
                "Expected probe.step(loss) after every optimizer.step(), got none: all forwards are recorded as one "
                "step. Call probe.step(loss) in the training loop.",
            )
        else:
            self._event("open_step", f"The last forward ({len(readings)} micro-batches) was not closed by probe.step.")
        self._write("activations", self._taps.activation_rows(readings))
        self._write("gradient_paths", self._taps.path_rows(readings))
        if self._parameters is not None:
            self._write("parameters", self._parameters.rows())

    def _flush(self) -> None:
        losses = [float("nan") if loss is None else loss for loss in self._losses]
        values = (
            torch.stack([torch.as_tensor(x).to(torch.float64).reshape(()) for x in losses]).tolist() if losses else []
        )
        for row, given, value in zip(self._steps, self._losses, values, strict=True):
            row["loss"] = None if given is None else value
        self._write("steps", self._steps, step=None)
        self._write("events", self._events, step=None)
        self._steps, self._losses, self._events = [], [], []

    def _write(self, name: str, rows: Sequence[Mapping[str, Any]], step: int | None = -1) -> None:
        if not rows or not self._is_writable:
            return
        columns = {column: [row.get(column) for row in rows] for column in TABLES[name]}
        if step is not None and "step" in columns:
            columns["step"] = [self._step] * len(rows)
        if name == "activations":
            columns["nonfinite"] = [row.get("nonfinite") for row in rows]
        try:
            self._log.append(name, columns)
        except OSError as error:
            self._stop_writing(error)

    def _stop_writing(self, error: OSError) -> None:
        self._is_writable = False
        sentence = (
            f"Expected room to write the recording in {str(self._log.folder)!r}, got {error}. Training goes on unrecorded "
            "from here; what was written stays readable. Free space and continue with resume=True."
        )
        logger.error(sentence)
        if self.strict:
            raise ProbeError(sentence) from error

    def _write_manifest(self) -> None:
        anatomy = self.anatomy or Anatomy()
        try:
            self._log.write_manifest({**self._manifest, "anatomy": anatomy.to_json()})
        except OSError as error:
            if self._is_writable:
                self._stop_writing(error)

    def _compact(self) -> None:
        try:
            self._log.close()
        except OSError as error:
            if self._is_writable:
                self._stop_writing(error)

    def _continue(self, folder: Path) -> None:
        before = Recording.load(folder)
        steps = before.table("steps", columns=["step"])["step"]
        self._step = self._first_step = int(steps.max()) + 1 if len(steps) else 0
        seams = [*before.manifest.get("resumed_at", []), self._step]
        self._manifest["resumed_at"] = seams
        self._event("resumed", f"The recording was continued at step {self._step}.")

    def _event(self, kind: str, sentence: str) -> None:
        self._events.append({"step": self._step, "kind": kind, "sentence": sentence})

    def _guard(self, where: str, action: Callable[[], None]) -> None:
        """Run ``action``; an error of ours is logged once and recorded, and training goes on."""
        if self._n_faults >= MOST_FAULTS:
            return
        try:
            action()
        except Exception as error:
            if self.strict:
                raise
            self._n_faults += 1
            known = isinstance(error, RheoscopeError)
            sentence = str(error) if known else f"{type(error).__name__} in the probe's {where}: {str(error)[:300]}"
            if self._n_faults == 1:
                logger.warning("Training goes on without a part of the measurement. %s", sentence, exc_info=not known)
            self._event("fault", sentence)


def attach(
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    every: int = 10,
    folder: str | Path | None = None,
    anatomy: Anatomy | None = None,
    resume: bool = False,
    strict: bool = False,
    label: str = "",
) -> Probe:
    """Put probes on ``model``: they find the residual stream on the first training forward and measure from there on.

    Training is left alone: the same weights bit for bit, no synchronisation in hooks, no exception that stops the run.

    Args:
        model: the model that is called in the training loop; forwards in eval mode are not recorded.
        optimizer: the optimizer that steps it; without one, updates are not measured.
        every: a step in so many is sampled in full; the loss and learning rate are kept of all.
        folder: where the recording is written; None for ``runs/<date and time>``.
        anatomy: what ``discover`` found, to skip discovery on the first forward.
        resume: continue the recording in ``folder``.
        strict: raise instead of logging when the probe itself fails.
        label: a name for the run.

    Returns:
        The probe: a context manager with ``step`` and ``recording``.

    Raises:
        ProbeError: ``every`` is not a positive number of steps, or the model is replicated by nn.DataParallel.
        RecordingExistsError: the folder holds a recording and ``resume`` is false.
        RecordingError: the folder cannot be written.
    """
    if every < 1:
        raise ProbeError(f"Expected every >= 1 (a step in so many is sampled), got {every}. Pass a positive number.")
    if isinstance(model, nn.DataParallel):
        raise ProbeError(
            "Expected a model that runs as itself, got nn.DataParallel, which copies its modules at every forward. "
            "Use DistributedDataParallel, or attach to one device's model."
        )
    if folder is None:
        folder = Path("runs") / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
    options: dict[str, Any] = {"every": every, "anatomy": anatomy, "resume": resume, "strict": strict, "label": label}
    return Probe(model, optimizer, Path(folder), **options)


def _learning_rate(optimizer: Optimizer | None) -> float | None:
    if optimizer is None or not optimizer.param_groups:
        return None
    rate = optimizer.param_groups[0].get("lr")
    return (
        float(rate)
        if isinstance(rate, int | float) or (isinstance(rate, Tensor) and rate.device.type == "cpu")
        else None
    )


def _norm(parameter_rows: list[dict[str, Any]]) -> float | None:
    """Return the norm of the whole gradient, None where no gradient was read."""
    squares = [row["n"] * row["gradient_rms"] ** 2 for row in parameter_rows if row["gradient_rms"] is not None]
    return float(sum(squares) ** 0.5) if squares else None


__all__ = ["STATISTICS", "Probe", "attach"]
