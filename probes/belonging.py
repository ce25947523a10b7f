"""Find the branch that a module or parameter belongs to, from where the anatomy saw that branch's own."""

from __future__ import annotations

from .anatomy import Anatomy, Branch


def branch_of(anatomy: Anatomy, path: str) -> Branch | None:
    """Return the branch whose own modules and parameters share the longest beginning with ``path``.

    None where nothing is shared but what blocks share with one another: the model's head, a module that all of them use. Where
    two branches of one block share as much, the first of them: the block is certain, the branch is not.
    """
    shares = [(max((_shared(path, own) for own in _own(branch)), default=0), branch) for branch in anatomy.branches]
    if not shares:
        return None
    most = max(share for share, _ in shares)
    best = [branch for share, branch in shares if share == most]
    is_one_block = len({(branch.stack, branch.block) for branch in best}) == 1
    return best[0] if most > 0 and is_one_block and (len(shares) > len(best) or len(anatomy.blocks) == 1) else None


def _own(branch: Branch) -> tuple[str, ...]:
    paths = (branch.module_path, *branch.parameters, *branch.input_norms, *branch.output_norms, *branch.skip_norms)
    points = (branch.write, branch.output, *branch.inputs, *branch.terms)
    return tuple(path for path in (*paths, *(point.module_path for point in points if point is not None)) if path)


def _shared(one: str, other: str) -> int:
    """Return how many names two dotted paths share from the left."""
    n = 0
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        n += 1
    return n
