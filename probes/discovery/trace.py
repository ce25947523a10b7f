"""Trace one eager forward: every torch call on every value, and every module call around them.

A *value* is a tensor's content at one moment: the key (storage, version, offset, number of elements). Views and
reshapes of one storage share a value for free; an in-place write makes a new one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rheoscope.probes.batches import Batch, call, tensors
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Key = tuple[int, int, int, int]
Position = tuple[int | str, ...]

# Calls that read no content, or give a view of none.
_SILENT = frozenset(
    "size dim __len__ stride is_floating_point is_contiguous numel item tolist __bool__ __int__ __float__ __index__ "
    "data_ptr requires_grad_ get_device is_complex untyped_storage storage_offset register_hook __hash__ __repr__ "
    "__format__ is_inference element_size nelement ndimension".split()
)
_DROPOUTS = frozenset("dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout".split())


@dataclass(frozen=True)
class Operation:
    """One torch call: its name without underscores, the values it read and made, numbers among its arguments."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    calls: tuple[int, ...]
    numbers: tuple[float, ...] = ()


@dataclass
class ModuleCall:
    """One call of a module: the values that entered and left, and which operations ran inside."""

    index: int
    path: str
    module: nn.Module
    nth: int
    first: int
    entered_at: int
    last: int = -1
    left_at: int = -1
    inputs: list[tuple[Position, int]] = field(default_factory=list)
    outputs: list[tuple[Position, int]] = field(default_factory=list)


@dataclass
class Trace:
    """What one forward did.

    Attributes:
        operations: in order of execution.
        calls: the module calls, in order of entry; the first is the model itself.
        shapes: of each value.
        dtypes: of each value.
        parameters: value -> name of the parameter or buffer it is.
        settled: value -> moment of the last dropout that returned it unchanged because of eval mode; a hook that
            sees the value earlier sees it before dropout in training.
    """

    operations: list[Operation] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    dtypes: list[torch.dtype] = field(default_factory=list)
    parameters: dict[int, str] = field(default_factory=dict)
    settled: dict[int, int] = field(default_factory=dict)

    def n_elements(self, value: int) -> int:
        """Return the number of elements of ``value``."""
        count = 1
        for size in self.shapes[value]:
            count *= size
        return count


class _Recorder:
    """Keeps every tensor alive while the forward runs, so that no storage address is used twice."""

    def __init__(self, model: nn.Module) -> None:
        self.trace = Trace()
        self._ids: dict[Key, int] = {}
        self._alive: list[Any] = []
        self._stack: list[ModuleCall] = []
        self._nth: dict[str, int] = {}
        self._produced: set[int] = set()
        self._latest: dict[tuple[int, int, int], int] = {}
        self._written: dict[int, int] = {}
        self._clock = 0
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        for name, tensor in named:
            self.trace.parameters.setdefault(self._value(tensor), name)

    def operation(self, name: str, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run one torch call and write down what it read and made."""
        given = [tensor for _, tensor in tensors((tuple(args), kwargs))]
        with torch._C.DisableTorchFunction():
            self._clock += 1
            inputs = [self._read(tensor) for tensor in given]
            versions = [tensor._version for tensor in given]
        result = function(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            mutated = [t for t, version in zip(given, versions, strict=True) if t._version != version]
            fresh = [*mutated, *(t for _, t in tensors(result))]
            made = [self._value(tensor) for tensor in fresh]
            for tensor, value in zip(fresh, made, strict=True):
                self._latest[self._place(tensor)] = value
            for tensor in mutated:
                self._written[tensor.untyped_storage()._cdata] = self._value(tensor)
            outputs = [v for v in dict.fromkeys(made) if v not in self._produced and v not in inputs]
            if outputs:
                numbers = tuple(float(a) for a in args if isinstance(a, int | float) and not isinstance(a, bool))
                self._add(name, inputs, outputs, numbers)
            elif name in _DROPOUTS and _probability(args, kwargs) > 0:
                for value in made:
                    self.trace.settled[value] = self._clock
        return result

    def entered(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Write down the start of a module call."""
        with torch._C.DisableTorchFunction():
            self._clock += 1
            found = ModuleCall(
                len(self.trace.calls), path, module, self._nth.get(path, 0), len(self.trace.operations), self._clock
            )
            self._nth[path] = found.nth + 1
            positions = [*tensors(args), *tensors(kwargs)]
            found.inputs = [(position, self._read(tensor)) for position, tensor in positions]
            self.trace.calls.append(found)
            self._stack.append(found)

    def left(self, path: str, output: Any) -> None:
        """Write down the end of a module call; values that appeared unseen become one opaque operation."""
        with torch._C.DisableTorchFunction():
            self._clock += 1
            while self._stack and self._stack[-1].path != path:
                self._stack.pop()
            if not self._stack:
                return
            found = self._stack[-1]
            known = {value for _, value in found.inputs}
            for position, tensor in tensors(output):
                value = self._value(tensor)
                if value not in self._produced and value not in known and value not in self.trace.parameters:
                    self._add("opaque", [v for _, v in found.inputs], [value])
                found.outputs.append((position, value))
            found.last, found.left_at = len(self.trace.operations), self._clock
            self._stack.pop()

    def _add(self, name: str, inputs: list[int], outputs: list[int], numbers: tuple[float, ...] = ()) -> None:
        calls = tuple(entry.index for entry in self._stack)
        self.trace.operations.append(Operation(name, tuple(inputs), tuple(outputs), calls, numbers))
        self._produced.update(outputs)

    def _read(self, tensor: Tensor) -> int:
        """Return the value of a tensor that is read; link it to a write through another view of its storage."""
        value = self._value(tensor)
        if value in self._produced or value in self.trace.parameters or tensor.layout != torch.strided:
            return value
        place = self._place(tensor)
        sources = [v for v in (self._latest.get(place), self._written.get(place[0])) if v is not None and v != value]
        if sources:
            self._add("overlap", sources, [value])
        self._latest[place] = value
        return value

    def _value(self, tensor: Tensor) -> int:
        key = self._key(tensor)
        if key not in self._ids:
            self._alive.append(tensor)
            self._ids[key] = len(self._ids)
            self.trace.shapes.append(tuple(tensor.shape))
            self.trace.dtypes.append(tensor.dtype)
        return self._ids[key]

    def _place(self, tensor: Tensor) -> tuple[int, int, int]:
        key = self._key(tensor)
        return (key[0], key[2], key[3])

    def _key(self, tensor: Tensor) -> Key:
        if tensor.layout != torch.strided:
            self._alive.append(tensor)
            return (id(tensor), 0, -1, 0)
        storage = tensor.untyped_storage()._cdata
        version = 0 if tensor.is_inference() else tensor._version
        return (storage, version, int(tensor.storage_offset()), int(tensor.numel()))


class _Mode(TorchFunctionMode):
    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in _SILENT:
            return func(*args, **(kwargs or {}))
        if name == "__get__":
            name = f"get_{getattr(getattr(func, '__self__', None), '__name__', '')}"
        return self._recorder.operation(name.strip("_"), func, args, kwargs or {})


def trace(model: nn.Module, batch: Batch) -> Trace:
    """Return what one forward of ``model`` on ``batch`` does.

    Call it inside ``untouched(model, training=False)``.

    Raises:
        BatchError: the model rejects the batch.
    """
    recorder = _Recorder(model)
    with _hooked(model, recorder), torch.no_grad(), torch.compiler.set_stance("force_eager"), _Mode(recorder):
        call(model, batch)
    return recorder.trace


@contextlib.contextmanager
def _hooked(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    handles = []

    def enter(path: str) -> Callable[..., None]:
        return lambda module, args, kwargs: recorder.entered(path, module, args, kwargs)

    def leave(path: str) -> Callable[..., None]:
        return lambda module, args, kwargs, output: recorder.left(path, output)  # noqa: ARG005

    try:
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(enter(path), with_kwargs=True))
            handles.append(module.register_forward_hook(leave(path), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _probability(args: Sequence[Any], kwargs: dict[str, Any]) -> float:
    given = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    return float(given) if isinstance(given, int | float) else 0.5
