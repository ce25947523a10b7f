"""Measure amplification: how far the last state moves when all block weights move a little at random."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .anatomy import Anatomy, Point
from .batches import Batch, arguments
from .hooked import Hooked
from .wrappers import parameters_of

EPSILON = 0.02  # of each weight's own standard deviation: large beside rounding, small beside curvature
N_DRAWS = 2


def amplification(model: nn.Module, batch: Batch, anatomy: Anatomy, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``amplification`` and ``relative_amplification`` of every stack.

    Gaussian noise of EPSILON times its own std is added to every weight matrix that a branch uses; the mean squared
    change of the last state is divided by EPSILON^2 (Liu et al. 2020, "Understanding the Difficulty of Training
    Transformers", section 4: the amplification effect), and, for the relative one, by the last state's mean square.
    The model's own weights are not written to. Call it inside ``untouched(model, training=False)``.

    Args:
        model: the model.
        batch: one batch.
        anatomy: what ``discover`` found on it.
        seed: of the noise.
    """
    points = {stack.index: stack.branches[-1].state for stack in anatomy.stacks}
    wanted = {point for point in points.values() if point is not None}
    inside = {name for branch in anatomy.branches for name in branch.parameters}
    weights = {name: p.detach() for name, p in parameters_of(model) if name in inside and p.dim() >= 2}
    still = _last_states(model, batch, wanted, {})
    generator = torch.Generator().manual_seed(seed)
    moved: dict[Point, float] = dict.fromkeys(still, 0.0)
    for _ in range(N_DRAWS):
        shaken = {name: weight + EPSILON * weight.std() * _noise(weight, generator) for name, weight in weights.items()}
        for point, state in _last_states(model, batch, wanted, shaken).items():
            moved[point] += float((state - still[point]).square().mean()) / EPSILON**2 / N_DRAWS
    rows = []
    for stack in anatomy.stacks:
        last_point = points[stack.index]
        if last_point is None or last_point not in still:
            continue
        last = stack.branches[-1]
        place = {"stack": stack.index, "block": last.block, "branch": last.kind, "depth": last.depth}
        size = float(still[last_point].square().mean())
        note = f"{len(weights)} weight matrices, noise {EPSILON:g} of their std, {N_DRAWS} draws"
        rows.append(place | {"check": "amplification", "observed": moved[last_point], "note": note})
        relative = moved[last_point] / size if size > 0 else None
        rows.append(place | {"check": "relative_amplification", "observed": relative, "note": note})
    return rows


def _noise(weight: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(weight.shape, generator=generator).to(weight.device, weight.dtype)


def _last_states(model: nn.Module, batch: Batch, points: set[Point], weights: dict[str, Tensor]) -> dict[Point, Tensor]:
    seen: dict[Point, Tensor] = {}

    def see(point: Point, tensor: Tensor) -> None:
        seen[point] = tensor.detach().to(torch.float64 if tensor.device.type != "mps" else torch.float32).clone()

    hooks = Hooked(model, points, lambda point: partial(see, point))
    positional, keywords = arguments(batch)
    try:
        with torch.no_grad():
            functional_call(model, weights, positional, keywords)
    finally:
        hooks.remove()
    return seen
