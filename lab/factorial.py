"""Main effects and interactions of a factorial experiment of two levels a factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product

from .intervals import Interval, over_seeds

Cell = tuple[bool, ...]  # a level a factor


def effects(cells: Mapping[Cell, Sequence[float]], factors: Sequence[str]) -> dict[tuple[str, ...], Interval]:
    """Return the effect of every set of factors: of one alone, and the interaction of several.

    The effect of one factor is what it adds on the mean over the others; that of two the difference of differences: what the one
    adds at the second level of the other less what it adds at its first, on the mean over the rest; and so on.

    Args:
        cells: levels -> what was measured, one value a seed in the same order everywhere.
        factors: their names, in the order of the levels.
    """
    n_seeds = min(len(values) for values in cells.values())
    found = {}
    for size in range(1, len(factors) + 1):
        for chosen in combinations(range(len(factors)), size):
            n_others = 2 ** (len(factors) - size)
            signs = {
                levels: (-1) ** sum(not levels[k] for k in chosen) / n_others
                for levels in product((False, True), repeat=len(factors))
            }
            found[tuple(factors[k] for k in chosen)] = over_seeds(
                sum(sign * cells[levels][seed] for levels, sign in signs.items()) for seed in range(n_seeds)
            )
    return found
