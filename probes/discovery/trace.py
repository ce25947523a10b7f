"""Trace one eager forward, through torch's functions or, for what they do not show, through its dispatcher."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from rheoscope.probes.batches import Batch, call
from rheoscope.probes.wrappers import modules_of
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .recorder import ModuleCall, Operation, Recorder, Trace

__all__ = ["ModuleCall", "Operation", "Trace", "trace"]

# Calls that read no content, or give a view of none.
_SILENT = frozenset(
    "size dim __len__ stride is_floating_point is_contiguous numel item tolist __bool__ __int__ __float__ __index__ "
    "data_ptr requires_grad_ get_device is_complex untyped_storage storage_offset register_hook __hash__ __repr__ "
    "__format__ is_inference element_size nelement ndimension".split()
)
_SILENT_ATTRIBUTES = frozenset("shape dtype device ndim layout requires_grad is_cuda grad itemsize names".split())


class _Functions(TorchFunctionMode):
    """Sees every call of a torch function: few and telling operations, views that keep their identity."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in _SILENT:
            return func(*args, **(kwargs or {}))
        if name == "__get__":
            attribute = getattr(getattr(func, "__self__", None), "__name__", "")
            if attribute in _SILENT_ATTRIBUTES:
                return func(*args, **(kwargs or {}))
            name = f"get_{attribute}"
        elif name in ("wrapper", "wrapped", "fn"):
            name = getattr(getattr(func, "__wrapped__", func), "__name__", name)
        return self._recorder.operation(name.strip("_"), func, args, kwargs or {})


class _Dispatched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every kernel, those inside scripted and C++ regions included.

    The version of a tensor that is written to goes up only after this handler has returned: which tensors are written
    to is read off the schema.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        written = []
        for index, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[index] if index < len(args) else kwargs.get(argument.name)
                written += [t for t in (given if isinstance(given, list) else [given]) if isinstance(t, torch.Tensor)]
        return self._recorder.operation(schema.name.split("::")[-1].strip("_"), func, args, kwargs, written)


def trace(model: nn.Module, batch: Batch, by: Literal["functions", "dispatcher"] = "functions") -> Trace:
    """Return what one forward of ``model`` on ``batch`` does.

    Call it inside ``untouched(model, training=False)``.

    Args:
        model: the model.
        batch: what it is called with.
        by: torch's functions, or its dispatcher: slower, and norms and attention fall apart into their parts.

    Raises:
        BatchError: the model rejects the batch.
    """
    recorder = Recorder(model)
    mode = _Functions(recorder) if by == "functions" else _Dispatched(recorder)
    with _hooked(model, recorder), torch.no_grad(), torch.compiler.set_stance("force_eager"), mode:
        call(model, batch)
    return recorder.trace


@contextlib.contextmanager
def _hooked(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    handles = []

    def enter(path: str) -> Callable[..., None]:
        return lambda module, args, kwargs: recorder.entered(path, module, args, kwargs)

    def leave(path: str) -> Callable[..., None]:
        return lambda module, args, kwargs, output: recorder.left(path, output)  # noqa: ARG005

    try:
        for path, module in modules_of(model, remove_duplicate=True).items():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks with keywords; what it does shows in the dispatcher
            handles.append(module.register_forward_pre_hook(enter(path), with_kwargs=True))
            handles.append(module.register_forward_hook(leave(path), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
