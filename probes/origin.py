"""Find the first operation that made a value that is not finite, forward or backward, by running it once more.

Every victim behind that operation is not finite either; one is named: the one all of whose inputs were sound. A mask is
made of infinities on purpose: what a constant brought in is no fault until an operation makes NaN of it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .anatomy import Anatomy
from .belonging import branch_of
from .hooked import Hook
from .plain import is_plain
from .wrappers import modules_of, parameters_of

_UNWRITTEN = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "resize_",
}  # memory as it was found


@dataclass(frozen=True)
class Origin:
    """Where the first value that is not finite came from.

    Attributes:
        direction: ``forward``, ``backward``, or ``given`` for a parameter, buffer or input that was not finite before.
        module_path: the module that ran it, or whose operation it is the backward of; the name of what was given.
        operation: as torch's dispatcher calls it, ``log`` say; empty for what was given.
        node: the backward's node, ``LogBackward0`` say; empty in the forward.
        shape: of what it made.
        n_nonfinite: how many elements of that are not finite.
        largest_input: the largest finite magnitude among what it read.
        smallest_input: the smallest magnitude among what it read: 0 under a division or a logarithm.
    """

    direction: str
    module_path: str
    operation: str
    node: str
    shape: tuple[int, ...]
    n_nonfinite: int
    largest_input: float
    smallest_input: float


@dataclass(frozen=True)
class _Mark:
    """What is known of a tensor that is not finite: its origin, and whether it is a constant's infinity."""

    origin: Origin
    is_meant: bool


def first_nonfinite(model: nn.Module, run: Callable[[], Tensor | None]) -> Origin | None:
    """Return where the first value that is not finite came from when ``run`` runs; None where its end is finite.

    The end is what ``run`` returns, the loss, and after it the gradients of the parameters. Not for training steps: every
    operation is looked at, and each look waits for the device.

    Args:
        model: the model; its ``.grad`` are what ``run`` leaves there.
        run: a forward, and a backward if it likes.
    """
    watch = _Watch()
    given = [(name, tensor) for name, tensor in (*parameters_of(model), *model.named_buffers()) if _is_ill(tensor)]
    for name, tensor in given:
        origin = Origin("given", name, "", "", tuple(tensor.shape), _n_ill(tensor), *_sizes([tensor]))
        # A buffer may hold a mask.
        watch.mark(tensor, _Mark(origin, is_meant=not isinstance(tensor, nn.Parameter) and not _has_nan(tensor)))
    with _module_paths(model, watch), watch:
        end = run()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    for tensor in ([] if end is None else [end]) + gradients:
        if _is_ill(tensor):
            found = watch.of(tensor)
            if found is not None:
                return found.origin
    return None


def sentence(origin: Origin) -> str:
    """Say where the first value that is not finite came from."""
    n = "1 element" if origin.n_nonfinite == 1 else f"{origin.n_nonfinite:,} elements"
    if origin.direction == "given":
        return f"{origin.module_path!r} held {n} that are not finite before anything ran."
    where = f"in module {origin.module_path!r}" if origin.module_path else "in the model's own forward or in the loss"
    way = "" if origin.direction == "forward" else f", on the way back through {origin.node}"
    size = f"finite inputs between {origin.smallest_input:.3g} and {origin.largest_input:.3g} in magnitude"
    read = size if math.isfinite(origin.largest_input) else "inputs that a constant had made infinite"
    shape = f"a tensor of shape {origin.shape}" if origin.shape else "a scalar"
    return f"The first operation whose result is not finite is {origin.operation!r} {where}{way}: {n} of {shape}, from {read}."


def origin_row(origin: Origin, anatomy: Anatomy) -> dict[str, Any]:
    """Return the row of the identities table for an origin."""
    branch = branch_of(anatomy, origin.module_path) if origin.module_path else None
    place = (0, -1, None, None) if branch is None else (branch.stack, branch.block, branch.kind, branch.depth)
    return {
        "check": "nonfinite_origin",
        **dict(zip(("stack", "block", "branch", "depth"), place, strict=True)),
        "module_path": origin.module_path,
        "observed": float(origin.n_nonfinite),
        "expected": 0.0,
        "note": sentence(origin),
    }


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at what every operation reads and makes, below autograd: the backward passes here too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._marks: dict[tuple[str, int], _Mark] = {}
        self._from: list[int] = []  # autograd's sequence number from which on ...
        self._paths: list[str] = []  # ... operations belong to this module
        self._open: list[str] = []

    def enter(self, path: str) -> None:
        """Begin a module's call."""
        self._open.append(path)
        self._turn()

    def leave(self, path: str) -> None:
        """End it; a call that raised is closed by the one around it."""
        while self._open and self._open.pop() != path:
            pass
        self._turn()

    def _turn(self) -> None:
        self._from.append(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]
        self._paths.append(self._open[-1] if self._open else "")

    def mark(self, tensor: Tensor, mark: _Mark) -> None:
        """Remember what is known of a tensor that is not finite."""
        self._marks[_key(tensor)] = mark

    def of(self, tensor: Tensor) -> _Mark | None:
        """Return what is known of one."""
        return self._marks.get(_key(tensor))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and judge it."""
        given = (args, kwargs or {})
        read = [leaf for leaf in tree_leaves(given) if _is_float(leaf)]
        ill = [tensor for tensor in read if _is_ill(tensor)]
        # Now: an operation in place overwrites what it read, and its marks.
        marks = [mark for mark in map(self.of, ill) if mark is not None]
        unknown = [tensor for tensor in ill if self.of(tensor) is None]
        sizes = _sizes(read) if not ill else None
        made = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in _UNWRITTEN:
            return made
        for tensor in (leaf for leaf in tree_leaves(made) if _is_float(leaf)):
            if _is_ill(tensor):
                self.mark(tensor, self._judged(name, given, tensor, marks, unknown, sizes or _sizes(read)))
        return made

    def _judged(
        self, name: str, given: Any, made: Tensor, marks: list[_Mark], unknown: list[Tensor], sizes: tuple[float, float]
    ) -> _Mark:
        for mark in marks:
            if not mark.is_meant:
                return mark
        here = self._here(name, made, sizes)
        if unknown and not marks:
            # Nothing that was watched made it: it came in with the batch, or from memory that was never written.
            return _Mark(replace(here, direction="given", module_path="an input of the model", operation=name), False)
        brings_infinity = any(
            isinstance(leaf, float) and leaf in (float("inf"), float("-inf")) for leaf in tree_leaves(given)
        )
        return _Mark(here, is_meant=(bool(marks) or brings_infinity) and not _has_nan(made))

    def _here(self, name: str, made: Tensor, sizes: tuple[float, float]) -> Origin:
        node = torch._C._current_autograd_node()
        shape, n = tuple(made.shape), _n_ill(made)
        if node is None or torch._C._current_graph_task_id() == -1:
            path = self._open[-1] if self._open else ""
            return Origin("forward", path, name, "", shape, n, *sizes)
        path = self._path_at(node._sequence_nr())
        return Origin("backward", path, name, node.name().removesuffix("()"), shape, n, *sizes)

    def _path_at(self, number: int) -> str:
        """Return the module in which the operation of that sequence number ran forward."""
        place = bisect.bisect_right(self._from, number) - 1
        return self._paths[place] if place >= 0 else ""


@contextmanager
def _module_paths(model: nn.Module, watch: _Watch) -> Iterator[None]:
    handles = []
    for path, module in modules_of(model, remove_duplicate=True).items():
        before = Hook(lambda *_, path=path: watch.enter(path))
        after = Hook(lambda *_, path=path: watch.leave(path))
        handles += [module.register_forward_pre_hook(before, prepend=True), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _key(tensor: Tensor) -> tuple[str, int]:
    return str(tensor.device), tensor.untyped_storage().data_ptr()


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and is_plain(value) and value.numel() > 0


def _is_ill(tensor: Tensor) -> bool:
    return _is_float(tensor) and not bool(torch.isfinite(tensor.detach()).all())


def _has_nan(tensor: Tensor) -> bool:
    return bool(torch.isnan(tensor.detach()).any())


def _n_ill(tensor: Tensor) -> int:
    return int((~torch.isfinite(tensor.detach())).sum())


def _sizes(read: list[Tensor]) -> tuple[float, float]:
    """Return the largest and the smallest finite magnitude, NaN where there is none."""
    found = [size[torch.isfinite(size)] for size in (tensor.detach().abs() for tensor in read)]
    found = [size for size in found if size.numel()]
    if not found:
        return float("nan"), float("nan")
    return max(float(size.max()) for size in found), min(float(size.min()) for size in found)
