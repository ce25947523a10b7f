"""Know when a forward of the training loop begins and ends: outside of all that is compiled, traced or transformed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .hooked import Fail, Hook, is_recomputing
from .stages import Chunks

Begins = Callable[[tuple[Any, ...], Mapping[str, Any]], None]
Ends = Callable[[bool], None]


class Door:
    """Calls ``begins(args, kwargs)`` and ``ends(has_failed)`` around every forward that ``model`` learns from."""

    def __init__(self, model: nn.Module, begins: Begins, ends: Ends, fail: Fail) -> None:
        """Watch the model; ``fail(error)`` is told of errors, and must not raise unless training is to stop."""
        self._model, self._begins, self._ends = model, begins, ends
        self._is_open = False
        self.is_shut = False  # while it is, forwards are not the loop's
        self._chunks = Chunks(model)
        self._compiled: Any = model._compiled_call_impl
        self._enters, self._leaves = Hook(self._enter, fail), Hook(self._leave, fail)
        self._handles: list[RemovableHandle] = []
        if self._compiled is not None:
            # All hooks of a module that compiled itself are inside its graph.
            model._compiled_call_impl = self._call
        else:
            self._handles.append(model.register_forward_pre_hook(self._enters, with_kwargs=True, prepend=True))
            self._handles.append(model.register_forward_hook(self._leaves, always_call=True))

    def enter(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take in a forward that had begun when the door was put there."""
        self._enters(self._model, args, dict(kwargs))

    def leave(self, *, has_failed: bool) -> None:
        """Take in the end of such a forward, where it was not seen."""
        self._end(has_failed=has_failed)

    def close(self) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._chunks.close()
        if self._compiled is not None and self._model._compiled_call_impl == self._call:
            self._model._compiled_call_impl = self._compiled

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        self._enters(self._model, args, kwargs)
        output = None
        try:
            output = self._compiled(*args, **kwargs)
        finally:
            self._leaves(self._model, args, output)
        return output

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # While a graph is traced this is all that dynamo sees of us: a constant.
        if torch.compiler.is_compiling() or module is not self._model or self.is_shut:
            return
        if self._chunks.is_on and _is_trained(module):
            self._begins(args, kwargs)
            # Afterwards: discovery runs forwards of its own inside.
            self._is_open = True

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:  # noqa: ARG002
        if not torch.compiler.is_compiling():
            self._end(has_failed=output is None and sys.exc_info()[0] is not None)

    def _end(self, *, has_failed: bool) -> None:
        if self._is_open:
            self._is_open = False
            self._ends(has_failed)


def _is_trained(module: nn.Module) -> bool:
    """Return whether a forward that begins now is one to learn from.

    One without gradients is generation or evaluation, whatever the model's mode; one inside a backward repeats a forward;
    tensors that are traced, or transformed by torch.func, have no memory that could be read.
    """
    return (
        module.training
        and torch.is_grad_enabled()
        and not is_recomputing()
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch._C._is_tracing()
    )
