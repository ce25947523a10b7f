"""Draw one block as text, and the anatomy as lines of blocks that are alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rheoscope.probes.anatomy import Branch, Stack

from .details import inside_of
from .sketch import box_name, branch_name, norm_name
from .theme import number


def text_sketch(branches: Sequence[Branch]) -> str:
    """Return one block in characters, read from the bottom up: the stream on the left, each branch to its right."""
    lines = ["↑"]
    for branch in reversed(branches):
        lines += _branch(branch)
    return "\n".join(lines)


def alike(stack: Stack) -> Iterator[tuple[int, int, tuple[Branch, ...]]]:
    """Yield runs of consecutive blocks that are alike: the first's index, the last's, and the first's branches."""
    blocks: dict[int, tuple[Branch, ...]] = {}
    for branch in stack.branches:
        blocks[branch.block] = (*blocks.get(branch.block, ()), branch)
    first: int | None = None
    for index, branches in blocks.items():
        if first is not None and _signature(blocks[first]) != _signature(branches):
            yield first, index - 1, blocks[first]
            first = None
        first = index if first is None else first
    if first is not None:
        yield first, max(blocks), blocks[first]


def rows(stack: Stack) -> Iterator[tuple[str, ...]]:
    """Yield one row a branch of each run of like blocks: blocks, branch, placement, norms, bias, inside, ledger error."""
    for first, last, branches in alike(stack):
        inside = [branch for branch in stack.branches if first <= branch.block <= last]
        for position, branch in enumerate(branches):
            errors = [b.ledger_error for b in inside[position :: len(branches)]]
            proven = [error for error in errors if error is not None]
            yield (
                (f"{first}" if first == last else f"{first}-{last}") if position == 0 else "",
                branch_name(branch),
                branch.placement + (", parallel" if branch.is_parallel else ""),
                norm_name(branch) if branch.placement != "none" else "-",
                "yes" if branch.output_bias else "no",
                "; ".join(inside_of(branch)),
                number(max(proven), 2) if proven and len(proven) == len(errors) else "not certified",
            )


def _signature(branches: Sequence[Branch]) -> tuple[object, ...]:
    return tuple((b.kind, b.placement, b.norm_kind, b.is_parallel, b.output_bias is not None) for b in branches)


def _branch(branch: Branch) -> list[str]:
    before, after = branch.placement in ("pre", "double"), branch.placement in ("double", "reordered")
    parts = [norm_name(branch)] * before
    parts.append(box_name(branch))
    parts += [norm_name(branch)] * after
    inside = "── " + " ── ".join(parts) + " ──"
    add = "⊕◂" + "─" * (len(inside) - 1) + "╮"
    lines = [f"▣ {norm_name(branch)}"] if branch.placement == "post" else []
    scale = "│" if branch.scale == 1 else f"│ × {branch.scale:.3g}"
    return [*lines, add, "├" + inside + "╯", scale]
