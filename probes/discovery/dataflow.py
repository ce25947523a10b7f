"""Turn a trace into a graph that knows, for every value, what reaches it lightly and what through a heavy operation.

An operation is *transparent* (view, cast, dropout, masking, scaling by a constant, norm: what the stream may pass on
its way), *heavy* (matrix product, convolution, attention, lookup, pooling: what makes a branch) or light. A value Q
*computes on* a value S when S reaches Q through a heavy operation. Then

    ``add(P, Q)`` is a residual add when something that reaches P through transparent operations only
    is something that Q computes on,

which leaves out rotary embeddings, position sums, masks, LoRA, router sums: there, no operand computes on the other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from .norms import NormBehaviour, norm_behaviour
from .trace import ModuleCall, Operation, Trace

VIEWS = frozenset(
    "view reshape transpose permute flatten unflatten squeeze unsqueeze contiguous clone to float half bfloat16 double "
    "type type_as detach alias movedim moveaxis swapaxes swapdims t expand expand_as view_as reshape_as getitem select "
    "slice narrow chunk split unbind cpu cuda positive identity get_T get_mT get_data overlap".split()
)
PICKS = frozenset("index_select gather roll flip nan_to_num clamp clip masked_fill where".split())
DROPOUTS = frozenset(
    "dropout native_dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout bernoulli".split()
)
NORMS = {"layer_norm": "layernorm", "native_layer_norm": "layernorm", "rms_norm": "rmsnorm", "normalize": "rmsnorm"}
ADDS = frozenset("add iadd radd".split())
PRODUCTS = frozenset("mul imul rmul multiply".split())
QUOTIENTS = frozenset("div idiv truediv itruediv true_divide divide".split())
HEAVY = re.compile(
    r"linear|matmul|rmatmul|mm|bmm|addmm|baddbmm|einsum|conv.*|.*scaled_dot_product.*|embedding|embedding_bag|"
    r"multi_head_attention_forward|.*fft.*|.*pool[123]d.*|interpolate|upsample.*|cumsum|lstm|gru|opaque|.*grouped_mm|"
    r"unfold|fold|bilinear|flex_attention|tensordot|inner|mv|dot"
)
NORM_MODULE = "norm module"
MOST_NORM_OPERATIONS = 40  # hand-written norms take 5-12


@dataclass(frozen=True)
class Add:
    """A residual add: ``result = skip + branch``."""

    result: int
    skip: int
    branch: int
    operation: Operation


class Dataflow:
    """The graph of one trace.

    Attributes:
        operations: the trace's, with each norm module collapsed into one.
        producer: value -> operation that made it.
        consumers: value -> operations that read it.
        light_parents: value -> (value, kind) it is a transparent image of; kind: view, pick, dropout, scale, gate,
            norm or add.
        ancestors: value -> bit set of all values that reach it.
        adds: result value -> residual add.
        norms: norm module path -> behaviour.
        norm_of: output value of a norm module -> its path.
    """

    def __init__(self, trace: Trace) -> None:
        """Read the operations of ``trace`` in order."""
        self.trace = trace
        self.norms: dict[str, NormBehaviour] = {}
        self.norm_of: dict[int, str] = {}
        self.operations = self._collapsed()
        self.producer: dict[int, Operation] = {}
        self.consumers: dict[int, list[Operation]] = defaultdict(list)
        self.light_parents: dict[int, list[tuple[int, str]]] = {}
        self.ancestors: dict[int, int] = defaultdict(int)
        self.adds: dict[int, Add] = {}
        self._computed: dict[int, int] = defaultdict(int)
        self._light: dict[int, int] = defaultdict(int)
        self._varies: set[int] = set()
        if trace.calls:
            self._varies |= {value for _, value in trace.calls[0].inputs}
        for operation in self.operations:
            self._read(operation)

    def reaches(self, source: int, target: int) -> bool:
        """Return whether ``source`` is an ancestor of ``target``."""
        return bool(self.ancestors[target] >> source & 1)

    def is_constant(self, value: int) -> bool:
        """Return whether ``value`` does not depend on the batch."""
        return value not in self._varies

    def _read(self, operation: Operation) -> None:
        inputs = [value for value in operation.inputs if value not in operation.outputs]
        ancestors = computed = 0
        for value in inputs:
            ancestors |= self.ancestors[value] | 1 << value
            computed |= self._computed[value]
        if HEAVY.fullmatch(operation.name):
            computed = ancestors
        varies = any(value in self._varies for value in inputs)
        for value in set(inputs):
            self.consumers[value].append(operation)
        for output in operation.outputs:
            if output in self.producer:
                continue
            self.producer[output] = operation
            self.ancestors[output], self._computed[output] = ancestors, computed
            if varies:
                self._varies.add(output)
            parents = self._parents(operation, inputs, output)
            self.light_parents[output] = parents
            self._light[output] = 0
            for value, _ in parents:
                self._light[output] |= self._light[value] | 1 << value

    def _parents(self, operation: Operation, inputs: list[int], output: int) -> list[tuple[int, str]]:
        """Return which inputs ``output`` is a transparent image of; register residual adds on the way."""
        name, size = operation.name, self.trace.n_elements
        same = [value for value in inputs if size(value) == size(output)]
        if not inputs or not same:
            return []
        if name == NORM_MODULE or name in NORMS:
            return [(same[0], "norm")]
        if name in VIEWS:
            return [(same[0], "view")]
        if name in PICKS:
            moving = [value for value in same if not self.is_constant(value)]
            return [(moving[0], "pick")] if moving else []
        if name in DROPOUTS:
            return [(same[0], "dropout")]
        if name in PRODUCTS or name in QUOTIENTS:
            return self._scaled(inputs, output, name in QUOTIENTS)
        if name in ADDS:
            return self._added(operation, inputs, output)
        return []

    def _scaled(self, inputs: list[int], output: int, is_quotient: bool) -> list[tuple[int, str]]:
        """Classify a product: by a constant (scale), by a small function of the operand (norm), by another (gate)."""
        size = self.trace.n_elements
        if len(inputs) == 1:
            return [(inputs[0], "scale")]
        for operand, factor in [(inputs[0], inputs[1])] if is_quotient else [tuple(inputs[:2]), tuple(inputs[1::-1])]:
            fixed = self.is_constant(factor)
            if size(operand) != size(output) or self.is_constant(operand):
                continue
            if not fixed and size(factor) * 2 > size(output):
                continue
            if fixed:
                return [(operand, "scale")]
            own = self._light[operand] | 1 << operand
            depends = bool(self.ancestors[factor] & own) and not self._computed[factor] >> operand & 1
            return [(operand, "norm" if depends else "gate")]
        return []

    def _added(self, operation: Operation, inputs: list[int], output: int) -> list[tuple[int, str]]:
        size = self.trace.n_elements
        if len(inputs) == 1:
            return [(inputs[0], "shift")]
        left, right = inputs[:2]
        if left != right and size(left) == size(output) == size(right):
            for skip, branch in ((left, right), (right, left)):
                if (self._light[skip] | 1 << skip) & self._computed[branch]:
                    self.adds[output] = Add(output, skip, branch, operation)
                    break
        return [(value, "add") for value in (left, right) if size(value) == size(output)]

    def _collapsed(self) -> list[Operation]:
        """Return the trace's operations with the inside of every norm module replaced by one operation."""
        inside: dict[int, ModuleCall] = {}
        behaviours: dict[tuple[int, int], NormBehaviour | None] = {}
        for entry in self.trace.calls:
            behaviour = self._norm_behaviour(entry, behaviours)
            if behaviour is not None:
                self.norms[entry.path] = behaviour
                self.norm_of[entry.outputs[0][1]] = entry.path
                inside.update(dict.fromkeys(range(entry.first, entry.last), entry))
        result, done = [], set()
        for index, operation in enumerate(self.trace.operations):
            entry_ = inside.get(index)
            if entry_ is None:
                result.append(operation)
            elif entry_.index not in done:
                done.add(entry_.index)
                output = entry_.outputs[0][1]
                sizes = self.trace.n_elements
                given = tuple(value for _, value in entry_.inputs if sizes(value) == sizes(output))[:1]
                result.append(Operation(NORM_MODULE, given, (output,), operation.calls))
        return result

    def _norm_behaviour(
        self, entry: ModuleCall, known: dict[tuple[int, int], NormBehaviour | None]
    ) -> NormBehaviour | None:
        """Return how the module of this call normalises, None when the call is no norm."""
        module: nn.Module = entry.module
        if len(entry.outputs) != 1 or not entry.inputs or entry.last < 0:
            return None
        given, made = entry.inputs[0][1], entry.outputs[0][1]
        shape, dtype = self.trace.shapes[given], self.trace.dtypes[given]
        names = [operation.name for operation in self.trace.operations[entry.first : entry.last]]
        if given == made or not shape or shape != self.trace.shapes[made] or not dtype.is_floating_point:
            return None
        if not names or len(names) > MOST_NORM_OPERATIONS or any(HEAVY.fullmatch(name) for name in names):
            return None
        if all(name in VIEWS or name in DROPOUTS for name in names):
            return None
        key = (id(module), shape[-1])
        if key not in known:
            known[key] = norm_behaviour(module, shape, dtype)
        return known[key]
