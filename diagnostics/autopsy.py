"""Judge a run that had no probes by its checkpoints, each examined on the same batch, and by the log of its losses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
from rheoscope.probes.recording import Recording
from rheoscope.probes.schema import TABLES

from .diagnosis import Diagnosis, diagnose
from .drift import drift
from .finding import Finding

SEEN = ["code", "severity", "stack", "block", "component", "first_step", "last_step", "n_checkpoints", "sentence"]


@dataclass(frozen=True)
class Autopsy:
    """Check-ups of a series of checkpoints.

    Attributes:
        recordings: by step, rising.
        names: of the checkpoints, by step.
        log: columns step, loss, gradient_norm of the training run; empty where none was given.
        notes: what did not fit, in sentences.
    """

    recordings: Mapping[int, Recording]
    names: Mapping[int, str]
    log: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["step", "loss", "gradient_norm"]))
    notes: Sequence[str] = ()

    @cached_property
    def diagnoses(self) -> dict[int, Diagnosis]:
        """The verdict on each checkpoint alone."""
        return {step: diagnose(recording) for step, recording in self.recordings.items()}

    @cached_property
    def drift(self) -> pd.DataFrame:
        """What drifted where: see ``drift.drift``; empty of one checkpoint."""
        return drift(self.recordings)

    @cached_property
    def course(self) -> Diagnosis:
        """The verdict on all checkpoints as one run: trends over it, and the losses of the log."""
        return diagnose(self.series)

    @cached_property
    def seen(self) -> pd.DataFrame:
        """Warnings and errors by place: from which checkpoint to which each was found, in how many; the earliest first."""
        found: dict[tuple[object, ...], list[tuple[int, Finding]]] = {}
        for step, diagnosis in self.diagnoses.items():
            for finding in diagnosis:
                if finding.severity != "info":
                    place = (finding.code, finding.stack, finding.block, finding.component)
                    found.setdefault(place, []).append((step, finding))
        rows = [self._row(cases) for cases in found.values()]
        return pd.DataFrame(rows, columns=SEEN).sort_values(["first_step", "code"], kind="stable", ignore_index=True)

    def _row(self, cases: list[tuple[int, Finding]]) -> list[Any]:
        last = cases[-1][1]
        place = [last.code, last.severity, last.stack, last.block, last.component]
        # To a check-up every step is 0.
        sentence = re.sub(r"\bstep 0\b", f"step {cases[-1][0]:,}", last.sentence)
        return [*place, cases[0][0], cases[-1][0], len({step for step, _ in cases}), sentence]

    @cached_property
    def series(self) -> Recording:
        """All check-ups as one recording, a sampled step each, with the losses of the log where one was given."""
        last = self.recordings[max(self.recordings)]
        tables = {name: self._joined(name) for name, columns in TABLES.items() if "step" in columns}
        tables["steps"] = self._steps()
        events = [(step, "checkpoint", f"Checkpoint {name}, examined on one batch: loss {_loss(self.recordings[step]):.4g}.")
                  for step, name in self.names.items()]  # fmt: skip
        tables["events"] = pd.DataFrame(events, columns=["step", "kind", "sentence"])
        manifest = {**last.manifest, "label": f"{len(self.recordings)} checkpoints on one batch"}
        manifest["gradients"] = "of one backward at each checkpoint, before any optimizer"
        manifest["schedule"] = {"every": None, "words": "at each checkpoint", "triggered": 0}
        return Recording.from_tables(manifest, last.anatomy, {n: frame for n, frame in tables.items() if len(frame)})

    def _joined(self, name: str) -> pd.DataFrame:
        found = [recording.table(name).assign(step=step) for step, recording in self.recordings.items()]
        known = [frame for frame in found if len(frame)]
        return pd.concat(known, ignore_index=True) if known else pd.DataFrame(columns=list(TABLES[name]))

    def _steps(self) -> pd.DataFrame:
        sampled = pd.DataFrame({"step": list(self.recordings), "is_sampled": True})
        if not len(self.log):
            return self._joined("steps")
        rows = self.log.merge(sampled, on="step", how="outer").sort_values("step", ignore_index=True)
        return rows.assign(is_sampled=rows["is_sampled"].notna())


def _loss(recording: Recording) -> float:
    return float(recording.table("steps", columns=["loss"])["loss"].iloc[0])
