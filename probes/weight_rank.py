"""Measure how many directions every weight matrix uses: one of rank one, or of a single number, is seen here and in no RMS."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy
from .running import place_of
from .wrappers import parameters_of

ITERATIONS = 12  # of the power method: the largest singular value to some per cent, from below
LEAST = 8  # rows and columns: of fewer directions nothing is told


def weight_rank(model: nn.Module, anatomy: Anatomy, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``stable_rank`` of every projection of every branch.

    ``observed`` is ``|W|_F^2 / |W|_2^2`` (Rudelson and Vershynin 2007): 1 for a matrix of rank one, and about
    ``n / (1 + sqrt(n / m))^2`` for m x n independent numbers, n the smaller. Reads weights alone.

    Args:
        model: the model.
        anatomy: what ``discover`` found on it.
        seed: of the vector that the power method begins with.
    """
    parameters = dict(parameters_of(model, remove_duplicate=False))
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for branch in anatomy.branches:
        for projection in branch.projections:
            weight = parameters.get(projection.weight)
            rank = None if weight is None else _stable_rank(weight.detach(), generator)
            if rank is not None:
                note = "stable rank of a weight: its energy over that of its strongest direction"
                row = {"check": "stable_rank", **place_of(branch), "module_path": projection.weight, "observed": rank}
                rows.append(row | {"note": note})
    return rows


def _stable_rank(weight: Tensor, generator: torch.Generator) -> float | None:
    """Return the stable rank of a plain matrix; None of anything else, and of one that is 0."""
    if type(weight) not in (Tensor, nn.Parameter) or weight.dim() != 2 or not weight.is_floating_point():
        return None
    if weight.is_meta or min(weight.shape) < LEAST:
        return None
    matrix = weight.float()
    energy = float(matrix.square().sum(dtype=torch.float64))
    if not 0 < energy < float("inf"):
        return None
    vector = torch.randn(matrix.shape[1], generator=generator).to(matrix)
    for _ in range(ITERATIONS):
        vector = matrix.mT @ (matrix @ vector)
        vector = vector / vector.norm()
    return energy / float((matrix @ vector).square().sum(dtype=torch.float64))
