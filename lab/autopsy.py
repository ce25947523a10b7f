"""Examine a series of checkpoints on one batch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from rheoscope.diagnostics.autopsy import Autopsy
from rheoscope.probes.batches import Batch
from rheoscope.probes.check_up import examine
from rheoscope.probes.errors import LabError
from rheoscope.probes.losses import LossFunction
from rheoscope.probes.recording import Recording
from torch import nn

from .stored import load_weights

NUMBER = re.compile(r"\d{1,12}")


def autopsy(
    checkpoints: Sequence[str | Path],
    model: nn.Module,
    batch: Batch,
    loss_fn: LossFunction | None = None,
    *,
    log: pd.DataFrame | None = None,
    notes: Sequence[str] = (),
    on_progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Autopsy:
    """Load each checkpoint into ``model``, examine it on ``batch``, and return what that shows over the run.

    Args:
        checkpoints: safetensors files or folders of them, at least two; the last number in each name is its step. Where one has
            none, or two the same, they are numbered in the order given.
        model: whose weights are replaced.
        batch: the same for all.
        loss_fn: as in ``examine``.
        log: columns step, loss, gradient_norm, as ``read_log`` returns them.
        notes: on how the model was built.
        on_progress: called with checkpoints done, their number, and the next one's name.

    Raises:
        LabError: fewer than two checkpoints, or one that is not of this model.
        BatchError: the model rejects the batch, or no loss can be made of its output.
    """
    if len(checkpoints) < 2:
        raise LabError(
            f"Expected two checkpoints or more, got {len(checkpoints)}. Of a single one, rheoscope examine tells as much."
        )
    paths = [Path(each) for each in checkpoints]
    numbers = [
        int(found[-1]) if (found := NUMBER.findall(path.stem if path.is_file() else path.name)) else -1
        for path in paths
    ]
    told = list(notes)
    if -1 in numbers or len(set(numbers)) < len(numbers):
        numbers = list(range(len(paths)))
        told.append("The names tell no steps: checkpoints are numbered in the order given.")
    recordings: dict[int, Recording] = {}
    names: dict[int, str] = {}
    for done, (step, path) in enumerate(sorted(zip(numbers, paths, strict=True))):
        on_progress(done, len(paths), path.name)
        told += [note for note in load_weights(model, path) if note not in told]
        recordings[step] = examine(model, batch, loss_fn, label=path.name)
        names[step] = path.name
    on_progress(len(paths), len(paths), "")
    return Autopsy(
        recordings, names, pd.DataFrame(columns=["step", "loss", "gradient_norm"]) if log is None else log, told
    )
