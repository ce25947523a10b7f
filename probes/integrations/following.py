"""Follow the optimizers of a program and what it calls backward on, and close the steps of the models that are probed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.amp import GradScaler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .backward_losses import BackwardLosses, reached
from .probed import Probed
from .replacements import Replacements

MOST_IDLE = 50  # steps of other models, after which a model that does not step is let go of
Guard = Callable[[Callable[[], None]], None]


class Following:
    """Hears of the steps of all optimizers, and of all backwards, for the models in ``probed``.

    Attributes:
        probed: the models, in the order in which they were found.
        n_stepped: how many steps of optimizers there were, of any model.
        running: the optimizers whose step has begun and not ended, by ``id``.
    """

    def __init__(
        self,
        stepped: Callable[[Any], None],
        lost: Callable[[Tensor], None],
        guard: Guard,
        replacements: Replacements,
    ) -> None:
        """Begin to follow; ``stepped(optimizer)`` is told of every step once it is over, ``lost(loss)`` of every backward."""
        self.probed: list[Probed] = []
        self.n_stepped = 0
        self._tell, self._tell_loss, self._guard = stepped, lost, guard
        self._depth: dict[int, int] = {}
        self.running: dict[int, Any] = {}
        BackwardLosses(self._lost, guard, replacements)
        replacements.put(GradScaler, "step", self._around_scaler_step)
        self._handles = [
            register_optimizer_step_pre_hook(lambda optimizer, *_: guard(lambda: self._before_step(optimizer))),
            register_optimizer_step_post_hook(lambda optimizer, *_: guard(lambda: self._after_step(optimizer))),
        ]

    def close(self) -> None:
        """Follow no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _lost(self, loss: Tensor, graph: Any, scaler: Any) -> None:
        """Give the loss of a backward to the models that it reaches."""
        self._guard(partial(self._tell_loss, loss))
        found = [each for each in self.probed if each.is_open]
        if len(found) > 1:
            hit = reached(graph, frozenset().union(*(each.parameters for each in found)))
            # What a checkpoint hides is not reached: then it may be anyone's.
            found = [each for each in found if hit & each.parameters] or found
        for each in found:
            self._guard(partial(each.add_loss, loss, scaler))

    def _before_step(self, optimizer: Any) -> None:
        depth = self._depth.get(id(optimizer), 0)
        # A step that calls that of the class it extends runs the hooks again.
        self._depth[id(optimizer)] = depth + 1
        if depth:
            return
        self.running[id(optimizer)] = optimizer
        for each in self._of(optimizer):
            self._closed(each, is_closed=each.before_step(optimizer))

    def _after_step(self, optimizer: Any) -> None:
        depth = self._depth[id(optimizer)] = max(0, self._depth.get(id(optimizer), 0) - 1)
        if not depth:
            self.running.pop(id(optimizer), None)
            self._stepped(optimizer)

    def _stepped(self, optimizer: Any) -> None:
        self.n_stepped += 1
        for each in self._of(optimizer):
            each.watch()
            self._closed(each, is_closed=each.after_step(optimizer))
        self._tell(optimizer)

    def _of(self, optimizer: Any) -> list[Probed]:
        return [each for each in self.probed if each.is_open and each.holds(optimizer)]

    def _closed(self, probed: Probed, *, is_closed: bool) -> None:
        """Let go of models that others have long gone on without: the program may have, too."""
        if not is_closed:
            return
        for each in self.probed:
            if each is not probed and each.is_open:
                each.n_idle += 1
                if each.n_idle > MOST_IDLE:
                    each.close()

    def _around_scaler_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A scaler that leaves out a step calls no optimizer: the step has ended all the same."""

        def step(scaler: GradScaler, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            before = self.n_stepped
            returned = original(scaler, optimizer, *args, **kwargs)
            if self.n_stepped == before:
                self._guard(lambda: self._stepped(optimizer))
            return returned

        return step
