"""Show a run in Weights & Biases."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wandb

if TYPE_CHECKING:
    from .sinks import Report


class WandbSink:
    """Logs scalars named ``rheoscope/...`` over ``rheoscope/step``, and the report as an artifact.

    It joins the run that is open, where there is one: the program's own steps are left alone.
    """

    report: Report | None = None  # how the report of the run is written

    def __init__(self, run: Any = None, **init: Any) -> None:
        """Take a run; without one the run that is open, or a new one made by ``wandb.init(**init)``."""
        self._given, self._init = run, init
        self._run: Any = None
        self._is_own = False

    def open(self, meta: Mapping[str, Any]) -> None:
        """Begin a run."""
        there = self._given if self._given is not None else wandb.run
        self._is_own = there is None
        self._run = wandb.init(**self._init) if there is None else there
        self._run.define_metric("rheoscope/step", hidden=True)
        self._run.define_metric("rheoscope/*", step_metric="rheoscope/step")
        self._run.config.update(
            {"rheoscope": {"model": meta["model"], "schedule": meta["schedule"]}}, allow_val_change=True
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the scalars of a sampled step."""
        self._run.log({"rheoscope/step": step} | {f"rheoscope/{name}": value for name, value in values.items()})

    def close(self, report: Path | None) -> None:
        """End the run with the report."""
        if report is not None:
            name = re.sub(r"[^A-Za-z0-9._-]", "-", f"rheoscope-{self._run.id}")
            artifact = wandb.Artifact(name, type="report")
            artifact.add_file(str(report))
            self._run.log_artifact(artifact)
        if self._is_own:
            self._run.finish()
