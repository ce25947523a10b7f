"""Measure by what factor a branch's last projection is multiplied on its way to the add: blocks of one class share it exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Branch, Point
from .batches import Batch
from .running import place_of
from .together import seen_in
from .wrappers import modules_of

TOLERANCE = 0.005
FIT = 1e-3  # of the written tensor's size: what is left when it is explained as a multiple of a projection


def write_scale(model: nn.Module, batch: Batch, anatomy: Anatomy) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``write_scale`` of every branch, one a term where several are added at once.

    ``observed`` is the slope, by least squares, of what is added on what one of the branch's projections gives; of a branch whose
    output is normed, of what that norm reads. No row where no projection explains it: a learned scale a channel, a mixture.
    One forward. Call it inside ``untouched(model, training=False)``.
    """
    modules = modules_of(model)
    wanted = {
        (branch.stack, branch.depth): (_ends(branch), _projections(branch, modules)) for branch in anatomy.branches
    }
    points = {point for ends, projections in wanted.values() for point in (*ends, *projections)}
    seen = seen_in(model, batch, points)
    rows = []
    for branch in anatomy.branches:
        ends, projections = wanted[branch.stack, branch.depth]
        for end in ends:
            slopes = [_slope(seen.get(projection), seen.get(end)) for projection in projections]
            found = next((slope for slope in reversed(slopes) if slope is not None), None)
            if found is not None:
                rows.append(_row(branch, end, found))
    return rows


def _ends(branch: Branch) -> tuple[Point, ...]:
    if branch.output_norms:
        return (Point(branch.output_norms[0], "input", (0,)),)
    return (branch.write,) if branch.write is not None else branch.terms or branch.seen


def _projections(branch: Branch, modules: dict[str, nn.Module]) -> tuple[Point, ...]:
    """Return where the results of modules with a matrix that only this branch uses leave them, in order."""
    paths = dict.fromkeys(name.rpartition(".")[0] for name in branch.parameters)
    return tuple(
        Point(path, "output", ())
        for path in paths
        if path in modules and any(p.dim() == 2 for p in modules[path].parameters(recurse=False))
    )


def _slope(given: Tensor | None, written: Tensor | None) -> float | None:
    """Return the factor between two tensors; None where one is no multiple of the other."""
    if given is None or written is None or given.numel() != written.numel() or not written.is_floating_point():
        return None
    x, y = given.double().reshape(-1), written.double().reshape(-1)
    energy = float(x @ x)
    if energy == 0 or not bool(torch.isfinite(y).all()):
        return None
    slope = float(x @ y) / energy
    return slope if float((y - slope * x).norm()) <= FIT * float(y.norm()) else None


def _row(branch: Branch, end: Point, slope: float) -> dict[str, Any]:
    return {
        "check": "write_scale",
        **place_of(branch),
        "module_path": end.module_path,
        "observed": slope,
        "tolerance": TOLERANCE,
        "note": "slope of what is added, or of what the norm before the add reads, on what the branch's projection gives",
    }
