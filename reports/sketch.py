"""Draw one block as discovery found it: the stream, its branches, and the norms where they really are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup, escape
from rheoscope.probes.anatomy import Branch, Stack

from .theme import plain

_STREAM, _LEFT, _GAP, _ROW, _NORM_ROW = 46, 92, 16, 92, 36
_NORM_WIDTH, _BRANCH_WIDTH, _BOX = 82, 118, 28


def typical_block(stack: Stack) -> tuple[Branch, ...]:
    """Return the branches of the first block of the commonest kind."""
    blocks: dict[int, list[Branch]] = {}
    for branch in stack.branches:
        blocks.setdefault(branch.block, []).append(branch)
    kinds = {number: tuple(_signature(branch) for branch in branches) for number, branches in blocks.items()}
    if not kinds:
        return ()
    commonest = Counter(kinds.values()).most_common(1)[0][0]
    return tuple(blocks[next(number for number, kind in kinds.items() if kind == commonest)])


def is_uniform(stack: Stack) -> bool:
    """Return whether all blocks of the stack are of one kind."""
    blocks: dict[int, list[tuple[object, ...]]] = {}
    for branch in stack.branches:
        blocks.setdefault(branch.block, []).append(_signature(branch))
    return len({tuple(kinds) for kinds in blocks.values()}) <= 1


def sketch(branches: Sequence[Branch]) -> Markup:
    """Return an SVG of one block, read from the bottom up."""
    height = 30 + sum(_ROW + (_NORM_ROW if branch.placement == "post" else 0) for branch in branches)
    width = _LEFT + 2 * _NORM_WIDTH + max(map(_box_width, branches), default=_BRANCH_WIDTH) + 4 * _GAP
    parts: list[Markup] = [_line(_STREAM, height, _STREAM, 14, "stream", arrow=True)]
    y = height - 12
    for branch in branches:
        parts += _branch(branch, y)
        y -= _ROW
        if branch.placement == "post":
            parts.append(_box(_STREAM - _NORM_WIDTH / 2, y - 6, _NORM_WIDTH, norm_name(branch), "norm"))
            y -= _NORM_ROW
    label = f"One block: {'; '.join(describe(branch) for branch in branches)}"
    return Markup(
        '<svg class="sketch" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">{}</svg>'
    ).format(width, height, width, height, label, Markup("").join(parts))


def describe(branch: Branch) -> str:
    """Return how one branch is normed, as a formula in words."""
    name = branch_name(branch)
    forms = {
        "pre": f"x + {name}(norm(x))",
        "post": f"norm(x + {name}(x))",
        "double": f"x + norm({name}(norm(x)))",
        "reordered": f"x + norm({name}(x))",
        "none": f"x + {name}(x)",
    }
    return forms.get(branch.placement, f"x + {name}(x), norms not settled")


def _signature(branch: Branch) -> tuple[object, ...]:
    return (branch.kind, branch.placement, branch.norm_kind, branch.is_parallel, branch.output_bias is not None)


def _branch(branch: Branch, y: float) -> list[Markup]:
    before, after = branch.placement in ("pre", "double"), branch.placement in ("double", "reordered")
    row, back, x = y - 14, y - 60, float(_LEFT)
    boxes: list[tuple[float, str, str]] = []
    if before:
        boxes.append((_NORM_WIDTH, norm_name(branch), "norm"))
    boxes.append((_box_width(branch), box_name(branch), "branch"))
    if after:
        boxes.append((_NORM_WIDTH, norm_name(branch), "norm"))
    end = x + sum(width for width, _, _ in boxes) + _GAP * len(boxes)
    path = Markup('<path class="wire" d="M{} {} H{} V{} H{}"/>').format(_STREAM, row, end, back, _STREAM + 10)
    parts = [path]
    for width, text, kind in boxes:
        parts.append(_box(x, row - _BOX / 2, width, text, kind))
        x += width + _GAP
    parts.append(Markup('<circle class="add" cx="{}" cy="{}" r="10"/>').format(_STREAM, back))
    parts.append(Markup('<path class="wire" d="M{} {} h10 m-5 -5 v10"/>').format(_STREAM - 5, back))
    if branch.scale != 1:
        parts.append(_text(_STREAM - 8, (row + back) / 2 + 4, f"×{branch.scale:.3g}", "end"))
    return parts


def branch_name(branch: Branch) -> str:
    """Return what a reader calls the branch."""
    return {"mlp": "MLP", "moe": "MoE"}.get(branch.kind, plain(branch.kind, 24).replace("_", " "))


def box_name(branch: Branch) -> str:
    """Return what stands in the branch's box: its name, a norm of queries and keys, a bias at its end."""
    is_normed = branch.attention is not None and branch.attention.qk_norm in ("layernorm", "rmsnorm")
    return branch_name(branch) + (", QK-norm" if is_normed else "") + (" + bias" if branch.output_bias else "")


def _box_width(branch: Branch) -> float:
    return max(_BRANCH_WIDTH, 7 * len(box_name(branch)))


def norm_name(branch: Branch) -> str:
    """Return what a reader calls the branch's norms."""
    return {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}.get(branch.norm_kind, "norm")


def _box(x: float, y: float, width: float, text: str, kind: str) -> Markup:
    shape = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="6"/>').format(kind, x, y, width, _BOX)
    return shape + _text(x + width / 2, y + _BOX / 2 + 4, text, "middle")


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(x, y, anchor, escape(text))


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, *, arrow: bool = False) -> Markup:
    line = Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, x1, y1, x2, y2)
    head = Markup('<path class="{}-head" d="M{} {} l-6 10 h12 z"/>').format(kind, x2, y2 - 10)
    return line + head if arrow else line
