"""Tap what module hooks do not see: torch's own calls inside a forward, through a function mode.

The mode is on the stack from ``begin`` to ``end`` alone, so that a forward that is not sampled costs nothing. It only
looks: every call runs as it came, and what is measured of it runs without gradients and draws no random number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .anatomy import Anatomy
from .attention import AttentionCalls
from .batches import Arguments, tensors
from .counted import Counted
from .experts import ExpertCalls
from .function_mode import WatchMode, opened, put_on, take_off
from .hooked import is_recomputing
from .running import Moment, Running

MOST_FORWARDS = 64  # forwards measured in one step; more are not
Guard = Callable[[str, Callable[[], None]], None]


def _unguarded(where: str, action: Callable[[], None]) -> None:  # noqa: ARG001
    action()


class FunctionTaps:
    """Measures attention and routing of the forwards between ``begin`` and ``end``.

    ``guard(where, action)`` runs every measurement; it must not let an exception out unless training is to stop.
    """

    def __init__(
        self, model: nn.Module, anatomy: Anatomy, guard: Guard = _unguarded, *, exact_logits: bool = True
    ) -> None:
        """Prepare; nothing is hooked yet. Without ``exact_logits`` attention is only bounded, at next to no cost."""
        self.attention = AttentionCalls(anatomy, is_exact=exact_logits)
        self.experts = ExpertCalls(model, anatomy)
        self._guard = guard
        self._running = Running(model, anatomy, self.failed)
        self._n_forwards = 0
        self._mode: WatchMode | None = None
        self._watched = {
            functional.multi_head_attention_forward,
            *self.attention.before,
            *self.attention.after,
            *self.experts.after,
        }

    def attach(self) -> None:
        """Hook the modules that hold a branch, so that a call is known to be theirs."""
        self._running.attach()

    def detach(self) -> None:
        """Unhook them."""
        try:
            self.end()
        finally:
            self._running.detach()

    def begin(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> None:
        """Start to look, as a forward begins with these arguments: call it in the model's forward pre-hook."""
        self.end()
        if self._n_forwards >= MOST_FORWARDS or torch.compiler.is_compiling() or is_recomputing():
            return
        self._running.restart()
        given = next((tensor for _, tensor in tensors((args, kwargs or {})) if tensor.dim()), None)
        self.attention.begin(self._n_forwards, None if given is None else given.shape[0])
        self.experts.begin(self._n_forwards)
        self._n_forwards += 1
        self._mode = WatchMode(self._watched, self._seen)
        put_on(self._mode)

    def end(self, *, failed: bool = False) -> None:
        """Stop to look: call it in the model's forward hook, also when the forward raised."""
        mode, self._mode = self._mode, None
        if mode is None:
            return
        take_off(mode)
        self._running.restart()
        self.experts.end()
        if failed:
            self._n_forwards -= 1
            self.attention.forget(self._n_forwards)
            self.experts.forget(self._n_forwards)

    @contextlib.contextmanager
    def watching(self, batch: Arguments | None = None) -> Iterator[None]:
        """Hook, look while the block runs one forward, and unhook."""
        self.attach()
        try:
            self.begin(*(() if batch is None else (batch.positional, dict(batch.keywords))))
            yield
        except BaseException:
            self.end(failed=True)
            raise
        finally:
            self.detach()

    def counted(self) -> list[Counted]:
        """Return what was measured since the last call: one copy to the host of each table."""
        self._n_forwards = 0
        return [*self.attention.counted(), *self.experts.counted()]

    def take(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rows of the tables attention and experts since the last call."""
        self._n_forwards = 0
        return {"attention": self.attention.rows(), "experts": self.experts.rows()}

    def _seen(self, mode: WatchMode, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run one torch call that is watched, and measure it."""
        if is_recomputing():
            return function(*args, **kwargs)
        if function is functional.multi_head_attention_forward:
            n_heads = args[4] if len(args) > 4 else kwargs.get("num_heads")
            self._guard("attention", lambda: self.attention.inside(n_heads))
            try:
                return opened(mode, function, args, kwargs)
            finally:
                self._guard("attention", lambda: self.attention.inside(None))
        before = self.attention.before.get(function)
        if before is not None:
            self._guard("attention", lambda: self._measure(before(*args, **kwargs)))
        result = function(*args, **kwargs)
        remember = self.attention.after.get(function)
        if remember is not None:
            self._guard("attention", lambda: remember(result))
        routes = self.experts.after.get(function)
        if routes is not None:
            self._guard("experts", lambda: self._quietly(routes(self._running.now, result, tuple(args), kwargs)))
        return result

    def failed(self, error: Exception) -> None:
        """Tell of an error in a hook as of one in a measurement."""

        def again() -> None:
            raise error

        self._guard("forward", again)

    def _measure(self, action: Callable[[Moment], None] | None) -> None:
        if action is not None:
            self._quietly(partial(action, self._running.now))

    def _quietly(self, action: Callable[[], None] | None) -> None:
        """Run a measurement outside the graph, and in the precision that it asks for."""
        if action is None:
            return
        with torch.no_grad(), _full_precision() if torch._C._is_any_autocast_enabled() else contextlib.nullcontext():
            action()


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Switch autocast off."""
    accelerator = torch.accelerator.current_accelerator()
    with contextlib.ExitStack() as stack:
        for device in ("cpu", *(() if accelerator is None else (accelerator.type,))):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
