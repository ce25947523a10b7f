"""Show a run where its user already looks: scalars of sampled steps while it is recorded, the report when it is closed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rheoscope.probes.errors import ProbeError
from rheoscope.probes.recording import Recording
from rheoscope.probes.writer import Writer

from .summary_scalars import joined, scalars_of, step_scalars

logger = logging.getLogger("rheoscope")
Report = Callable[[Recording], Path]


class Sink(Protocol):
    """What is told of a run. What it raises is logged, and it is told nothing more."""

    def open(self, meta: Mapping[str, Any]) -> None:
        """Begin a run; ``meta`` is the head of its manifest: label, model, versions, schedule."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the scalars of a sampled step; steps come in order, some steps late."""

    def close(self, report: Path | None) -> None:
        """End the run, with the file of its report where one was written."""


class SinkWriter(Writer):
    """Writes a recording, and hands to sinks what is being written anyway: nothing more is copied from a device."""

    def __init__(
        self, sinks: Sequence[Sink], report: Report | None, folder: Path, head: Mapping[str, Any], **options: Any
    ) -> None:
        """Open the recording and the sinks; the options, and what is raised, are a writer's."""
        super().__init__(folder, head, **options)
        self._sinks, self._report = list(sinks), report
        self._values: dict[int, dict[str, float]] = {}
        self._step = self.first_step
        self._tell(lambda sink: sink.open(head))

    def columns(self, name: str, columns: Mapping[str, Any]) -> None:
        """Write columns of table ``name``, and keep what they say of their steps."""
        super().columns(name, columns)
        if not self._sinks:
            return
        try:
            for step, values in scalars_of(name, columns).items():
                self._values[step] = joined(self._values.get(step, {}), values)
        except Exception as error:  # noqa: BLE001 - a sink must not end the training
            self._fail("the summary of a step", error)

    def close(self, *, has_failed: bool = False) -> None:
        """Close the recording, then the sinks with its report."""
        super().close(has_failed=has_failed)
        report: list[Path] = []
        if self._report is not None and self._sinks:
            try:
                report.append(self._report(self.recording))
            except Exception as error:  # noqa: BLE001 - a sink must not end the training
                self._fail("the report", error)
        self._tell(lambda sink: sink.close(report[0] if report else None))
        self._sinks.clear()

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        super()._append(name, rows)
        if name != "steps":
            return
        for row in rows:
            self._step = row["step"]
            measured = self._values.pop(row["step"], {})
            if row.get("is_sampled"):
                values = {**step_scalars(row), **measured}
                self._tell(lambda sink, step=row["step"], values=values: sink.log(step, values))  # type: ignore[misc]

    def _tell(self, action: Callable[[Sink], None]) -> None:
        for sink in tuple(self._sinks):
            try:
                action(sink)
            except Exception as error:  # noqa: BLE001 - a sink must not end the training
                self._sinks.remove(sink)
                self._fail(type(sink).__name__, error)

    def _fail(self, what: str, error: Exception) -> None:
        if self._strict:
            raise error
        sentence = f"{what} failed and is told nothing more; the recording goes on: {type(error).__name__}: {error}"
        logger.warning(sentence)
        self.event(self._step, "sink", sentence)


def check(sinks: Sequence[object], stage: object) -> None:
    """Refuse what is no sink, and sinks of a stage of a pipeline, which knows its own part alone.

    Raises:
        ProbeError: one of them has not all three methods, or there is a stage.
    """
    if sinks and stage is not None:
        raise ProbeError(
            "Expected no sinks for a stage of a pipeline, got some. Read the joined recording when it is closed."
        )
    for sink in sinks:
        if not all(callable(getattr(sink, name, None)) for name in ("open", "log", "close")):
            raise ProbeError(
                f"Expected sinks with open(meta), log(step, values) and close(report), got {type(sink).__name__}. Pass "
                "rheoscope's own (to_tensorboard, to_wandb, to_mlflow) or an object with these methods."
            )
