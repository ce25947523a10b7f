"""Sinks of the libraries in which runs are followed, which get the report when a run is over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rheoscope.probes.integrations.sinks import Sink
    from rheoscope.probes.recording import Recording


def _reported(sink: Any) -> Any:
    """Return the sink of a library with how the report of a run is written: into the folder of its recording."""

    def report(recording: Recording) -> Path:
        from rheoscope.reports.report import write_report

        return write_report(recording, Path(recording.folder or ".") / "report.html")

    sink.report = report
    return sink


def to_tensorboard(target: Any) -> Sink:
    """Return a sink for ``attach(sinks=[...])`` that shows a run in TensorBoard.

    Args:
        target: a log folder, or the program's own ``SummaryWriter``.
    """
    from rheoscope.probes.integrations.tensorboard import TensorBoardSink

    found: Sink = _reported(TensorBoardSink(target))
    return found


def to_wandb(run: Any = None, **init: Any) -> Sink:
    """Return a sink for ``attach(sinks=[...])`` that shows a run in Weights & Biases.

    Args:
        run: where to log; without one the run that is open, or a new one.
        init: what ``wandb.init`` takes for a new one: ``project="mine"``, ``mode="offline"``.
    """
    from rheoscope.probes.integrations.wandb import WandbSink

    found: Sink = _reported(WandbSink(run, **init))
    return found


def to_mlflow(run_id: str | None = None, *, experiment: str = "rheoscope") -> Sink:
    """Return a sink for ``attach(sinks=[...])`` that shows a run in MLflow.

    Args:
        run_id: where to log; without one the run that is open, or a new one.
        experiment: where a new one is made.
    """
    from rheoscope.probes.integrations.mlflow import MLflowSink

    found: Sink = _reported(MLflowSink(run_id, experiment=experiment))
    return found
