"""The training loops of these tests, and what a naive monitor would do in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from oracles import batch_of, loss_of
from rheoscope.probes.recorder import Probe, attach
from torch import Tensor, nn
from torch.optim import Optimizer


def train(
    model: nn.Module,
    folder: Path,
    optimizers: Sequence[Optimizer] = (),
    *,
    n_steps: int = 1,
    before: Callable[[int], None] = lambda step: None,
    **options: Any,
) -> Probe:
    """Train under a probe that samples every step and raises its own errors; ``before(step)`` runs first in each step."""
    model.train()
    given = list(optimizers) or None
    options = {"every": 1, "strict": True} | options
    with attach(model, given, folder=folder, **options) as probe:
        for step in range(n_steps):
            before(step)
            loss = loss_of(model, batch_of(model, seed=step))
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            probe.step(loss)
            model.zero_grad()
    return probe


def parameters(probe: Probe, step: int = 0) -> pd.DataFrame:
    """Return the rows of a step's parameters by name."""
    return probe.recording.table("parameters", steps=step).set_index("name")


def rows(probe: Probe, site: str, direction: str) -> pd.DataFrame:
    """Return the activations of a site, by micro-step and depth."""
    found = probe.recording.table("activations")
    chosen = found[(found["site"] == site) & (found["direction"] == direction)]
    return chosen.sort_values(["step", "micro_step", "depth"])


def events(probe: Probe) -> list[str]:
    """Return the kinds of the events recorded."""
    return probe.recording.table("events")["kind"].tolist()


class Counter:
    """A naive monitor: a closure on modules that counts their calls."""

    def __init__(self, *modules: nn.Module) -> None:
        self.calls = [0] * len(modules)
        self.handles = [module.register_forward_hook(self._hook(i)) for i, module in enumerate(modules)]

    def _hook(self, index: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            self.calls[index] += 1

        return hook

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()


def weights(model: nn.Module) -> list[Tensor]:
    """Return copies of all parameters."""
    return [p.detach().clone() for p in model.parameters()]


def same(first: nn.Module, second: nn.Module) -> bool:
    """Return whether two models' parameters are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
