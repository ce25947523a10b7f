"""Train a model for a few steps under the probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording
from torch import Tensor, nn

OnStep = Callable[[int], None]
Forward = Callable[[nn.Module, Tensor], Tensor]


def train(
    model: nn.Module,
    batches: Iterator[Tensor],
    forward: Forward,
    *,
    n_steps: int,
    lr: float,
    folder: Path,
    every: int = 10,
    warm_up: int = 10,
    label: str = "",
    on_step: OnStep | None = None,
) -> Recording:
    """Train with AdamW, linear warm-up and clipping at 1, and return what the probes recorded.

    Args:
        model: the model; left in training mode, with moved weights.
        batches: of token ids, shape (batch, length + 1).
        forward: returns the loss of a model on a batch.
        n_steps: optimizer steps.
        lr: peak learning rate.
        folder: of the recording.
        every: one step in so many is sampled.
        warm_up: steps over which the learning rate rises.
        label: of the recording.
        on_step: called with the number of steps done.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
    options: dict[str, Any] = {"every": every, "folder": folder, "label": label}
    with attach(model, optimizer, **options) as probe:
        for step in range(n_steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / max(1, warm_up))
            batch = next(batches)
            loss = forward(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss, n_tokens=batch[:, 1:].numel())
            if on_step:
                on_step(step + 1)
    return probe.recording
