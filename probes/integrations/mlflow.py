"""Show a run in MLflow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import Metric

if TYPE_CHECKING:
    from .sinks import Report


class MLflowSink:
    """Logs metrics named ``rheoscope/...``, and the report as an artifact.

    It joins the run that is open, where there is one.
    """

    report: Report | None = None  # how the report of the run is written

    def __init__(self, run_id: str | None = None, *, experiment: str = "rheoscope", client: Any = None) -> None:
        """Take a run; without one the run that is open, or a new one in ``experiment``. ``client`` is by default MLflow's own."""
        self._run_id, self._experiment, self._client = run_id, experiment, client
        self._is_own = False

    def open(self, meta: Mapping[str, Any]) -> None:
        """Begin a run."""
        self._client = self._client or mlflow.MlflowClient()
        active = mlflow.active_run()
        self._is_own = self._run_id is None and active is None
        if self._run_id is None:
            self._run_id = (
                active.info.run_id if active is not None else self._new(str(meta.get("label") or "rheoscope"))
            )
        self._client.set_tag(self._run_id, "rheoscope.model", meta["model"]["class_name"])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the scalars of a sampled step."""
        now = int(time.time() * 1000)
        metrics = [Metric(f"rheoscope/{name}", value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, report: Path | None) -> None:
        """End the run with the report."""
        if report is not None:
            self._client.log_artifact(self._run_id, str(report), "rheoscope")
        if self._is_own:
            self._client.set_terminated(self._run_id)

    def _new(self, name: str) -> str:
        known = self._client.get_experiment_by_name(self._experiment)
        number = self._client.create_experiment(self._experiment) if known is None else known.experiment_id
        return str(self._client.create_run(number, run_name=name).info.run_id)
