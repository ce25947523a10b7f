"""One training run, fully said by one value: what a sweep hands to a worker, and what it gets back."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rheoscope.probes.errors import LabError
from rheoscope.probes.recorder import attach
from torch import Tensor, nn
from torch.nn import functional

from .architecture import Architecture
from .tasks import HELD_OUT, task
from .threads import one_thread
from .transformer import ReferenceTransformer

TAIL = 20  # steps whose mean loss is a run's last loss
N_HELD_OUT = 16  # batches
_OPTIMIZERS = ("adamw", "sgd")


@dataclass(frozen=True)
class Run:
    """A training run of a reference transformer.

    Attributes:
        architecture: of the model.
        lr: peak learning rate.
        seed: of the weights and the batches.
        n_steps: optimizer steps.
        batch: sequences a step; they are as long as the architecture's context.
        task: what is learned: recall, text, bpe, zipf or uniform.
        optimizer: adamw, or sgd (with ``momentum``).
        momentum: AdamW's beta 1, or that of SGD.
        beta_2: AdamW's.
        epsilon: AdamW's.
        weight_decay: decoupled, of all parameters.
        warm_up: steps over which the learning rate rises.
        cosine: whether it then falls to a tenth along a half cosine.
        clip: norm to which gradients are clipped; 0 for none.
        every: one step in so many is recorded by probes; 0 for none, which leaves no recording.
        n_batches: batches that are seen again and again; 0 for new ones at every step.
    """

    architecture: Architecture
    lr: float
    seed: int = 0
    n_steps: int = 200
    batch: int = 16
    task: str = "recall"
    optimizer: str = "adamw"
    momentum: float = 0.9
    beta_2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    warm_up: int = 10
    cosine: bool = False
    clip: float = 1.0
    every: int = 0
    n_batches: int = 0

    def __post_init__(self) -> None:
        """Check what torch would refuse later, in a worker."""
        if not self.lr > 0 or self.n_steps < 1 or self.batch < 1:
            raise LabError(
                f"Expected lr > 0, n_steps >= 1 and batch >= 1, got {self.lr}, {self.n_steps} and {self.batch}. "
                "Pass positive numbers."
            )
        if self.optimizer not in _OPTIMIZERS:
            raise LabError(f"Expected optimizer to be one of {_OPTIMIZERS}, got {self.optimizer!r}. Pass one of these.")
        task(self.task)

    @property
    def key(self) -> str:
        """A name that differs between runs that differ in anything."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def chance(self) -> float:
        """The loss of a model that knows nothing, in nats."""
        return math.log(self.architecture.vocabulary)


def carried_out(run: Run, folder: Path | None = None, on_step: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Train as ``run`` says, on one thread, and return what came of it.

    A run that diverges is a result: it ends at the first loss that is not finite, and its last loss is that of chance.

    Args:
        run: what to do.
        folder: where its recording is written, in a folder of its own, where ``run.every`` asks for one.
        on_step: called with the number of steps done.

    Returns:
        ``first_loss``, ``last_loss`` (mean cross-entropy of the last 20 steps, at most chance), ``raw_last_loss``,
        ``held_out_loss`` (without dropout, on what was never trained on; at most chance), ``best_loss``, ``first_gradient_norm``
        and ``largest_gradient_norm`` (before clipping), ``has_diverged``, ``n_steps``, ``n_parameters``, ``cpu_seconds`` and
        ``recording``, a path or "".
    """
    with one_thread():
        torch.manual_seed(run.seed)
        model = ReferenceTransformer(run.architecture, seed=run.seed).train()
        optimizer = optimizer_of(run, model)
        place = None if not run.every or folder is None else folder / run.key
        probe = None if place is None else attach(model, optimizer, every=run.every, folder=place, label=run.key)
        started = time.process_time()
        try:
            losses, norms = train_model(run, model, optimizer, probe, on_step)
        finally:
            if probe is not None:
                probe.close()
        seconds = time.process_time() - started
        kept_apart = math.nan if not math.isfinite(losses[-1]) else held_out_loss(run, model)
    finite = [loss for loss in losses if math.isfinite(loss)]
    tail = losses[-TAIL:]
    raw = sum(tail) / len(tail)
    has_diverged = len(finite) < len(losses) or raw > 1.5 * run.chance
    return {
        "first_loss": losses[0],
        "last_loss": run.chance if has_diverged else min(raw, run.chance),
        "raw_last_loss": raw,
        "held_out_loss": run.chance if has_diverged else min(kept_apart, run.chance),
        "best_loss": min(finite, default=math.nan),
        "first_gradient_norm": norms[0],
        "largest_gradient_norm": max(norms),
        "has_diverged": has_diverged,
        "n_steps": len(losses),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "cpu_seconds": seconds,
        "recording": "" if place is None else str(place),
    }


def optimizer_of(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer that ``run`` asks for."""
    if run.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=run.lr, momentum=run.momentum, weight_decay=run.weight_decay)
    betas = (run.momentum, run.beta_2)
    return torch.optim.AdamW(model.parameters(), run.lr, betas, eps=run.epsilon, weight_decay=run.weight_decay)


def train_model(
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    probe: Any = None,
    on_step: Callable[[int], None] | None = None,
) -> tuple[list[float], list[float]]:
    """Train ``model`` in place; return the cross-entropy and the gradient norm before clipping of every step."""
    design = run.architecture
    stream = task(run.task)(design.vocabulary, run.batch, design.context, run.seed)
    kept = [next(stream) for _ in range(run.n_batches)]
    losses, norms = [], []
    for step in range(run.n_steps):
        for group in optimizer.param_groups:
            group["lr"] = run.lr * _schedule(run, step)
        batch = kept[step % len(kept)] if kept else next(stream)
        output = model(batch[:, :-1], batch[:, 1:])
        output.loss.backward()
        norms.append(_clipped(run, model))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(cross_entropy(output.logits, batch)))
        if probe is not None:
            probe.step(output.loss, n_tokens=batch[:, 1:].numel())
        if on_step:
            on_step(step + 1)
        if not math.isfinite(losses[-1]):
            break
    return losses, norms


@torch.no_grad()
def held_out_loss(run: Run, model: nn.Module) -> float:
    """Return the mean cross-entropy, in nats, on batches of the task that no run trains on; dropout is off meanwhile."""
    design, was_training = run.architecture, model.training
    stream = task(run.task)(design.vocabulary, run.batch, design.context, HELD_OUT)
    model.eval()
    try:
        kept = [next(stream) for _ in range(N_HELD_OUT)]
        return sum(float(cross_entropy(model(batch[:, :-1]).logits, batch)) for batch in kept) / N_HELD_OUT
    finally:
        model.train(was_training)


def cross_entropy(logits: Tensor, batch: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits (batch, length, vocabulary) on a batch (batch, length + 1), without a z-loss."""
    return functional.cross_entropy(logits.detach().flatten(0, 1), batch[:, 1:].flatten())


def _clipped(run: Run, model: nn.Module) -> float:
    return float(nn.utils.clip_grad_norm_(model.parameters(), run.clip or math.inf))


def _schedule(run: Run, step: int) -> float:
    rising = min(1.0, (step + 1) / max(1, run.warm_up))
    if not run.cosine:
        return rising
    share = max(0, step - run.warm_up) / max(1, run.n_steps - run.warm_up)
    return rising * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


def described(run: Run) -> Mapping[str, Any]:
    """Return every field of a run as one flat row, those of the architecture by their names."""
    fields = asdict(run)
    return {**fields.pop("architecture"), **fields}
