"""What can be done at a residual add: scale the skip, norm the write or the sum, and let the branch alone read a norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .batches import tensors
from .errors import LabError
from .interventions import put


@dataclass
class Held:
    """The state of a stream while the forward carries its norm, which the next branch reads; None elsewhere."""

    state: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Held:
        """Return one that holds nothing: what a forward that was broken off left here is in its graph."""
        return Held()


@dataclass
class ResidualAdd:
    """``sum = factor * skip + norm(write)`` in place of ``skip + write``.

    Attributes:
        skip: which of the call's tensors is the skip operand, None where another call of the same add reads it.
        write: which of them is the write.
        scale: what the forward itself multiplies the state by on the skip path.
        factor: what the skip operand is multiplied by besides.
        takes_held: whether the skip operand is the state that is held, because the forward carries its norm.
        write_norm: of the write.
        sum_norm: of the sum: what follows is normed, the skip path included.
        read_norm: of what the next branch reads; the skip path goes on with the state that is held.
        held: shared by all adds of a stack.
    """

    skip: int | None
    write: int
    held: Held
    scale: float = 1.0
    factor: float = 1.0
    takes_held: bool = False
    write_norm: nn.Module | None = None
    sum_norm: nn.Module | None = None
    read_norm: nn.Module | None = None

    def __call__(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the add."""
        positions = [position for position, _ in tensors((tuple(args), kwargs))]
        operands: Any = (tuple(args), kwargs)
        written_to = args[0] if args and is_in_place(function) else None
        if self.skip is not None:
            operands = put(operands, positions[self.skip], self._skip)
        if self.write_norm is not None:
            operands = put(operands, positions[self.write], self.write_norm)
        if written_to is not None:
            # What is written over may be kept by the norm that read it.
            operands = put(operands, positions[0], lambda tensor: tensor.clone())
        total = function(*operands[0], **operands[1])
        if self.sum_norm is not None:
            total = self.sum_norm(total)
        if self.read_norm is not None:
            self.held.state, total = total, self.read_norm(total)
        if written_to is not None:
            if self.takes_held or self.read_norm is not None:
                raise LabError(
                    f"Expected residual adds that give a new tensor, got {function.__name__} in place, which does not let "
                    "the skip path and the branch read different tensors. Write x = x + f(x) in the model."
                )
            return written_to.copy_(total)
        return total

    def _skip(self, operand: Tensor) -> Tensor:
        if self.takes_held:
            state = self.held.state
            if state is None or state.shape != operand.shape:
                raise LabError(
                    "Expected the state of the stream before each residual add, got none of that shape: the forward takes "
                    "another way than the one that was traced. Pass a batch like the one given first."
                )
            self.held.state = None
            operand = state if self.scale == 1 else self.scale * state
        return operand if self.factor == 1 else self.factor * operand


@dataclass
class FirstRead:
    """Norms state 0 for the first branch alone; the skip path goes on with the state that is held."""

    norm: nn.Module
    held: Held

    def of(self, state: Tensor) -> Tensor:
        """Hold the state and return its norm."""
        self.held.state = state
        normed: Tensor = self.norm(state)
        return normed

    def __call__(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the call that gives state 0, and return the norm of it."""
        return self.of(function(*args, **kwargs))


def is_in_place(function: Any) -> bool:
    """Return whether a torch call writes to its first operand."""
    name = str(getattr(function, "__name__", ""))
    return name in ("__iadd__", "__isub__") or (name.endswith("_") and not name.endswith("__"))
