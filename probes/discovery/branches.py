"""Name what a branch is and how it is normed, from the operations inside it."""

from __future__ import annotations

from .dataflow import HEAVY, NORM_MODULE, NORMS, Dataflow
from .residual import Link

_ATTENTION = ("scaled_dot_product", "multi_head_attention_forward", "flex_attention")
_PRODUCTS = ("matmul", "rmatmul", "bmm", "einsum", "baddbmm")
_LINEAR = ("linear", "addmm", "mm", "matmul", "rmatmul", "einsum", "baddbmm", "bmm", "opaque")


def kind(flow: Dataflow, link: Link) -> str:
    """Return attention, cross_attention, mlp, parallel or mixer.

    Attention multiplies two values that both depend on the batch (or calls torch's attention), and is cross attention
    when it reads what another stream computed; an MLP multiplies by parameters only; a mixer moves content between
    positions by other means.
    """
    if link.is_parallel:
        return "parallel"
    found = _kind_of(flow, link)
    if found == "attention" and any(flow.reaches(add, value) for value in link.foreign for add in flow.adds):
        return "cross_attention"
    return found


def block_numbers(kinds: list[str]) -> list[int]:
    """Return the block of each branch: a new one starts where the first kind that recurs comes again."""
    leading = next((name for name in kinds if kinds.count(name) > 1), None)
    numbers, current = [], -1
    for index, name in enumerate(kinds):
        if index == 0 or name == leading:
            current += 1
        numbers.append(current)
    return numbers


def _kind_of(flow: Dataflow, link: Link) -> str:
    heavy = [operation for operation in link.operations if HEAVY.fullmatch(operation.name)]
    for operation in heavy:
        if any(name in operation.name for name in _ATTENTION):
            return "attention"
        varying = [v for v in operation.inputs if not flow.is_constant(v)]
        softmaxed = any(other.name == "softmax" for other in link.operations)
        if operation.name in _PRODUCTS and len(varying) >= 2 and softmaxed:
            return "attention"
    return "mlp" if heavy and all(operation.name in _LINEAR for operation in heavy) else "mixer"


def placement(link: Link) -> str:
    """Return where the branch is normed: pre, post, double, reordered, none or unknown."""
    normed = [is_normed for _, is_normed, _ in link.entries]
    before, raw = any(normed), any(not is_normed for is_normed in normed)
    after, on_skip = bool(link.output_norms), bool(link.skip_norms)
    if before and raw:
        return "unknown"
    names = {
        (True, False, False): "pre",
        (False, False, True): "post",
        (True, True, False): "double",
        (False, True, False): "reordered",
        (False, False, False): "none",
    }
    return names.get((before, after, on_skip), "unknown")


def norm_values(link: Link) -> tuple[list[int], list[int], list[int]]:
    """Return the outputs of the norms on the branch's input, on its output and on the skip path."""
    inputs = [value for _, _, value in link.entries if value is not None]
    return list(dict.fromkeys(inputs)), list(link.output_norms), list(link.skip_norms)


def norm_kind(flow: Dataflow, values: list[int]) -> str:
    """Return the kind that all norms with these outputs share: layernorm, rmsnorm, mixed, unknown, none."""
    kinds = set()
    for value in values:
        made = flow.producer[value]
        if made.name == NORM_MODULE:
            kinds.add(flow.norms[flow.norm_of[value]].kind)
        else:
            kinds.add(NORMS.get(made.name, "unknown"))
    return "none" if not kinds else kinds.pop() if len(kinds) == 1 else "mixed"


def output_bias(flow: Dataflow, link: Link, width: int) -> str | None:
    """Return the name of the bias that the branch's last projection adds, None without one or with several."""
    if len(link.cores) != 1:
        return None
    made = flow.producer.get(link.cores[0])
    if made is None or not HEAVY.fullmatch(made.name):
        return None
    names = [flow.trace.parameters[value] for value in made.inputs if _is_bias(flow, value, width)]
    return names[0] if len(set(names)) == 1 else None


def _is_bias(flow: Dataflow, value: int, width: int) -> bool:
    return value in flow.trace.parameters and flow.trace.shapes[value] == (width,)


def parameters(flow: Dataflow, link: Link) -> tuple[str, ...]:
    """Return the names of the parameters that the branch and the norms after its sum use."""
    found: dict[str, None] = {}
    names = flow.trace.parameters
    for operation in reversed(link.operations):
        for value in operation.inputs:
            if value in names:
                found[names[value]] = None
    _, _, skip = norm_values(link)
    inputs, outputs, _ = norm_values(link)
    for value in [*inputs, *outputs, *skip]:
        path = flow.norm_of.get(value)
        if path is not None:
            behaviour = flow.norms[path]
            found.update(dict.fromkeys(f"{path}.{name}" for name in (*behaviour.gains, *behaviour.biases)))
    return tuple(found)
