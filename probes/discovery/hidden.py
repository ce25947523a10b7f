"""Say what a feed-forward branch is made of: projections and biases, width, gate, activation."""

from __future__ import annotations

from dataclasses import replace

from rheoscope.probes.branch_anatomy import HiddenAnatomy, Projection

from .branches import beside
from .dataflow import Dataflow
from .links import Link
from .plan import Plan
from .recorder import Operation
from .vocabulary import ADDS, ATTENTION, CONVOLUTIONS, EXPERTS, LINEAR, MATRIX_PRODUCTS, PRODUCTS, is_heavy

_ACTIVATIONS = (
    "gelu silu relu relu6 leaky_relu elu selu celu mish hardswish softplus glu sigmoid tanh softmax hardtanh prelu"
).split()


def projections(flow: Dataflow, link: Link) -> tuple[Projection, ...]:
    """Return the matrices of a branch with their biases, in order of use."""
    found: dict[str, Projection] = {}
    names = flow.trace.parameters
    for operation in reversed([*link.operations, *beside(flow, link)]):
        is_matrix = operation.name in LINEAR or CONVOLUTIONS.fullmatch(operation.name)
        if not is_matrix and not EXPERTS.fullmatch(operation.name):
            continue
        own = [p for p in (_parameter(flow, value) for value in operation.inputs) if p is not None]
        matrices = [value for value in own if len(flow.trace.shapes[value]) >= 2]
        if matrices:
            biases = [value for value in own if len(flow.trace.shapes[value]) == 1] or _late_bias(flow, operation)
            weight = names[matrices[0]]
            found.setdefault(weight, Projection(weight, names[biases[0]] if biases else None))
    return tuple(found.values())


def _parameter(flow: Dataflow, value: int) -> int | None:
    """Return the parameter that a value is a view or a cast of."""
    for _ in range(4):
        if value in flow.trace.parameters:
            return value
        made = flow.producer.get(value)
        if made is None or not flow.is_constant(value) or len(made.inputs) != 1:
            return None
        value = made.inputs[0]
    return None


def _late_bias(flow: Dataflow, operation: Operation) -> list[int]:
    """Return the bias that is added to a projection's result by a call of its own."""
    for value in operation.outputs:
        for reader in flow.consumers.get(value, []):
            if reader.name in ADDS:
                found = [v for v in reader.inputs if v in flow.trace.parameters]
                if found and len(flow.trace.shapes[found[0]]) == 1:
                    return found
    return []


def hidden(flow: Dataflow, plan: Plan, link: Link, kind: str) -> tuple[HiddenAnatomy | None, bool]:
    """Return width, gate, activation and place of a feed-forward branch's hidden layer, and whether only a part is seen.

    Of a parallel block it is the MLP's; None where no term of it, or no branch of this ``kind``, is one.
    """
    inside = {value for operation in link.operations for value in operation.outputs}
    found, value = None, None
    if kind == "parallel":
        for core in link.cores:
            term, result = _hidden(flow, _projection(flow, core), inside)
            if result is not None and (term.activation != "unknown" or term.is_gated):
                found, value = (found, value) if _is_attended(flow, result, inside) else (term, result)
    elif kind in ("mlp", "moe"):
        last = _projection(flow, link.cores[0]) or _last_projection(link)
        found, value = _hidden(flow, last, inside)
    if found is None or value is None or kind == "moe":
        return found, False  # each expert has a hidden layer of its own
    point = plan.of_output(value)
    is_part = point is not None and not plan.shows_whole_gradient(value, point)
    return replace(found, point=point), is_part


def _projection(flow: Dataflow, core: int) -> Operation | None:
    made = flow.producer.get(core)
    return made if made is not None and is_heavy(made.name) else None


def _hidden(flow: Dataflow, last: Operation | None, inside: set[int]) -> tuple[HiddenAnatomy, int | None]:
    """Describe what the ``last`` projection reads, and return it too."""
    if last is None:
        return HiddenAnatomy(reason="The branch ends in no projection that the trace shows."), None
    moving = [value for value in last.inputs if not flow.is_constant(value)]
    if not moving:
        return HiddenAnatomy(reason="The last projection reads nothing that depends on the batch."), None
    value = moving[0]
    form = last.forms.get(value)
    width = form.shape[-1] if form and form.shape else None
    names, sources = _until_projections(flow, value, inside)
    if not sources:
        return HiddenAnatomy(reason="One projection only: there is no hidden layer."), None
    activation = _activation(names)
    found = HiddenAnatomy(
        width,
        _is_gated(flow, value, inside),
        activation,
        "" if activation != "unknown" else "The calls between the projections are none of torch's activations.",
    )
    return found, value


def _is_attended(flow: Dataflow, value: int, inside: set[int]) -> bool:
    """Return whether a product of two values that both depend on the batch gave what ``value`` is made of: attention."""
    for source in _until_projections(flow, value, inside)[1]:
        made = flow.producer[source]
        is_product = made.name in MATRIX_PRODUCTS and sum(not flow.is_constant(v) for v in made.inputs) > 1
        if is_product or ATTENTION.fullmatch(made.name):
            return True
    return False


def _last_projection(link: Link) -> Operation | None:
    return next((made for made in link.operations if is_heavy(made.name) and len(made.inputs) > 1), None)


def _until_projections(flow: Dataflow, value: int, inside: set[int]) -> tuple[set[str], set[int]]:
    """Return the names of the calls between ``value`` and the heavy operations before it, and their results."""
    waiting, seen, names, sources = [value], {value}, set[str](), set[int]()
    while waiting and len(seen) < 200:
        current = waiting.pop()
        made = flow.producer.get(current)
        if made is None or current not in inside or flow.is_constant(current):
            continue
        if is_heavy(made.name):
            sources.add(current)
            continue
        names.add(made.name)
        fresh = [v for v in made.inputs if v not in seen]
        seen.update(fresh)
        waiting += fresh
    return names, sources


def _activation(names: set[str]) -> str:
    found = [name for name in _ACTIVATIONS if name in names or f"{name}_" in names]
    if "erf" in names or ("tanh" in names and names & {"pow", "mul"} and "tanh" in found[:1]):
        return "gelu"  # written out
    if found[:1] == ["sigmoid"] and names & PRODUCTS:
        return "silu"  # written out
    return found[0] if found else "unknown"


def _is_gated(flow: Dataflow, value: int, inside: set[int]) -> bool:
    """Return whether the hidden layer is a product of two projections, or of two parts of one."""
    for _ in range(12):
        made = flow.producer.get(value)
        if made is None or is_heavy(made.name):
            return False
        if made.name == "glu":
            return True
        moving = [v for v in dict.fromkeys(made.inputs) if not flow.is_constant(v)]
        if made.name in PRODUCTS and len(moving) == 2:
            origins = [_origins(flow, v, inside) for v in moving]
            return bool(origins[0]) and bool(origins[1]) and origins[0] != origins[1]
        if not moving:
            return False
        value = moving[0]
    return False


def _origins(flow: Dataflow, value: int, inside: set[int]) -> set[int]:
    """Return where a factor comes from: results of projections, or the parts of one that were cut out of it."""
    waiting, seen, found = [value], {value}, set[int]()
    while waiting and len(seen) < 100:
        current = waiting.pop()
        made = flow.producer.get(current)
        if made is None or current not in inside:
            continue
        is_part = made.name in ("chunk", "split", "unbind", "getitem", "split_with_sizes", "narrow", "slice")
        if is_heavy(made.name) or is_part:
            found.add(current)
            continue
        fresh = [v for v in made.inputs if v not in seen and not flow.is_constant(v)]
        seen.update(fresh)
        waiting += fresh
    return found
