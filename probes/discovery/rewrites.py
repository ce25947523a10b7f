"""Rewrite calls that do several things at once into the ones they stand for, and norm modules into one call.

``addcmul(x, a, b)`` is a product and a sum, ``addmm(x, a, b)`` with a full-sized x a matrix product and a sum,
``lerp(x, y, w)`` two products and a sum, ``stack([a, b]).sum(0)`` a sum. After this the rules of dataflow.py need to
know sums and products only. Results in between that no call shows get values of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from .norms import NormBehaviour, norm_behaviour
from .recorder import ModuleCall, Operation, Trace
from .vocabulary import DROPOUTS, NORM_MODULE, PARTS, SUMS, VIEWS, is_heavy

MOST_NORM_OPERATIONS = 60  # hand-written norms take 5-12; through the dispatcher up to twice as many
_FUSED_PRODUCTS = {"addmm": "matmul", "baddbmm": "bmm", "addbmm": "bmm", "addmv": "mv"}
_FILLED = re.compile(r"(zeros|ones|empty|full|rand|randn)(_like)?|new_(zeros|ones|empty|full|tensor)")
_SCATTERS = frozenset("index_add scatter_add scatter_reduce".split())


def is_filled(name: str) -> bool:
    """Return whether a call makes a tensor from another's shape alone."""
    return _FILLED.fullmatch(name) is not None


def rewritten(trace: Trace, varying: set[int]) -> tuple[list[Operation], dict[int, str], dict[str, NormBehaviour]]:
    """Return the operations in simple calls, which value is which norm module's output, and each norm's behaviour.

    Args:
        trace: its operations are not changed; values may be added.
        varying: values that depend on the batch; extended by the values added.
    """
    norm_of: dict[int, str] = {}
    norms: dict[str, NormBehaviour] = {}
    made_by: dict[int, Operation] = {}
    result: list[Operation] = []
    for operation in _without_norms(trace, norm_of, norms):
        if is_filled(operation.name):
            operation = replace(operation, inputs=())
        for simple in _simple(trace, operation, made_by, varying):
            result.append(simple)
            made_by.update(dict.fromkeys(simple.outputs, simple))
    return result, norm_of, norms


def _simple(
    trace: Trace, operation: Operation, made_by: dict[int, Operation], varying: set[int]
) -> Iterator[Operation]:
    name, inputs = operation.name, operation.inputs
    output = operation.outputs[0]
    size = trace.n_elements(output)
    full = [value for value in inputs if trace.n_elements(value) == size]

    def between(called: str, given: tuple[int, ...], numbers: tuple[float, ...] | None = None) -> Operation:
        fresh = trace.new_value(output)
        if varying.intersection(given):
            varying.add(fresh)
        forms = {**operation.forms, fresh: operation.forms[output]} if output in operation.forms else operation.forms
        kept = operation.numbers if numbers is None else numbers
        return replace(operation, name=called, inputs=given, outputs=(fresh,), forms=forms, replay=None, numbers=kept)

    if name == "addcmul" and len(inputs) == 3 and inputs[0] in full:
        product = between("mul", inputs[1:])
        yield product
        yield replace(operation, name="add", inputs=(inputs[0], *product.outputs), numbers=(), factors={})
    elif name in _FUSED_PRODUCTS and len(inputs) == 3 and inputs[0] in full and inputs[0] in varying:
        product = between(_FUSED_PRODUCTS[name], inputs[1:])
        yield product
        yield replace(operation, name="add", inputs=(inputs[0], *product.outputs), numbers=(), factors={})
    elif name == "lerp" and len(inputs) >= 2 and inputs[0] in full and inputs[1] in full:
        weight = operation.numbers[:1]
        first = between("mul", (inputs[0], *inputs[2:]), numbers=tuple(1 - w for w in weight))
        second = between("mul", (inputs[1], *inputs[2:]), numbers=weight)
        yield from (first, second)
        yield replace(operation, name="add", inputs=(*first.outputs, *second.outputs), numbers=(), factors={})
    elif name in _SCATTERS and len(inputs) >= 2 and inputs[0] in full and inputs[0] in varying:
        scattered = between("scatter", tuple(value for value in inputs[1:] if value in varying))
        yield scattered
        yield replace(operation, name="add", inputs=(inputs[0], *scattered.outputs), numbers=(), factors={})
    elif name == "sum" and (terms := _stacked(trace, operation, made_by)):
        total = terms[0]
        for term in terms[1:-1]:
            partial = between("add", (total, term), numbers=())
            yield partial
            total = partial.outputs[0]
        yield replace(operation, name="add", inputs=(total, terms[-1]), numbers=(), replay=None)
    else:
        yield operation


def _stacked(trace: Trace, operation: Operation, made_by: dict[int, Operation]) -> list[int]:
    """Return what was put together to be summed here, where each term is as large as the sum."""
    value = operation.inputs[0] if operation.inputs else -1
    made = made_by.get(value)
    while made is not None and made.name in VIEWS and made.inputs:
        made = made_by.get(made.inputs[0])
    if made is None or made.name not in ("stack", "cat", "concat", "vstack") or len(made.inputs) < 2:
        return []
    size = trace.n_elements(operation.outputs[0])
    terms = list(made.inputs)
    return terms if all(trace.n_elements(term) == size for term in terms) else []


def _without_norms(trace: Trace, norm_of: dict[int, str], norms: dict[str, NormBehaviour]) -> Iterator[Operation]:
    """Yield the trace's operations with the inside of every norm module replaced by one operation."""
    inside: dict[int, ModuleCall] = {}
    known: dict[tuple[int, int], NormBehaviour | None] = {}
    for entry in trace.calls:
        if entry.first in inside:
            continue  # within a norm that is already one
        behaviour = _behaviour(trace, entry, known)
        if behaviour is not None:
            norms[entry.path] = behaviour
            norm_of[entry.outputs[0][1]] = entry.path
            inside.update(dict.fromkeys(range(entry.first, entry.last), entry))
    done: set[int] = set()
    for index, operation in enumerate(trace.operations):
        norm = inside.get(index)
        if norm is None:
            yield operation
        elif norm.index not in done:
            done.add(norm.index)
            given, made = norm.inputs[0], norm.outputs[0]
            forms = {given[1]: norm.forms["input", given[0]], made[1]: norm.forms["output", made[0]]}
            yield Operation(NORM_MODULE, (given[1],), (made[1],), operation.calls, forms=forms)


def _behaviour(
    trace: Trace, entry: ModuleCall, known: dict[tuple[int, int], NormBehaviour | None]
) -> NormBehaviour | None:
    """Return how the module of this call normalises, None when the call is no norm."""
    module: nn.Module = entry.module
    if len(entry.outputs) != 1 or not entry.inputs or entry.last < 0 or not entry.path:
        return None
    given, made = entry.inputs[0][1], entry.outputs[0][1]
    shape, dtype = trace.shapes[given], trace.dtypes[given]
    names = [operation.name for operation in trace.operations[entry.first : entry.last]]
    # A view keeps its value, which has the shape that it was first seen with: tokens may be rows in one and not in the other.
    is_alike = trace.shapes[made][-1:] == shape[-1:] and trace.n_elements(made) == trace.n_elements(given)
    if given == made or not shape or not is_alike or not dtype.is_floating_point:
        return None
    if not names or len(names) > MOST_NORM_OPERATIONS or any(is_heavy(name) for name in names):
        return None
    if all(name in VIEWS or name in DROPOUTS or name in PARTS or name in SUMS for name in names):
        return None
    key = (id(module), shape[-1])
    if key not in known:
        known[key] = norm_behaviour(module, shape, dtype)
    return known[key]
