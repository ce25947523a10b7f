"""Read losses and gradient norms that a run logged: a CSV, a Trainer's trainer_state.json, TensorBoard's event files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rheoscope.probes.errors import LabError

MOST_BYTES = 256 * 2**20
STEPS = ("step", "global_step", "iteration", "iter", "_step")
LOSSES = ("loss", "train_loss", "train/loss", "training_loss", "loss/train", "lm loss")
NORMS = ("gradient_norm", "grad_norm", "train/grad_norm", "grad-norm", "gradient norm")
COLUMNS = ["step", "loss", "gradient_norm"]


def read_log(path: str | Path) -> pd.DataFrame:
    """Return columns step, loss, gradient_norm, one row a logged step; what was not logged is NaN.

    Args:
        path: a CSV with a header, a JSON file with ``log_history`` (Hugging Face's trainer_state.json), a JSONL file, a file of
            TensorBoard's events, or a folder of them.

    Raises:
        LabError: it is none of these, holds no step or neither losses nor norms, or tensorboard is not installed.
    """
    path = Path(path)
    try:
        rows = list(_events(path) if path.is_dir() or "tfevents" in path.name else _records(path))
    except (OSError, ValueError, csv.Error) as error:
        raise LabError(
            f"Expected a log of losses at {str(path)!r}, got {str(error)[:200]}. Pass a CSV with a header."
        ) from error
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        named = {str(key).strip().lower(): value for key, value in row.items()}
        step = _number(named, STEPS)
        if math.isfinite(step):
            kept = found.setdefault(int(step), {"loss": math.nan, "gradient_norm": math.nan})
            for name, names in (("loss", LOSSES), ("gradient_norm", NORMS)):
                value = _number(named, names)
                kept[name] = kept[name] if math.isnan(value) else value
    frame = pd.DataFrame([{"step": step, **values} for step, values in sorted(found.items())], columns=COLUMNS)
    frame = frame.dropna(subset=["loss", "gradient_norm"], how="all").reset_index(drop=True)
    if not len(frame):
        given = sorted({str(key) for row in rows for key in row})[:12]
        raise LabError(
            f"Expected columns {STEPS[0]} and {LOSSES[0]} (or {NORMS[1]}) in {str(path)!r}, got {', '.join(given) or 'nothing'}. "
            "Name the columns so."
        )
    return frame


def _records(path: Path) -> Iterable[Mapping[str, Any]]:
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path.stat().st_size:,} bytes, more than {MOST_BYTES:,}")
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".json":
        value = json.loads(text)
        rows = value.get("log_history") if isinstance(value, dict) else value
        return [row for row in rows or [] if isinstance(row, dict)]
    if path.suffix == ".jsonl":
        return [row for line in text.splitlines() if line.strip() and isinstance(row := json.loads(line), dict)]
    return list(csv.DictReader(text.splitlines()))


def _events(path: Path) -> Iterable[Mapping[str, Any]]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise LabError(
            f"Expected tensorboard to read {str(path)!r}, got none installed. pip install 'rheoscope[tensorboard]', or export "
            "the scalars as CSV."
        ) from error
    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            yield {"step": event.step, tag: event.value}


def _number(row: Mapping[str, Any], names: Iterable[str]) -> float:
    for name in names:
        try:
            return float(row[name])
        except (KeyError, TypeError, ValueError):
            continue
    return math.nan
