"""Say what a feed-forward branch is made of: projections and biases, width, gate, activation."""

from __future__ import annotations

from rheoscope.probes.branch_anatomy import HiddenAnatomy, Projection

from .branches import beside
from .dataflow import Dataflow
from .recorder import Operation
from .residual import Link
from .vocabulary import ADDS, CONVOLUTIONS, EXPERTS, LINEAR, PRODUCTS, is_heavy

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


def hidden(flow: Dataflow, link: Link) -> HiddenAnatomy:
    """Return width, gate and activation of an MLP or MoE branch."""
    core = flow.producer.get(link.cores[0])
    inside = {value for operation in link.operations for value in operation.outputs}
    if core is not None and core.name == "scatter":
        core = None
    last = core if core is not None and is_heavy(core.name) else _last_projection(link)
    if last is None:
        return HiddenAnatomy(reason="The branch ends in no projection that the trace shows.")
    moving = [value for value in last.inputs if not flow.is_constant(value)]
    if not moving:
        return HiddenAnatomy(reason="The last projection reads nothing that depends on the batch.")
    value = moving[0]
    form = last.forms.get(value)
    width = form.shape[-1] if form and form.shape else None
    names, sources = _until_projections(flow, value, inside)
    if not sources:
        return HiddenAnatomy(reason="One projection only: there is no hidden layer.")
    activation = _activation(names)
    return HiddenAnatomy(
        width,
        _is_gated(flow, value, inside),
        activation,
        "" if activation != "unknown" else "The calls between the projections are none of torch's activations.",
    )


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
