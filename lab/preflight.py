"""Look at a model as a long run will use it: a check-up, its first steps under probes, and what a step costs with and without."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import torch
from rheoscope.diagnostics.preflight import Cost, Preflight
from rheoscope.probes.batches import Batch, call
from rheoscope.probes.check_up import examine
from rheoscope.probes.losses import LossFunction, default_loss
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording
from torch import nn

from .peak_memory import PeakMemory
from .short_run import adamw, in_memory

N_STEPS, N_TIMED = 10, 5
CLIP = 1.0


def preflight(
    model: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer | None = None,
    loss_fn: LossFunction | None = None,
    *,
    lr: float = 1e-3,
    n_steps: int = N_STEPS,
    label: str = "",
    notes: Sequence[str] = (),
    on_progress: Callable[[str], None] = lambda _: None,
) -> Preflight:
    """Examine ``model``, train it for a few steps on one batch, and return what that says about a long run.

    The model is trained: its weights have moved when this returns.

    Args:
        model: as it will begin.
        batch: one, of the size that will be trained on: what a step costs is measured with it.
        optimizer: that will step it; AdamW at a constant ``lr`` if None.
        loss_fn: as in ``examine``.
        lr: of AdamW.
        n_steps: first steps, every one sampled in full.
        label: of the model.
        notes: on how it was built.
        on_progress: told what is being done.

    Raises:
        BatchError: the model rejects the batch, or no loss can be made of its output.
        DiscoveryError: the model has no residual stream.
    """
    on_progress("check-up")
    check_up = examine(model, batch, loss_fn, label=label)
    own = optimizer is None
    optimizer = optimizer or adamw(model, lr)
    model.train()
    parameters = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    memory = PeakMemory(parameters[0].device)

    def step(after: Callable[[torch.Tensor], None] = lambda _: None) -> float:
        begun = time.perf_counter()
        output = call(model, batch)
        loss = default_loss(output, batch) if loss_fn is None else loss_fn(output, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        after(loss.detach())
        if parameters[0].device.type == "cuda":
            torch.cuda.synchronize(parameters[0].device)
        return time.perf_counter() - begun

    on_progress("first steps under probes")
    seen, sampled, probed = _under_probes(model, optimizer, check_up, step, memory, n_steps, label)
    # Behind the steps under probes, so that these are the first; both phases are timed warm, and memory is that of a fresh peak.
    on_progress("the same without probes")
    step()
    memory.begin()
    plain = [step() for _ in range(N_TIMED)]
    cost = Cost(statistics.median(plain), statistics.median(sampled[2:] or sampled), memory.end(), probed)
    which = f"AdamW at a constant {lr:g}" if own else type(optimizer).__name__
    setting = f"{n_steps} steps of {which} on one batch, gradients clipped at {CLIP:g}"
    return Preflight(check_up, seen, cost, setting, tuple(notes))


def _under_probes(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    check_up: Recording,
    step: Callable[[Callable[[torch.Tensor], None]], float],
    memory: PeakMemory,
    n_steps: int,
    label: str,
) -> tuple[Recording, list[float], int | None]:
    """Return the recording of the first steps, their seconds, and the largest memory."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder = Path(place) / "run"
        with attach(model, optimizer, every=1, anatomy=check_up.anatomy, folder=folder, label=label) as probe:
            memory.begin()
            seconds = [step(probe.step) for _ in range(n_steps)]
            peak = memory.end()
        return in_memory(probe.recording), seconds, peak
