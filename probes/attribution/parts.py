"""Name the part of a model that a parameter belongs to, and rank blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rheoscope.probes.anatomy import Anatomy, Branch
from rheoscope.probes.belonging import branch_of
from rheoscope.probes.parameter_places import places

Place = tuple[int, int, str]  # stack, block, branch


def parameter_parts(anatomy: Anatomy, names: Iterable[str]) -> dict[str, Place]:
    """Return stack, block and branch of each parameter.

    One that no branch has to itself belongs to the block whose modules are nearest; else to ``output``, where it comes after a
    stack, or to ``shared``, where several blocks use it: both of block -1.
    """
    known = places(anatomy)
    found: dict[str, Place] = {}
    for name in names:
        branch = None if name in known else branch_of(anatomy, name)
        if name in known:
            found[name] = known[name]
        elif branch is not None:
            found[name] = (branch.stack, branch.block, branch.kind)
        else:
            found[name] = (_outlet(anatomy, name), -1, "output" if _is_outside(anatomy, name) else "shared")
    return found


def depths_of(anatomy: Anatomy) -> dict[Place, int]:
    """Return the depth of every branch, and of the embedding of every stack."""
    found = {(stack.index, -1, "embedding"): 0 for stack in anatomy.stacks}
    return found | {(branch.stack, branch.block, branch.kind): branch.depth for branch in anatomy.branches}


def place_row(place: Place | Branch) -> dict[str, Any]:
    """Return the columns of a row that say where a part is; of a whole block no branch, of a parameter no depth."""
    if isinstance(place, Branch):
        return {"stack": place.stack, "block": place.block, "branch": place.kind, "depth": place.depth}
    return dict(zip(("stack", "block", "branch"), place, strict=True))


def ranked(values: Mapping[tuple[int, int], float], sign: float = 1.0) -> tuple[tuple[int, int], ...]:
    """Return the blocks with the largest value first, or with the smallest for a negative ``sign``; no embedding, no head."""
    blocks = [place for place in values if place[1] >= 0]
    return tuple(sorted(blocks, key=lambda place: -sign * values[place]))


def block_name(place: tuple[int, int], places: Sequence[tuple[int, int]]) -> str:
    """Return what a sentence calls a block."""
    return f"block {place[1]}" + (f" of stack {place[0]}" if len({stack for stack, _ in places}) > 1 else "")


def _outlet(anatomy: Anatomy, name: str) -> int:
    """Return the stack behind which a parameter stands: the last one that a norm's name does not contradict."""
    for stack in anatomy.stacks:
        path = None if stack.outlet is None else stack.outlet.norm_path
        if path and name.startswith(f"{path}."):
            return stack.index
    return max((stack.index for stack in anatomy.stacks), default=0)


def _is_outside(anatomy: Anatomy, name: str) -> bool:
    """Return whether a parameter's module holds no branch, and none of a branch's modules holds it."""
    path = name.rpartition(".")[0]
    inside = {
        place.rpartition(".")[0] if place in branch.parameters else place
        for branch in anatomy.branches
        for place in (
            branch.module_path,
            *branch.parameters,
            *(p.module_path for p in (branch.write, branch.output) if p),
        )
        if place
    }
    return not any(path == other or path.startswith(f"{other}.") or other.startswith(f"{path}.") for other in inside)
