"""Say which inputs of an operation its output is a transparent image of, and how.

Kinds of a transparent step:

- ``view``: the same elements in another shape, order or precision
- ``part``: some of the elements, or put together with others (slices, concatenation, scatter, padding)
- ``mask``: elements bounded or blanked out
- ``dropout``
- ``scale``: times a number or a constant; ``gate``: times something that varies with the batch
- ``norm``; ``center``: minus its own mean
- ``shift``: plus a number, a constant, or something smaller; ``add``: one of two full-sized terms
- ``mix``: a product over an axis of at most eight parallel streams
"""

from __future__ import annotations

from collections.abc import Callable

from .recorder import Operation, Trace
from .vocabulary import (
    ADDS,
    DROPOUTS,
    GATES,
    MASKS,
    MATRIX_PRODUCTS,
    NORM_MODULE,
    NORMS,
    PARTS,
    POOLS,
    PRODUCTS,
    QUOTIENTS,
    SUBTRACTIONS,
    SUMS,
    VIEWS,
)

Step = tuple[int, str]
MOST_STREAMS_MIXED = 8  # hyper-connections use 2 to 8 streams; attention mixes as many positions as there are
_FORGED = frozenset("add radd sub rsub mul clone neg".split())


class Transparency:
    """The rules, over one trace."""

    def __init__(
        self,
        trace: Trace,
        producer: dict[int, Operation],
        is_constant: Callable[[int], bool],
        depends_lightly: Callable[[int, int], bool],
    ) -> None:
        """Keep what the rules look up."""
        self._trace = trace
        self._size = trace.n_elements
        self._producer = producer
        self._is_constant = is_constant
        self._depends_lightly = depends_lightly

    def parents(self, operation: Operation, inputs: list[int], output: int) -> tuple[list[Step], list[Step]]:
        """Return the transparent parents of ``output``, and what it continues by more than a transparent step."""
        name = operation.name
        moving = [value for value in inputs if self._moves(value)]
        if not moving or not self._trace.dtypes[output].is_floating_point or not self._size(output):
            return [], []
        same = [value for value in moving if self._size(value) == self._size(output)]
        if name == NORM_MODULE or name in NORMS:
            return ([(same[0], "norm")] if same else []), []
        if name in VIEWS or name in PARTS:
            return self._rearranged(operation, inputs, moving, output), []
        if name in MASKS:
            return [(value, "mask") for value in same], []
        if name in DROPOUTS:
            return [(value, "dropout") for value in same[:1]], []
        if name in PRODUCTS or name in QUOTIENTS:
            return self._scaled(inputs, output, name in QUOTIENTS), []
        if name in ADDS or name in SUBTRACTIONS:
            return self._added(inputs, output, name in SUBTRACTIONS), []
        if name in MATRIX_PRODUCTS or name in SUMS:
            return self._mixed(operation, moving, output), []
        if POOLS.fullmatch(name):
            return [], [(moving[0], "pool")]
        return [], []

    def _moves(self, value: int) -> bool:
        return not self._is_constant(value) and self._trace.dtypes[value].is_floating_point

    def _rearranged(self, operation: Operation, inputs: list[int], moving: list[int], output: int) -> list[Step]:
        if operation.name in VIEWS:
            value = inputs[0] if inputs[0] in moving else moving[0]
            return [(value, "view" if self._size(value) == self._size(output) else "part")]
        if operation.name == "copy" and len(moving) > 1:
            return [(moving[1], "view" if self._size(moving[1]) == self._size(output) else "part")]
        if len(moving) == 1:
            # What is written over part of a constant is a part of the result.
            return [(moving[0], "view" if self._size(moving[0]) == self._size(output) else "part")]
        # A few positions carried along (a class token) do not make what is put beside them the same stream.
        if operation.name == "stack" or len(set(moving)) == 1:
            return [(value, "part") for value in dict.fromkeys(moving)]
        return [(value, "part") for value in moving if self._size(value) * 2 > self._size(output)]

    def _scaled(self, inputs: list[int], output: int, is_quotient: bool) -> list[Step]:
        """Classify a product: by a constant (scale), by a small function of the operand (norm), by another (gate)."""
        size = self._size
        if len(inputs) == 1:
            return [(inputs[0], "scale")]
        if inputs[0] == inputs[1]:
            return []
        for operand, factor in [(inputs[0], inputs[1])] if is_quotient else [tuple(inputs[:2]), tuple(inputs[1::-1])]:
            if self._is_constant(operand):
                continue
            if size(operand) != size(output):
                if size(output) % max(1, size(operand)) == 0 and size(output) // size(operand) <= MOST_STREAMS_MIXED:
                    return [(operand, "mix")]  # written to each of several streams
                continue
            if self._is_constant(factor):
                return [(operand, "scale")]
            if size(factor) * 2 > size(output):
                if self._is_gate(factor):
                    return [(operand, "gate")]
                continue
            return [(operand, "norm" if self._depends_lightly(factor, operand) else "gate")]
        return []

    def _is_gate(self, value: int) -> bool:
        """Return whether a full-sized factor is bounded by a sigmoid, or is one minus such a one."""
        for _ in range(4):
            made = self._producer.get(value)
            if made is None:
                return False
            if made.name in GATES:
                return made.name != "tanh"
            if made.name not in _FORGED and made.name not in VIEWS:
                return False
            moving = [v for v in made.inputs if not self._is_constant(v)]
            if len(moving) != 1:
                return False
            value = moving[0]
        return False

    def _added(self, inputs: list[int], output: int, is_difference: bool) -> list[Step]:
        size = self._size
        if len(inputs) == 1:
            return [(inputs[0], "shift")]
        left, right = inputs[:2]
        full = [value for value in (left, right) if size(value) == size(output) and self._moves(value)]
        if is_difference:
            if left not in full:
                return []
            if size(right) < size(output) and self._moves(right) and self._depends_lightly(right, left):
                return [(left, "center")]
            return [(left, "shift" if size(right) < size(output) or self._is_constant(right) else "add")]
        if len(full) == 1:
            return [(full[0], "shift")]
        return [(value, "add") for value in dict.fromkeys(full)]

    def _mixed(self, operation: Operation, moving: list[int], output: int) -> list[Step]:
        """Find a product or a sum over an axis of a few parallel streams."""
        if operation.name in SUMS:
            ratio = self._size(moving[0]) / max(1, self._size(output))
            return [(moving[0], "mix")] if 1 < ratio <= MOST_STREAMS_MIXED and ratio == int(ratio) else []
        if len(operation.inputs) < 2:
            return []
        contracted = self._contracted(operation)
        if not 1 < contracted <= MOST_STREAMS_MIXED:
            return []
        largest = max(moving, key=self._size)
        others = [value for value in operation.inputs[:2] if value != largest]
        if any(self._size(value) >= self._size(largest) for value in others):
            return []
        ratio = self._size(largest) / max(1, self._size(output))
        return [(largest, "mix")] if ratio in (1.0, float(contracted)) else []

    def _contracted(self, operation: Operation) -> int:
        """Return over how many elements each element of the result is a sum; 0 where the call does not say."""
        left, right = operation.inputs[:2]
        shapes = [operation.forms[v].shape if v in operation.forms else self._trace.shapes[v] for v in (left, right)]
        if operation.name != "einsum":
            return shapes[0][-1] if shapes[0] else 0
        terms, _, result = operation.text.replace(" ", "").partition("->")
        labels = terms.split(",")
        if len(labels) != 2 or not result or "." in terms:
            return 0
        sizes = {
            label: size
            for term, shape in zip(labels, shapes, strict=True)
            for label, size in zip(term, shape, strict=False)
        }
        count = 1
        for label in set(labels[0]) & set(labels[1]):
            count *= sizes.get(label, 1) if label not in result else 1
        return count
