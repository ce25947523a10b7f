"""Give every parameter its place in the anatomy, and its role."""

from __future__ import annotations

from .anatomy import Anatomy


def places(anatomy: Anatomy) -> dict[str, tuple[int, int, str]]:
    """Return stack, block and branch of every parameter that one branch has to itself, or that makes the first state."""
    found = {name: (stack.index, -1, "embedding") for stack in anatomy.stacks for name in stack.start_parameters}
    for branch in anatomy.branches:
        found.update(dict.fromkeys(branch.parameters, (branch.stack, branch.block, branch.kind)))
    return found


def roles(anatomy: Anatomy, axes: dict[str, int]) -> dict[str, str]:
    """Return what each parameter is: by its behaviour in a norm, else by where it stands and its number of ``axes``."""
    gains, norm_biases = set(anatomy.gains), set(anatomy.norm_biases)
    inside = {name for branch in anatomy.branches for name in branch.parameters}
    start = {name for stack in anatomy.stacks for name in stack.start_parameters} - inside
    found = {}
    for name, n_axes in axes.items():
        if name in gains:
            found[name] = "gain"
        elif name in norm_biases:
            found[name] = "norm_bias"
        elif name in start:
            found[name] = "embedding"
        elif n_axes >= 2:
            found[name] = "weight"
        else:
            found[name] = "bias" if n_axes == 1 else "other"
    return found
