"""Turn the readings of a step into rows of the recording: the one copy to the host."""

from __future__ import annotations

import math
from typing import Any

import torch

from .anatomy import Anatomy, Branch
from .kernels import COUNT, SECOND
from .paths import path_row
from .schema import STATISTICS
from .sites import Layout
from .statistics import statistics
from .taps import Reading


def rows_of(
    readings: list[Reading], anatomy: Anatomy, layout: Layout
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of the tables activations and gradient_paths."""
    activations: list[dict[str, Any]] = []
    paths: list[dict[str, Any]] = []
    for micro_step, reading in enumerate(readings):
        sums = reading.sums.values.cpu().to(torch.float64)
        lost = reading.rounding.energies.cpu().tolist()
        products = reading.paths.products.cpu().tolist()
        activations += _activations(sums, lost, anatomy, layout, micro_step)
        paths += _paths(sums.tolist(), products, anatomy, layout, micro_step)
    return activations, paths


def _activations(
    sums: torch.Tensor, lost: list[list[float]], anatomy: Anatomy, layout: Layout, micro_step: int
) -> list[dict[str, Any]]:
    columns = {name: values.tolist() for name, values in statistics(sums).items()}
    counts = sums[:, COUNT].tolist()
    rows = {point: row for row, point in enumerate(layout.points)}
    shares = {(b.stack, b.depth): _share(*lost[index]) for index, b in enumerate(anatomy.branches)}
    found = []
    for offset, direction in ((0, "forward"), (len(rows), "backward")):
        for site in layout.sites:
            row = rows[site.point] + offset
            if counts[row]:
                place = {
                    "micro_step": micro_step,
                    "stack": site.stack,
                    "block": site.block,
                    "branch": site.branch,
                    "depth": site.depth,
                    "site": site.site,
                    "call": site.point.call,
                    "direction": direction,
                    "module_path": site.point.module_path,
                }
                if site.site == "write" and direction == "forward":
                    place["rounded_share"] = shares[site.stack, site.depth]
                found.append(place | {name: columns[name][row] for name in STATISTICS})
    return found


def _share(lost: float, written: float) -> float | None:
    return lost / written if written > 0 and math.isfinite(lost) and math.isfinite(written) else None


def _paths(
    sums: list[list[float]], products: list[float], anatomy: Anatomy, layout: Layout, micro_step: int
) -> list[dict[str, Any]]:
    back = {point: sums[row + len(layout.points)] for row, point in enumerate(layout.points)}
    found = []
    for index, branch in enumerate(anatomy.branches):
        before = anatomy.stacks[branch.stack].start if branch.depth == 1 else anatomy.branches[index - 1].state
        total = branch.sum or branch.state
        gain = _skip_gain(branch, back)
        parts: dict[str, Any] = {}
        if before in back and total in back:
            parts = path_row(products[index], back[before], back[total], branch.scale)  # type: ignore[index]  # in back
        if gain is not None or parts:
            place = {
                "micro_step": micro_step,
                "stack": branch.stack,
                "block": branch.block,
                "branch": branch.kind,
                "depth": branch.depth,
                "skip_gain": gain,
            }
            found.append(place | parts)
    return found


def _skip_gain(branch: Branch, back: dict[Any, list[float]]) -> float | None:
    """Return the gain of the gradient from state k down the skip path to state k-1."""
    if branch.sum is None:
        return abs(branch.scale)
    if branch.state not in back or branch.sum not in back:
        return None
    above, below = back[branch.state], back[branch.sum]
    if not (above[COUNT] and below[COUNT] and above[SECOND] > 0):
        return None
    return abs(branch.scale) * math.sqrt(below[SECOND] / above[SECOND])
