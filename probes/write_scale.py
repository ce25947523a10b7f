"""Measure by what factor a branch's last projection is multiplied on its way to the add: blocks of one class share it exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Branch, Point
from .running import place_of
from .wrappers import modules_of

TOLERANCE = 0.005
FIT = 1e-3  # of the written tensor's size: what is left when it is explained as a multiple of a projection


def write_points(model: nn.Module, anatomy: Anatomy) -> set[Point]:
    """Return where ``write_scale`` looks."""
    modules = modules_of(model)
    return {
        point
        for branch in anatomy.branches
        for point in (*(end.at for end in _ends(branch)), *_normed(branch), *_projections(branch, modules))
    }


def write_scale(model: nn.Module, anatomy: Anatomy, seen: Mapping[Point, Tensor]) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``write_scale`` and ``write_rest``, one a term where several are added at once.

    ``write_scale`` is the slope, by least squares, of what is added on what one of the branch's projections gives; where its
    output is normed, of what that norm reads on the projection, times that of what is added on what the norm gives. No such row
    where no projection explains it: a learned scale a channel, a mixture. ``write_rest`` is what the best such explanation leaves
    of what is added, or of what the norm reads: 0 where it is a multiple of what a projection gives, and nothing else.

    Args:
        model: the model.
        anatomy: what ``discover`` found on it.
        seen: what one forward showed at ``write_points``, without dropout.
    """
    modules = modules_of(model)
    rows = []
    for branch in anatomy.branches:
        projections = _projections(branch, modules)
        for end in _ends(branch):
            given = _normed(branch)[:1] or projections
            found = _explained(seen, end, given)
            if branch.output_norms:
                norm = _End(_normed(branch)[1], 1.0)
                before = _explained(seen, norm, projections)
                found = None if before is None else before * (1.0 if found is None else found)
            if found is not None:
                rows.append(_row(branch, end.at, found))
            steps = [(end.at, given)] + ([(_normed(branch)[1], projections)] if branch.output_norms else [])
            rests = [_rest(seen, at, points) for at, points in steps]
            if rests and None not in rests:
                rows.append(_row_of_rest(branch, end.at, max(rest for rest in rests if rest is not None)))
    return rows


@dataclass(frozen=True)
class _End:
    """Where a term of a write is seen, and the constant factor that it has yet to be multiplied by."""

    at: Point
    factor: float


def _ends(branch: Branch) -> list[_End]:
    if branch.write is not None or branch.terms:
        return [_End(at, 1.0) for at in ((branch.write,) if branch.write is not None else branch.terms)]
    # One that differs between elements is no number: what is told is up to it.
    return [_End(at, 1.0 if f is None else f) for at, f in zip(branch.seen, branch.factors, strict=True)]


def _normed(branch: Branch) -> tuple[Point, ...]:
    """Return what the norm before the add gives, and what it reads; nothing where there is none."""
    if not branch.output_norms:
        return ()
    return Point(branch.output_norms[-1], "output", ()), Point(branch.output_norms[0], "input", (0,))


def _explained(seen: Mapping[Point, Tensor], end: _End, given: Sequence[Point]) -> float | None:
    """Return what the last of ``given`` that explains a term is multiplied by on its way to the add.

    A term of zeros is explained by whatever came before: nothing is told where a projection itself gives zeros.
    """
    term = seen.get(end.at)
    if term is not None and not bool(term.any()) and any(p in seen and not bool(seen[p].any()) for p in given):
        return None
    slopes = (_slope(seen.get(point), seen.get(end.at)) for point in reversed(given))
    return next((slope * end.factor for slope in slopes if slope is not None), None)


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


def _rest(seen: Mapping[Point, Tensor], at: Point, given: Sequence[Point]) -> float | None:
    """Return what the best multiple of one of ``given`` leaves of a tensor, over it; None where none has its size."""
    written = seen.get(at)
    if written is None or not written.is_floating_point() or not bool(torch.isfinite(written).all()):
        return None
    y = written.double().reshape(-1)
    candidates = [seen[point].double().reshape(-1) for point in given if point in seen]
    fits = [x for x in candidates if x.numel() == y.numel() and bool(torch.isfinite(x).all()) and bool(x.any())]
    size = float(y.norm())
    if not fits or size == 0:
        return None
    return min(float((y - (x @ y) / (x @ x) * x).norm()) for x in fits) / size


def _row_of_rest(branch: Branch, end: Point, rest: float) -> dict[str, Any]:
    return {
        "check": "write_rest",
        **place_of(branch),
        "module_path": end.module_path,
        "observed": rest,
        "expected": 0.0,
        "tolerance": FIT,
        "note": "what is added, less a multiple of what the branch's projection gives, over it",
    }


def _row(branch: Branch, end: Point, slope: float) -> dict[str, Any]:
    return {
        "check": "write_scale",
        **place_of(branch),
        "module_path": end.module_path,
        "observed": slope,
        "tolerance": TOLERANCE,
        "note": "slope of what is added, or of what the norm before the add reads, on what the branch's projection gives",
    }
