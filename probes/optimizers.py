"""Hear of the steps of one optimizer or of several, and see their parameter groups as one list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .hooked import Fail, Hook

DEEPEST = 4  # wrappers around an optimizer
Before = Callable[[Any, bool], None]
After = Callable[[Any], None]


def stepping(optimizer: Any) -> Any:
    """Return the optimizer that steps: the one given, or the one that it is a wrapper around; None where none takes hooks."""
    for _ in range(DEEPEST):
        if hasattr(optimizer, "_optimizer_step_pre_hooks"):
            return optimizer
        optimizer = getattr(optimizer, "optimizer", None)
    return None


class Optimizers:
    """The optimizers of one training loop.

    Attributes:
        all: each of them, in the order given.
    """

    def __init__(self, given: Optimizer | Sequence[Optimizer]) -> None:
        """Take one or several."""
        several = tuple(given) if isinstance(given, Sequence) else (given,)
        self.all: tuple[Any, ...] = tuple(stepping(each) for each in several)
        self._handles: list[RemovableHandle] = []
        self._depth: dict[int, int] = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all, one after the other."""
        return [group for optimizer in self.all for group in optimizer.param_groups]

    @property
    def found_inf(self) -> Tensor | None:
        """What a gradient scaler told the first fused optimizer about values that are not finite."""
        found = (getattr(optimizer, "found_inf", None) for optimizer in self.all)
        return next((value for value in found if isinstance(value, Tensor)), None)

    @property
    def running(self) -> list[Any]:
        """Those whose step has begun and not ended: one that computes its own gradients runs forwards inside it."""
        return [each for each in self.all if self._depth.get(id(each), 0)]

    def begun(self, optimizer: Any) -> None:
        """Take in that the step of ``optimizer`` had begun before it was watched."""
        if any(each is optimizer for each in self.all):
            self._depth[id(optimizer)] = 1

    def watch(self, before: Before, after: After, fail: Fail) -> None:
        """Call ``before(optimizer, has_closure)`` and ``after(optimizer)`` around each whole step; ``fail`` of their errors.

        An optimizer whose step ends in that of the class it extends runs torch's hooks once for each: the outermost count.
        """
        for optimizer in self.all:
            enter, leave = Hook(partial(self._enter, before), fail), Hook(partial(self._leave, after), fail)
            self._handles.append(optimizer.register_step_pre_hook(enter))
            self._handles.append(optimizer.register_step_post_hook(leave))

    def settle(self) -> None:
        """Forget steps that raised before their end."""
        self._depth.clear()

    def close(self) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter(self, before: Before, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        depth = self._depth.get(id(optimizer), 0)
        self._depth[id(optimizer)] = depth + 1
        if not depth:
            # torch's hooks get the optimizer as the first argument of its step.
            before(optimizer, any(callable(value) for value in (*args[1:], *kwargs.values())))

    def _leave(self, after: After, optimizer: Any, *_: object) -> None:
        depth = self._depth[id(optimizer)] = max(0, self._depth.get(id(optimizer), 0) - 1)
        if not depth:
            after(optimizer)
