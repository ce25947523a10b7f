"""Prove the gradient of every term that a block adds at once: of a parallel block's attention and MLP, each alone.

In their sum a wrong backward of the smaller term drowns in the larger. Let t be one term and x the state that it reads. For any
v a sound backward gives ``<J^T v, e> = <v, t(x + e) - t(x - e)> / 2`` to second order in e, whatever the term computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Point
from .batches import Batch, call
from .conservation import ROUNDING, SEEN, SMOOTH, STEP, TOLERANCE, conserved
from .hooked import Hooked
from .interventions import changed
from .together import Ends, ends_of, groups_of, moved_in


def term_conservation(model: nn.Module, batch: Batch, anatomy: Anatomy, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``gradient_conservation`` of every term of a branch that adds several at once.

    ``observed`` is as of a whole branch; ``module_path`` says which term. None where no branch has several, at no cost; otherwise
    three forwards, two more where one deviates, and a backward of every such block. Call it inside
    ``untouched(model, training=False)``.
    """
    ends = [(b, before, term) for b, before, _ in ends_of(anatomy) if len(b.terms) > 1 for term in b.terms]
    if not ends:
        return []
    generator = torch.Generator().manual_seed(seed)
    states, terms = _seen(model, batch, ends)
    ends = [end for end in ends if _is_useful(states.get(end[1]), terms.get(end[2]))]
    covectors = [torch.randn(terms[term].shape, generator=generator).to(terms[term]) for _, _, term in ends]
    arrived = [_pulled(terms[t], states[at], v) for (_, at, t), v in zip(ends, covectors, strict=True)]
    values = {point: state.detach() for point, state in states.items()}
    steps = {at: torch.randn(values[at].shape, generator=generator).to(values[at]) for _, at, _ in ends}
    steps = {at: noise / noise.norm() for at, noise in steps.items()}
    for (_, at, _), gradient in zip(ends, arrived, strict=True):
        # Along a term's own gradient every wrong factor of it shows; the random part shows a term without any.
        steps[at] = steps[at] + gradient / gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
    steps = {at: step * (STEP * values[at].norm() / step.norm()) for at, step in steps.items()}
    demanded = _demanded(model, batch, ends, covectors, values, steps)
    through = [_dot(gradient, steps[at]) for (_, at, _), gradient in zip(ends, arrived, strict=True)]
    rounding = [ROUNDING * float(v.norm()) * _rms(terms[t]) for (_, _, t), v in zip(ends, covectors, strict=True)]
    ill = {k for k, asked in demanded.items() if not _agree(through[k], asked, rounding[k])}
    again = _demanded(model, batch, ends, covectors, values, {at: s * SMOOTH for at, s in steps.items()}) if ill else {}
    rows = []
    for k, asked in demanded.items():
        size = max(abs(asked), abs(through[k]))
        # Where a smaller step tells another slope the term has an edge: a router's.
        is_smooth = k not in ill or (
            k in again and abs(again[k] / SMOOTH - asked) <= TOLERANCE * size + rounding[k] / SMOOTH
        )
        if size > SEEN * rounding[k] and is_smooth and asked != 0:
            ratio = through[k] / asked if k in ill else 1.0
            rows.append(conserved(ends[k][0], ratio) | {"module_path": ends[k][2].module_path})
    return rows


def _seen(model: nn.Module, batch: Batch, ends: list[Ends]) -> tuple[dict[Point, Tensor], dict[Point, Tensor]]:
    """Return the states, each a leaf of its own, and the terms that one forward made of them."""
    states: dict[Point, Tensor] = {}
    terms: dict[Point, Tensor] = {}

    def keep(point: Point, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        states[point] = tensor.detach().clone().requires_grad_()
        return states[point].clone()

    hooks = Hooked(model, {term for _, _, term in ends}, lambda point: lambda t: terms.__setitem__(point, t.clone()))
    try:
        with torch.enable_grad(), ExitStack() as stack:
            for point in {before for _, before, _ in ends}:
                stack.enter_context(changed(model, point, partial(keep, point)))
            call(model, batch)
    finally:
        hooks.remove()
    return states, terms


def _pulled(term: Tensor, state: Tensor, covector: Tensor) -> Tensor:
    """Return what the model's own backward makes of a gradient at the term, at the state: zero where none arrives."""
    if not term.requires_grad:
        return torch.zeros_like(state)
    found = torch.autograd.grad(term, state, covector, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(state) if found is None else found


def _demanded(
    model: nn.Module,
    batch: Batch,
    ends: list[Ends],
    covectors: list[Tensor],
    values: Mapping[Point, Tensor],
    steps: Mapping[Point, Tensor],
) -> dict[int, float]:
    """Return, by the number of the term, how far it moves along its covector when its state makes half of both steps."""
    found = {}
    for group in groups_of(ends):
        forth, back = (
            moved_in(model, batch, ends, group, values, {k: values[ends[k][1]] + s * steps[ends[k][1]] for k in group})
            for s in (1.0, -1.0)
        )
        for k in group:
            if k in forth and k in back:
                found[k] = _dot(covectors[k], forth[k].double() - back[k].double()) / 2
    return found


def _agree(through: float, demanded: float, rounding: float) -> bool:
    return abs(through - demanded) <= TOLERANCE * max(abs(through), abs(demanded)) + rounding


def _is_useful(state: Tensor | None, term: Tensor | None) -> bool:
    wide = (torch.float32, torch.float64)
    if state is None or term is None or state.dtype not in wide or term.dtype not in wide:
        return False
    return bool(torch.isfinite(state).all() and torch.isfinite(term).all()) and float(state.detach().norm()) > 0


def _rms(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


def _dot(one: Tensor, other: Tensor) -> float:
    return float((one.double() * other.double()).sum())
