"""Know which branch of the residual stream is running, and give a call in the forward its place in the anatomy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from .anatomy import Anatomy, Branch
from .hooked import Hook

ATTENTION_KINDS = ("attention", "cross_attention", "parallel")


@dataclass(frozen=True)
class Moment:
    """Where in a forward something happened.

    Attributes:
        module_path: the innermost running module that holds a whole branch, "" where none does.
        module_call: which of that module's calls within the forward, from 0.
    """

    module_path: str
    module_call: int


class Running:
    """Hooks on the modules that hold a branch; ``now`` says which of them is running."""

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        """Find the modules; nothing is hooked yet."""
        modules = dict(model.named_modules(remove_duplicate=False))
        paths = dict.fromkeys(branch.module_path for branch in anatomy.branches)
        self.modules = {path: modules[path] for path in paths if path and path in modules}
        self._handles: list[RemovableHandle] = []
        self._inside: list[Moment] = []
        self._calls: dict[str, int] = {}

    def attach(self) -> None:
        """Hook the modules."""
        if not self._handles:
            for path, module in self.modules.items():
                self._handles.append(module.register_forward_pre_hook(Hook(self._enter(path))))
                self._handles.append(module.register_forward_hook(Hook(self._leave(path)), always_call=True))

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

    @property
    def now(self) -> Moment:
        """Where the forward is."""
        return self._inside[-1] if self._inside else Moment("", 0)

    def _enter(self, path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            nth = self._calls.get(path, 0)
            self._calls[path] = nth + 1
            self._inside.append(Moment(path, nth))

        return hook

    def _leave(self, path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            while self._inside and self._inside.pop().module_path != path:
                pass

        return hook


def places(anatomy: Anatomy, moments: Sequence[Moment], kinds: tuple[str, ...]) -> list[tuple[Branch | None, int]]:
    """Return the branch of every call of one forward, and which call of that branch it is.

    A call belongs to the branch that the running module holds. Where the module holds several (one module serves all
    blocks, or the model's own forward holds all branches), they are told apart by order, if their number is that of
    the module's calls, or that of the calls inside it. None where this settles nothing.

    Args:
        anatomy: of the model.
        moments: when the calls of one forward happened, in order.
        kinds: of the branches that such a call belongs to, where a module holds several.
    """
    found: list[Branch | None] = [None] * len(moments)
    for path in dict.fromkeys(moment.module_path for moment in moments):
        mine = [index for index, moment in enumerate(moments) if moment.module_path == path]
        holders = _holders(anatomy, path, kinds)
        units = list(dict.fromkeys(moments[index].module_call for index in mine))
        if len(holders) == 1 and path:
            chosen = dict.fromkeys(mine, holders[0])
        elif len(holders) == len(units) and path:
            chosen = {index: holders[units.index(moments[index].module_call)] for index in mine}
        elif len(holders) == len(mine):
            chosen = dict(zip(mine, holders, strict=True))
        else:
            chosen = {}
        for index, branch in chosen.items():
            found[index] = branch
    return [(branch, _nth(found, index)) for index, branch in enumerate(found)]


def _holders(anatomy: Anatomy, path: str, kinds: tuple[str, ...]) -> list[Branch]:
    """Return the branches of ``kinds`` that the module holds, or its only one whatever its kind."""
    held = [branch for branch in anatomy.branches if branch.module_path == path]
    return held if len(held) == 1 and path else [branch for branch in held if branch.kind in kinds]


def _nth(found: list[Branch | None], index: int) -> int:
    return sum(branch is found[index] for branch in found[:index])
