"""Find the branch that a module or parameter belongs to, from where the anatomy saw that branch's own."""

from __future__ import annotations

from .anatomy import Anatomy, Branch


def branch_of(anatomy: Anatomy, path: str) -> Branch | None:
    """Return the branch whose own modules and parameters share the longest beginning with ``path``.

    None where nothing is shared but what blocks share with one another: the model's head, a module that all of them use. Where
    two branches of one block share as much, the first of them: the block is certain, the branch is not.
    """
    owned = [(branch, _own(branch)) for branch in anatomy.branches]
    names = path.split(".")
    for n in range(len(names), 0, -1):
        beginning = ".".join(names[:n]) + "."
        best = [branch for branch, own in owned if any(f"{one}.".startswith(beginning) for one in own)]
        if best:
            is_one_block = len({(branch.stack, branch.block) for branch in best}) == 1
            return best[0] if is_one_block and (len(owned) > len(best) or len(anatomy.blocks) == 1) else None
    return None


def _own(branch: Branch) -> tuple[str, ...]:
    paths = (branch.module_path, *branch.parameters, *branch.input_norms, *branch.output_norms, *branch.skip_norms)
    points = (branch.write, branch.output, *branch.inputs, *branch.terms)
    return tuple(path for path in (*paths, *(point.module_path for point in points if point is not None)) if path)
