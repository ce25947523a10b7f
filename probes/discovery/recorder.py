"""Write down what a forward does: values, operations and module calls.

A *value* is a tensor's content at one moment: the key (storage, version, offset, number of elements, span in memory).
Views and reshapes of one storage share a value for free; an in-place write makes a new one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rheoscope.probes.batches import tensors
from rheoscope.probes.versions import version_of
from rheoscope.probes.wrappers import here, own_name
from torch import Tensor, nn

from .arguments import numbers_in, probability_in, replay_of
from .form import Form, form_of
from .vocabulary import DROPOUTS, PRODUCTS, QUOTIENTS

Key = tuple[int, int, int, int, int]
Position = tuple[int | str, ...]
KEPT_FACTOR = 2**20  # elements: constants that scale a stream are kept up to this size


@dataclass(frozen=True)
class Operation:
    """One torch call.

    Attributes:
        name: without underscores at its ends.
        inputs: values it read, in order.
        outputs: values it made.
        calls: indices of the module calls around it, outermost first.
        numbers: numbers among its arguments.
        text: the first string among its arguments: einsum's equation, gelu's approximation.
        forms: value -> form in which it was read or made.
        replay: applies the call to another tensor in place of its first input; for calls that only move elements.
        factors: value -> small operand, kept to know what a stream is scaled by.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    calls: tuple[int, ...]
    numbers: tuple[float, ...] = ()
    text: str = ""
    forms: dict[int, Form] = field(default_factory=dict, compare=False, hash=False)
    replay: Callable[[Tensor], Any] | None = field(default=None, compare=False, hash=False)
    factors: dict[int, Tensor] = field(default_factory=dict, compare=False, hash=False)


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
    forms: dict[tuple[str, Position], Form] = field(default_factory=dict)
    objects: dict[tuple[str, Position], int] = field(default_factory=dict)  # which tensor object was seen


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
        dropout: value -> probability of that dropout.
        n_opaque: values that appeared from a module without any call that the trace saw.
        readers: value -> the tensor objects in which calls read it; several views of one value are several objects.
        viewed: tensor object -> the one that it is a view of.
    """

    operations: list[Operation] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    dtypes: list[torch.dtype] = field(default_factory=list)
    parameters: dict[int, str] = field(default_factory=dict)
    settled: dict[int, int] = field(default_factory=dict)
    dropout: dict[int, float] = field(default_factory=dict)
    n_opaque: int = 0
    readers: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    viewed: dict[int, int] = field(default_factory=dict)

    def n_elements(self, value: int) -> int:
        """Return the number of elements of ``value``."""
        count = 1
        for size in self.shapes[value]:
            count *= size
        return count

    def new_value(self, like: int) -> int:
        """Return a fresh value with the shape of ``like``: an intermediate result that no call shows."""
        self.shapes.append(self.shapes[like])
        self.dtypes.append(self.dtypes[like])
        return len(self.shapes) - 1


class Recorder:
    """Keeps every tensor alive while the forward runs, so that no storage address is used twice."""

    def __init__(self, model: nn.Module) -> None:
        """Name the model's parameters and buffers."""
        self.trace = Trace()
        self._ids: dict[Key, int] = {}
        self._alive: list[Any] = []
        self._objects: dict[int, Tensor] = {}
        self._stack: list[ModuleCall] = []
        self._nth: dict[str, int] = {}
        self._produced: set[int] = set()
        self._latest: dict[tuple[int, int, int, int], int] = {}
        self._written: dict[int, int] = {}
        self._clock = 0
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        for name, tensor in named:
            self.trace.parameters.setdefault(self._value(here(tensor)), own_name(name))

    def operation(
        self,
        name: str,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        written: Sequence[Tensor] | None = None,
    ) -> Any:
        """Run one torch call and write down what it read and made.

        Args:
            name: of the call.
            function: what to run, with ``args`` and ``kwargs``.
            args: its positional arguments.
            kwargs: its keyword arguments.
            written: the tensors it writes to, where the caller knows them but their version tells only later.
        """
        given = [tensor for _, tensor in _held((tuple(args), kwargs))]
        with torch._C.DisableTorchFunction():
            self._clock += 1
            inputs = [self._read(tensor) for tensor in given]
            forms = {self._value(tensor): form_of(tensor) for tensor in given}
            versions = [version_of(tensor) for tensor in given]
        result = function(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            written = None if written is None else [here(tensor) for tensor in written]
            late = {id(tensor) for tensor in written or ()}
            if written is None:
                written = [t for t, version in zip(given, versions, strict=True) if version_of(t) != version]
            fresh = [*written, *(t for _, t in _held(result))]
            bumps = [int(id(t) in late) for t in fresh]
            made = [self._value(tensor, bump) for tensor, bump in zip(fresh, bumps, strict=True)]
            for tensor, value in zip(fresh, made, strict=True):
                source = next(
                    (t for t, read in zip(given, inputs, strict=True) if read == value and t is not tensor), None
                )
                if source is not None:
                    self.trace.viewed.setdefault(self._object(tensor), self._object(source))
                self._latest[self._place(tensor)] = value
                forms.setdefault(value, form_of(tensor))
            for tensor in written:
                self._written[self._place(tensor)[0]] = self._value(tensor, int(id(tensor) in late))
            outputs = [v for v in dict.fromkeys(made) if v not in self._produced and v not in inputs]
            if outputs:
                for tensor, value in zip(given, inputs, strict=True):
                    self.trace.readers[value].add(self._object(tensor))
                numbers = numbers_in(args, kwargs)
                text = next((a for a in args if isinstance(a, str)), str(kwargs.get("approximate", "")))
                replay = replay_of(name, function, args, kwargs) if not written else None
                factors = self._factors(name, given, outputs[0])
                self._add(name, inputs, outputs, numbers, text, forms, replay, factors)
            elif name in DROPOUTS and probability_in(args, kwargs) > 0:
                for value in made:
                    self.trace.settled[value] = self._clock
                    self.trace.dropout[value] = probability_in(args, kwargs)
        return result

    def entered(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Write down the start of a module call."""
        with torch._C.DisableTorchFunction():
            self._clock += 1
            found = ModuleCall(
                len(self.trace.calls), path, module, self._nth.get(path, 0), len(self.trace.operations), self._clock
            )
            self._nth[path] = found.nth + 1
            for position, tensor in [*_held(args), *_held(kwargs)]:
                found.inputs.append((position, self._read(tensor)))
                found.forms["input", position] = form_of(tensor)
                found.objects["input", position] = self._object(tensor)
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
            for position, tensor in _held(output):
                value = self._value(tensor)
                if value not in self._produced and value not in known and value not in self.trace.parameters:
                    value = self._read(tensor)
                    if value not in self._produced:
                        self.trace.n_opaque += 1
                        self._add("opaque", [v for _, v in found.inputs], [value])
                found.outputs.append((position, value))
                found.forms["output", position] = form_of(tensor)
                found.objects["output", position] = self._object(tensor)
            found.last, found.left_at = len(self.trace.operations), self._clock
            self._stack.pop()

    def _add(
        self,
        name: str,
        inputs: Iterable[int],
        outputs: list[int],
        numbers: tuple[float, ...] = (),
        text: str = "",
        forms: dict[int, Form] | None = None,
        replay: Callable[[Tensor], Any] | None = None,
        factors: dict[int, Tensor] | None = None,
    ) -> None:
        calls = tuple(entry.index for entry in self._stack)
        made = Operation(name, tuple(inputs), tuple(outputs), calls, numbers, text, forms or {}, replay, factors or {})
        self.trace.operations.append(made)
        self._produced.update(outputs)

    def _factors(self, name: str, given: list[Tensor], output: int) -> dict[int, Tensor]:
        if name not in PRODUCTS and name not in QUOTIENTS and name not in ("addcmul", "lerp"):
            return {}
        most = min(KEPT_FACTOR, self.trace.n_elements(output) // 2)
        return {self._value(t): t for t in given if t.numel() <= most or self._value(t) in self.trace.parameters}

    def _read(self, tensor: Tensor) -> int:
        """Return the value of a tensor that is read; link it to a write through another view of its storage."""
        value = self._value(tensor)
        if value in self._produced or value in self.trace.parameters or tensor.layout != torch.strided:
            return value
        place = self._place(tensor)
        sources = [v for v in (self._written.get(place[0]), self._latest.get(place)) if v is not None and v != value]
        if sources:
            self._add("overlap", dict.fromkeys(sources), [value])
        self._latest[place] = value
        return value

    def _object(self, tensor: Tensor) -> int:
        """Return what tells this tensor object from other views of its value; it is kept alive."""
        if id(tensor) not in self._objects:
            self._objects[id(tensor)] = tensor
        return id(tensor)

    def _value(self, tensor: Tensor, bump: int = 0) -> int:
        key = self._key(tensor, bump)
        if key not in self._ids:
            self._alive.append(tensor)
            self._ids[key] = len(self.trace.shapes)
            self.trace.shapes.append(tuple(tensor.shape))
            self.trace.dtypes.append(tensor.dtype)
        return self._ids[key]

    def _place(self, tensor: Tensor) -> tuple[int, int, int, int]:
        key = self._key(tensor)
        return (key[0], *key[2:])

    def _key(self, tensor: Tensor, bump: int = 0) -> Key:
        try:
            storage, offset, count = tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.numel()
            if tensor.layout == torch.strided and type(offset) is int and type(count) is int:
                return (storage, version_of(tensor) + bump, offset, count, form_of(tensor).span)
        except (RuntimeError, NotImplementedError):
            pass  # wrappers of transforms and sparse tensors have no storage to tell them by
        self._alive.append(tensor)
        return (id(tensor), 0, -1, 0, 0)


def _held(value: object) -> list[tuple[Position, Tensor]]:
    """Return the tensors in a nested value; of those spread over processes what this one holds: wrapping makes no new value."""
    return [(position, here(tensor)) for position, tensor in tensors(value)]
