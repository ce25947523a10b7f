"""Change the kind of a model's norms, move them across the residual adds, and scale its skips."""

from __future__ import annotations

from dataclasses import replace

from rheoscope.probes.anatomy import Anatomy, Branch, Stack
from rheoscope.probes.discovery.places import AddPlace, Places
from rheoscope.probes.errors import LabError
from rheoscope.probes.plain_norm import Passed, PlainNorm, plain
from rheoscope.probes.residual_adds import FirstRead, Held, ResidualAdd
from rheoscope.probes.rewriting import Rewriting
from torch import nn

from .choices import Choices
from .replaced import added, replace_module

_NEEDS = {
    "pre": ("input",),
    "post": ("sum",),
    "double": ("input", "output"),
    "reordered": ("output",),
    "none": (),
}
_OPEN = ("pre", "double", "reordered")  # placements that leave the stream to grow: a final norm stands behind it
_EPSILON = 1e-5  # torch's own default, of norms in a model that has none to take it from


def change_norm_kind(model: nn.Module, anatomy: Anatomy, kind: str) -> None:
    """Replace every norm around the stream by one of another kind; gain, bias and epsilon are kept."""
    for stack in anatomy.stacks:
        for branch in stack.branches:
            if branch.norm_kind not in ("none", kind) and not _paths(branch):
                raise LabError(_written_out(branch))
        paths = [path for branch in stack.branches for path in _paths(branch)]
        final = stack.outlet.norm_path if stack.outlet is not None else None
        if final == "":
            raise LabError(
                "Expected a final norm in a module of its own, got one that is written out in calls. Move it into a module."
            )
        for path in dict.fromkeys([*paths, *([final] if final else [])]):
            norm = model.get_submodule(path)
            if not isinstance(norm, PlainNorm):
                replace_module(model, norm, plain(norm, stack.width, path, kind=kind))


def template(model: nn.Module, anatomy: Anatomy, kind: str | None) -> PlainNorm:
    """Return the norm that new ones are made like: the model's first; of ``kind`` where it has none."""
    for branch in anatomy.branches:
        for path in _paths(branch):
            norm, width = model.get_submodule(path), anatomy.stacks[branch.stack].width
            return norm if isinstance(norm, PlainNorm) else plain(norm, width, path)
    if kind is None:
        raise LabError(
            "Expected norm_kind for norms in a model that has none, got none. Pass layernorm or rmsnorm too."
        )
    return _first(kind, anatomy, next(model.parameters()))


def change_adds(
    model: nn.Module, anatomy: Anatomy, places: Places, choices: Choices, like: PlainNorm | None, rewriting: Rewriting
) -> None:
    """Move norms to where ``choices.norm_placement`` has them, and scale skips."""
    moves = _Moves(model)
    index = 0
    for stack in anatomy.stacks:
        adds = [_place(branch, places.branches[index + k].add) for k, branch in enumerate(stack.branches)]
        held = Held()
        actions = [
            ResidualAdd(place.skip, place.write, held, branch.scale, _factor(branch, choices))
            for place, branch in zip(adds, stack.branches, strict=True)
        ]
        if choices.norm_placement is not None:
            widened = None if like is None else like.new(stack.width)
            reads = [
                moves.of(branch, choices.norm_placement, action, widened)
                for branch, action in zip(stack.branches, actions, strict=True)
            ]
            _let_read(stack, places, reads, adds, actions, rewriting)
            _final_norm(model, stack, choices.norm_placement, actions[-1], widened)
        for place, action in zip(adds, actions, strict=True):
            _register(place, action, rewriting)
        index += len(stack.branches)
    moves.carry_out()


class _Moves:
    """Collects which norms are applied elsewhere and which are not applied any longer, to carry it out at once."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._moved: dict[int, nn.Module] = {}
        self._left: dict[int, nn.Module] = {}

    def of(self, branch: Branch, target: str, action: ResidualAdd, like: PlainNorm | None) -> nn.Module | None:
        """Give the add the norms that it needs; return a norm that the branch is to read through and does not yet."""
        _check_movable(branch, target)
        there = {"input": branch.input_norms, "sum": branch.skip_norms, "output": branch.output_norms}
        needed = _NEEDS[target]
        spare = [path for place, paths in there.items() if place not in needed for path in paths]
        if needed and len(spare) > len(needed) and branch.is_parallel:
            raise LabError(
                f"Expected one norm to move in the parallel block {branch.block}, got {len(spare)}. Which of them is to norm "
                "the sum is not defined: choose norm_placement='none', or leave it as it is."
            )
        norms = [self._model.get_submodule(path) for path in spare]
        found: dict[str, nn.Module] = {}
        for place in needed:
            if there[place]:
                continue
            if norms:
                norm = norms.pop(0)
                self._moved[id(norm)] = norm
            else:
                assert like is not None
                norm = added(self._model, like.new(), f"{branch.stack}_{branch.depth}_{place}")
            found[place] = norm
        self._left |= {id(norm): norm for norm in norms}
        action.write_norm, action.sum_norm = found.get("output"), found.get("sum")
        return found.get("input")

    def carry_out(self) -> None:
        """Let the forward pass by what is applied elsewhere, and take away what is not applied."""
        for key, norm in self._moved.items():
            replace_module(self._model, norm, Passed(norm))
            self._left.pop(key, None)
        for norm in self._left.values():
            replace_module(self._model, norm, nn.Identity())


def _let_read(
    stack: Stack,
    places: Places,
    reads: list[nn.Module | None],
    adds: list[AddPlace],
    actions: list[ResidualAdd],
    rewriting: Rewriting,
) -> None:
    """Let each branch read its state through a norm, where one was put before it, and the skip path go on without."""
    for k, norm in enumerate(reads):
        if norm is None:
            continue
        branch = stack.branches[k]
        if not adds[k].is_plain or adds[k].reads_elsewhere or branch.is_gated_skip:
            raise LabError(
                f"Expected a {branch.kind} branch in block {branch.block} that reads the state before it alone, beside a plain "
                "skip, got another. A norm before that branch is not defined; choose a placement without one."
            )
        actions[k].takes_held = True
        if k:
            actions[k - 1].read_norm = norm
            continue
        first = FirstRead(norm, actions[0].held)
        call = places.starts[stack.index]
        if stack.start is not None and (stack.start.side == "output" or call is None):
            rewriting.points[stack.start] = first.of
        elif call is not None:
            rewriting.calls[call] = first
        else:
            raise LabError(
                f"Expected state 0 of stack {stack.index} where a module or a call shows it, got none. A norm before its first "
                "branch cannot be put in."
            )


def _final_norm(model: nn.Module, stack: Stack, target: str, last: ResidualAdd, like: PlainNorm | None) -> None:
    """Take the final norm away where the target norms the stream itself or nothing, put one in where it needs one."""
    now, path = stack.branches[-1].placement, None if stack.outlet is None else stack.outlet.norm_path
    if target not in _OPEN and now in _OPEN and path is not None:
        if not path:
            raise LabError(
                "Expected a final norm in a module of its own, got one that is written out in calls. Move it into a module."
            )
        replace_module(model, model.get_submodule(path), nn.Identity())
    if target in _OPEN and now not in _OPEN and path is None:
        assert like is not None
        last.sum_norm = added(model, like.new(), f"{stack.index}_final")


def _register(place: AddPlace, action: ResidualAdd, rewriting: Rewriting) -> None:
    """Put an add's action where its calls are; of a parallel block's two adds the first reads the skip, the last is the sum."""
    reads = action.takes_held or action.factor != 1
    gives = any(norm is not None for norm in (action.write_norm, action.sum_norm, action.read_norm))
    if place.first == place.last:
        if reads or gives:
            rewriting.calls[place.last] = action
        return
    if reads:
        rewriting.calls[place.first] = replace(action, write_norm=None, sum_norm=None, read_norm=None)
    if gives:
        rewriting.calls[place.last] = replace(action, skip=None, takes_held=False)


def _place(branch: Branch, place: AddPlace | None) -> AddPlace:
    if place is None:
        raise LabError(
            f"Expected the residual add of the {branch.kind} branch of block {branch.block} as a call of its own, got one fused "
            "with other work. Write it as a plain sum."
        )
    return place


def _factor(branch: Branch, choices: Choices) -> float:
    if choices.skip_scale is None:
        return 1.0
    if branch.is_gated_skip or not branch.scale:
        raise LabError(
            f"Expected a skip with one factor at the {branch.kind} branch of block {branch.block}, got one that depends on the "
            "batch. skip_scale has no meaning there."
        )
    return choices.skip_scale / branch.scale


def _check_movable(branch: Branch, target: str) -> None:
    where = f"the {branch.kind} branch of block {branch.block} (stack {branch.stack})"
    if branch.placement == "unknown":
        raise LabError(f"Expected norms whose place is known, got {where}, where it is not. Leave norm_placement out.")
    if branch.placement != "post" and branch.skip_norms:
        raise LabError(f"Expected no norm of the stream itself behind {where}, got one. Leave norm_placement out.")
    if branch.placement != "none" and not _paths(branch):
        raise LabError(_written_out(branch))
    if max(map(len, (branch.output_norms, branch.skip_norms))) > 1 or (
        len(branch.input_norms) > 1 and not branch.is_parallel
    ):
        raise LabError(f"Expected at most one norm at each place of {where}, got several. Leave norm_placement out.")
    if branch.is_parallel and "output" in _NEEDS[target] and not branch.output_norms:
        raise LabError(
            f"Expected branches that are added one by one for norm_placement={target!r}, got a parallel block ({branch.block}), "
            "whose writes have no norm of their own. Choose pre, post or none."
        )


def _written_out(branch: Branch) -> str:
    return (
        f"Expected norms in modules of their own, got the {branch.norm_kind} of the {branch.kind} branch of block {branch.block} "
        "written out in calls. Move it into a module."
    )


def _paths(branch: Branch) -> tuple[str, ...]:
    return (*branch.input_norms, *branch.output_norms, *branch.skip_norms)


def _first(kind: str, anatomy: Anatomy, like: nn.Parameter) -> PlainNorm:
    width = anatomy.stacks[0].width
    one = like.detach().new_ones(width)
    bias = like.detach().new_zeros(width) if kind == "layernorm" and anatomy.has_biases else None
    return PlainNorm(kind, width, _EPSILON, one, bias)
