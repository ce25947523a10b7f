"""Train any model for a few steps on what the user gives, under probes: the unit of coordinate checks, scale-ups and what-ifs."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rheoscope.probes.batches import Batch, call
from rheoscope.probes.losses import LossFunction, default_loss
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording
from torch import nn

MakeOptimizer = Callable[[nn.Module, float], torch.optim.Optimizer]


def adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return AdamW as most transformers are trained: betas .9 and .95, no weight decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr, (0.9, 0.95), weight_decay=0.0)


def short_run(
    model: nn.Module,
    batches: Iterator[Batch],
    *,
    n_steps: int,
    lr: float,
    loss_fn: LossFunction | None = None,
    make_optimizer: MakeOptimizer = adamw,
    warm_up: int = 0,
    clip: float = 1.0,
    every: int = 1,
) -> tuple[list[float], Recording | None]:
    """Train ``model`` itself; return the loss of every step and the recording, None where ``every`` is 0.

    It ends at the first loss that is not finite: a run that diverges is a result.

    Args:
        model: it is left in training mode, with moved weights.
        batches: what the model is called with.
        n_steps: optimizer steps.
        lr: peak learning rate.
        loss_fn: ``loss_fn(output, batch)`` returns a scalar; None as for ``examine``.
        make_optimizer: returns the optimizer of a model and a learning rate.
        warm_up: steps over which the learning rate rises.
        clip: norm to which gradients are clipped, 0 for none.
        every: one step in so many is recorded.
    """
    model.train()
    optimizer = make_optimizer(model, lr)
    peaks = [float(group["lr"]) for group in optimizer.param_groups]
    losses: list[float] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        probe = attach(model, optimizer, every=every, folder=Path(place) / "run") if every else None
        try:
            for step in range(n_steps):
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * min(1.0, (step + 1) / max(1, warm_up))
                batch = next(batches)
                loss = (loss_fn or default_loss)(call(model, batch), batch)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
                if probe is not None:
                    probe.step(loss)
                if not math.isfinite(losses[-1]):
                    break
        finally:
            if probe is not None:
                probe.close()
        return losses, None if probe is None else in_memory(probe.recording)


def again(batch: Batch) -> Iterator[Batch]:
    """Yield one batch without end."""
    while True:
        yield batch


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model that shares nothing with it."""
    found: nn.Module = copy.deepcopy(model)
    return found


def in_memory(recording: Recording) -> Recording:
    """Return a recording that outlives its folder."""
    from rheoscope.probes.schema import TABLES

    tables: dict[str, Any] = {name: recording.table(name) for name in TABLES if recording.n_rows(name)}
    return Recording.from_tables(recording.manifest, recording.anatomy, tables)
