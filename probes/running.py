"""Know which branch of the residual stream is running, and give a call in the forward its place in the anatomy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.compiler import is_compiling
from torch.utils.hooks import RemovableHandle

from .anatomy import Anatomy, Branch
from .hooked import Fail, Hook
from .wrappers import modules_of

ATTENTION_KINDS = ("attention", "cross_attention", "parallel")


Call = tuple[str, int]  # of which module, and which of its calls within the forward, from 0


@dataclass(frozen=True)
class Moment:
    """Where in a forward something happened.

    Attributes:
        module_path: the innermost running module that holds a whole branch, "" where none does.
        module_call: which of that module's calls within the forward, from 0.
        ends: the calls of last projections in the same forward, in order; they go on being added while it runs.
        n_ended: how many of them came before.
    """

    module_path: str
    module_call: int
    ends: list[Call] = field(default_factory=list, compare=False)
    n_ended: int = field(default=0, compare=False)

    @property
    def coming_end(self) -> Call | None:
        """The first last projection after this moment."""
        return self.ends[self.n_ended] if self.n_ended < len(self.ends) else None


class Running:
    """Hooks on the modules that hold a branch, or end one; ``now`` says which of them is running."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, fail: Fail | None = None) -> None:
        """Find the modules; nothing is hooked yet. ``fail`` is told of errors in hooks; without it they come out."""
        self._fail = fail
        modules = modules_of(model)
        paths = dict.fromkeys(holders(anatomy))
        ends = dict.fromkeys(branch.module_path for branch in anatomy.branches)
        self.modules = {path: modules[path] for path in paths if path and path in modules}
        # A module without others inside it holds no attention: it ends a branch whose rest runs around it.
        self.ends = {path: modules[path] for path in ends if path in modules and not [*modules[path].children()]}
        self._handles: list[RemovableHandle] = []
        self._inside: list[Call] = []
        self._calls: dict[str, int] = {}
        self._ended: list[Call] = []

    def attach(self) -> None:
        """Hook the modules."""
        if not self._handles:
            for path, module in self.modules.items():
                self._handles.append(module.register_forward_pre_hook(Hook(self._enter(path), self._fail)))
                self._handles.append(
                    module.register_forward_hook(Hook(self._leave(path), self._fail), always_call=True)
                )
            for path, module in self.ends.items():
                self._handles.append(module.register_forward_pre_hook(Hook(self._end(path), self._fail)))

    def detach(self) -> None:
        """Unhook them."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.restart()

    def restart(self) -> None:
        """A new forward begins: nothing is running."""
        self._inside.clear()
        self._calls.clear()
        self._ended = []

    @property
    def now(self) -> Moment:
        """Where the forward is."""
        path, nth = self._inside[-1] if self._inside else ("", 0)
        return Moment(path, nth, self._ended, len(self._ended))

    def _enter(self, path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if is_compiling():
                return
            nth = self._calls.get(path, 0)
            self._calls[path] = nth + 1
            self._inside.append((path, nth))

        return hook

    def _leave(self, path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            while not is_compiling() and self._inside and self._inside.pop()[0] != path:
                pass

        return hook

    def _end(self, path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if not is_compiling():
                self._ended.append((path, sum(end == path for end, _ in self._ended)))

        return hook


def holder(anatomy: Anatomy, branch: Branch) -> str:
    """Return the path of the innermost module that holds the branch's end and all parameters that it has to itself.

    Norms left out: a block's norm stands beside its branch.
    """
    norms = {*anatomy.gains, *anatomy.norm_biases}
    owners = [name.split(".")[:-1] for name in branch.parameters if name not in norms]
    paths = [*([branch.module_path.split(".")] if branch.module_path else []), *owners]
    if not paths:
        return ""
    shared = next((n for n, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1), min(map(len, paths)))
    return ".".join(paths[0][:shared])


def holders(anatomy: Anatomy) -> list[str]:
    """Return the ``holder`` of every branch, in order."""
    return [holder(anatomy, branch) for branch in anatomy.branches]


def place_of(branch: Branch | None) -> dict[str, Any]:
    """Return the columns that name a branch; -1 and null for a call that belongs to none for certain."""
    if branch is None:
        return {"stack": -1, "block": -1, "branch": None, "depth": -1}
    return {"stack": branch.stack, "block": branch.block, "branch": branch.kind, "depth": branch.depth}


def places(
    anatomy: Anatomy, moments: Sequence[Moment], kinds: tuple[str, ...], paths: Sequence[str] | None = None
) -> list[tuple[Branch | None, int]]:
    """Return the branch of every call of one forward, and which call of that branch it is.

    A call belongs to the branch that the running module holds. Where the module holds several (one module serves all
    blocks, or the model's own forward holds all branches), they are told apart by order, if their number is that of
    the module's calls, or that of the calls inside it. A call in no such module belongs to the branch that is about to
    end, if every branch of its kind has as many. None where this settles nothing.

    Args:
        anatomy: of the model.
        moments: when the calls of one forward happened, in order.
        kinds: of the branches that such a call belongs to, where a module holds several.
        paths: of the modules that hold the branches, in order, where the caller has looked them up.
    """
    paths = holders(anatomy) if paths is None else paths
    found: list[Branch | None] = [None] * len(moments)
    for path in dict.fromkeys(moment.module_path for moment in moments):
        mine = [index for index, moment in enumerate(moments) if moment.module_path == path]
        held = _held(anatomy, paths, path, kinds)
        units = list(dict.fromkeys(moments[index].module_call for index in mine))
        if len(held) == 1 and path:
            chosen = dict.fromkeys(mine, held[0])
        elif len(held) == len(units) and path:
            chosen = {index: held[units.index(moments[index].module_call)] for index in mine}
        elif len(held) == len(mine):
            chosen = dict(zip(mine, held, strict=True))
        else:
            chosen = {}
        for index, branch in chosen.items():
            found[index] = branch
    ending = _about_to_end(anatomy, moments, found, kinds)
    counts = Counter(id(branch) for branch in ending.values())
    if len(set(counts.values())) == 1:
        for index, branch in ending.items():
            found[index] = branch
    return [(branch, _nth(found, index)) for index, branch in enumerate(found)]


def _held(anatomy: Anatomy, paths: Sequence[str], path: str, kinds: tuple[str, ...]) -> list[Branch]:
    """Return the branches of ``kinds`` that the module holds, or its only one whatever its kind."""
    held = [branch for branch, where in zip(anatomy.branches, paths, strict=True) if where == path]
    return held if len(held) == 1 and path else [branch for branch in held if branch.kind in kinds]


def _about_to_end(
    anatomy: Anatomy, moments: Sequence[Moment], found: Sequence[Branch | None], kinds: tuple[str, ...]
) -> dict[int, Branch]:
    """Return, for calls whose branch is not found, the one whose last projection comes next."""
    found_ids = {id(branch) for branch in found if branch is not None}
    ending: dict[int, Branch] = {}
    for index, moment in enumerate(moments):
        if found[index] is None and moment.coming_end is not None:
            path, nth = moment.coming_end
            ended = [branch for branch in anatomy.branches if branch.module_path == path]
            n_calls = sum(end == path for end, _ in moment.ends)
            if len(ended) == n_calls and ended[nth].kind in kinds and id(ended[nth]) not in found_ids:
                ending[index] = ended[nth]
    return ending


def _nth(found: list[Branch | None], index: int) -> int:
    return sum(branch is found[index] for branch in found[:index])
