"""Turn a trace into a graph that knows, for every value, what reaches it lightly and what through a heavy operation.

An operation is *transparent* (view, cast, dropout, masking, scaling by a constant, norm: what the stream may pass on
its way; see transparency.py), *heavy* (matrix product, convolution, attention, lookup: what makes a branch) or light.
A value Q *computes on* a value S when S reaches Q through a heavy operation. Then

    ``add(P, Q)`` is a residual add when something that reaches P through transparent operations only
    is something that Q computes on,

which leaves out rotary embeddings, position sums, masks, LoRA, router sums: there, no operand computes on the other.

Where Q itself continues the stream from the same value (it reaches Q along skip paths), the two operands are the
stream and an earlier state that is added again (U-net skips, ``x + lambda * x0``): then Q is the skip operand.

Sets of values are bit sets over *junctions* only: values that several operations read, or sums. A value that is read
once can never be both skipped and computed on, so that the sets grow with the number of blocks, not of operations.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from .recorder import Operation, Trace
from .rewrites import is_filled, rewritten
from .transparency import Transparency
from .vocabulary import ADDS, DROPOUTS, NORMS, PARTS, SUBTRACTIONS, VIEWS, is_heavy


@dataclass(frozen=True)
class Add:
    """A residual add: ``result = skip + sign * branch``."""

    result: int
    skip: int
    branch: int
    operation: Operation
    sign: int = 1


class Dataflow:
    """The graph of one trace.

    Attributes:
        operations: the trace's, rewritten into simple ones.
        producer: value -> operation that made it.
        consumers: value -> operations that read it.
        light_parents: value -> (value, kind) it is a transparent image of.
        carried: value -> (value, kind) it continues, though by more than a transparent step (pooling).
        adds: result value -> residual add.
        norms: norm module path -> behaviour.
        norm_of: output value of a norm module -> its path.
    """

    def __init__(self, trace: Trace) -> None:
        """Read every operation of ``trace`` once, in order."""
        self.trace = trace
        self._varying = _varying(trace)
        self.operations, self.norm_of, self.norms = rewritten(trace, self._varying)
        self.producer: dict[int, Operation] = {}
        self.consumers: dict[int, list[Operation]] = defaultdict(list)
        self.light_parents: dict[int, list[tuple[int, str]]] = {}
        self.carried: dict[int, list[tuple[int, str]]] = {}
        self.adds: dict[int, Add] = {}
        for operation in self.operations:
            for value in set(operation.inputs):
                self.consumers[value].append(operation)
        self._bit: dict[int, int] = {}
        self._n_junctions = 0
        self._ancestors: dict[int, int] = defaultdict(int)
        self._computed: dict[int, int] = defaultdict(int)
        self._light: dict[int, int] = defaultdict(int)
        self._skipped: dict[int, int] = defaultdict(int)
        self._latest: dict[int, int | None] = {}
        self._transparency = Transparency(trace, self.producer, self.is_constant, self._depends_lightly)
        for operation in self.operations:
            self._read(operation)

    def bit(self, value: int) -> int:
        """Return the bit of a junction, 0 for any other value."""
        found = self._bit.get(value)
        if found is None:
            readers = self.consumers.get(value, ())
            made = self.producer.get(value)
            is_sum = made is not None and (made.name in ADDS or made.name in SUBTRACTIONS)
            is_junction = (len(readers) > 1 or is_sum) and value in self._varying
            found = self._bit[value] = 1 << self._n_junctions if is_junction else 0
            self._n_junctions += is_junction
        return found

    def junction(self, value: int) -> int:
        """Return the bit of the nearest junction that ``value`` is a transparent image of, itself included."""
        seen = 0
        while not (found := self.bit(value)) and self.light_parents.get(value) and seen < 64:
            value, seen = self.light_parents[value][0][0], seen + 1
        return found

    def reaches(self, source: int, target: int) -> bool:
        """Return whether the junction ``source`` is an ancestor of ``target``."""
        return bool(self._ancestors[target] & self.bit(source))

    def reaches_any(self, sources: int, target: int) -> bool:
        """Return whether a junction in the bit set ``sources`` is an ancestor of ``target`` or ``target`` itself."""
        return bool((self._ancestors[target] | self.bit(target)) & sources)

    def computes_on(self, value: int, source: int) -> bool:
        """Return whether the junction ``source`` reaches ``value`` through a heavy operation."""
        return bool(self._computed[value] & self.bit(source))

    def is_constant(self, value: int) -> bool:
        """Return whether ``value`` does not depend on the batch."""
        return value not in self._varying

    def _depends_lightly(self, factor: int, operand: int) -> bool:
        """Return whether ``factor`` is made from ``operand`` (or what it is an image of) by light operations only."""
        own = self._light[operand] | self.bit(operand)
        return bool(self._ancestors[factor] & own) and not self._computed[factor] & self.bit(operand)

    def _read(self, operation: Operation) -> None:
        inputs = [value for value in operation.inputs if value not in operation.outputs]
        ancestors = computed = 0
        for value in inputs:
            ancestors |= self._ancestors[value] | self.bit(value)
            computed |= self._computed[value]
        if is_heavy(operation.name):
            computed = ancestors
        for output in operation.outputs:
            if output in self.producer:
                continue
            self.producer[output] = operation
            self._ancestors[output], self._computed[output] = ancestors, computed
            parents, carried = self._transparency.parents(operation, inputs, output)
            self.light_parents[output] = parents
            self.carried[output] = carried
            add = self._residual(operation, inputs, output)
            if add is not None:
                self.adds[output] = add
            light = skipped = 0
            for value, _ in parents:
                light |= self._light[value] | self.bit(value)
                if add is None or value == add.skip:
                    skipped |= self._skipped[value] | self.bit(value)
            self._light[output], self._skipped[output] = light, skipped
            self._latest[output] = output if add is not None else self._latest.get(parents[0][0]) if parents else None

    def _residual(self, operation: Operation, inputs: list[int], output: int) -> Add | None:
        size = self.trace.n_elements
        is_difference = operation.name in SUBTRACTIONS
        if not is_difference and operation.name not in ADDS:
            return None
        if len(inputs) < 2 or inputs[0] == inputs[1]:
            return None
        left, right = inputs[:2]
        if not size(left) == size(output) == size(right) or not size(output):
            return None
        if not self.trace.dtypes[output].is_floating_point:
            return None
        order = self._by_age(left, right)
        for skip, branch in order:
            common = (self._light[skip] | self.bit(skip)) & self._computed[branch]
            # Of two images of one stream the older one is the addend, whatever computes on what.
            is_older = len(order) == 1 and bool((self._light[branch] | self.bit(branch)) & self._computed[skip])
            if (common or is_older) and not (is_difference and skip == right):
                return Add(output, skip, branch, operation, -1 if is_difference else 1)
        return None

    def _by_age(self, left: int, right: int) -> list[tuple[int, int]]:
        """Return (skip, branch) in the orders to try: one order only where both operands continue the same stream.

        Two images of one and the same state (tokens of it pooled) are no skip and branch at all.
        """
        newest = self._latest.get(left), self._latest.get(right)
        if newest[0] is not None and newest[0] == newest[1]:
            return []
        mine = [self._skipped[value] | self.bit(value) for value in (left, right)]
        for index, (skip, branch) in enumerate(((left, right), (right, left))):
            older, newer = newest[1 - index], newest[index]
            began = mine[1 - index] & mine[index] if older is None else self.bit(older)
            if newer is not None and began & self._skipped[skip]:
                return [(skip, branch)]
        return [(left, right), (right, left)]


def _varying(trace: Trace) -> set[int]:
    """Return the values that depend on the batch.

    What is looked up in a table, and parameters that are transformed as data are (learned queries, start tokens), count
    as such: a stream may start from them.
    """
    varying = {value for _, value in trace.calls[0].inputs} if trace.calls else set()
    if not varying:
        # A batch without a tensor in sight: nothing can be told from constants, so nothing counts as one.
        varying = {value for operation in trace.operations for value in operation.outputs}
    varying |= _learned_data(trace)
    for operation in trace.operations:
        if is_filled(operation.name):
            continue
        if operation.name == "embedding" or not varying.isdisjoint(operation.inputs):
            varying.update(operation.outputs)
    return varying


def _learned_data(trace: Trace) -> set[int]:
    """Return parameters and blank tensors that reach the place where a projection or norm takes data."""
    made_by = {value: operation for operation in trace.operations for value in operation.outputs}
    waiting = [made.inputs[0] for made in trace.operations if made.name in _TAKES_DATA and made.inputs]
    seen: set[int] = set()
    found: set[int] = set()
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        made = made_by.get(value)
        if made is None or is_filled(made.name):
            is_start = made is not None or value in trace.parameters
            if is_start and len([size for size in trace.shapes[value] if size > 1]) >= 2:
                found.add(value)
        elif made.name in VIEWS or made.name in PARTS or made.name in NORMS or made.name in DROPOUTS:
            waiting += made.inputs[:1]
        elif made.name in ADDS:
            waiting += made.inputs
    return found


_TAKES_DATA = frozenset(("linear", "addmm", *NORMS))
