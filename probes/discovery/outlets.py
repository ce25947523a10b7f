"""Find what stands behind the last state of a stack: its final norm, and the logits that the model returns."""

from __future__ import annotations

from rheoscope.probes.anatomy import Outlet, Point

from . import branches
from .dataflow import Dataflow
from .plan import Plan
from .recorder import Operation
from .residual import Stream
from .vocabulary import LINEAR, is_heavy

_PASSED = frozenset("view part mask dropout scale center shift mix".split())  # kinds of steps before a final norm
DEEPEST = 12  # steps from the last state to its norm
MOST_VALUES = 500  # that are looked at between the logits and the last state


def outlet(flow: Dataflow, plan: Plan, stream: Stream, width: int) -> Outlet:
    """Return final norm and logits of one stack.

    Args:
        flow: the graph.
        plan: where values are seen.
        stream: the stack.
        width: of the stream: what is as wide as it holds features, not logits.
    """
    state = stream.links[-1].state
    norm = _final_norm(flow, state)
    norm_point = plan.of_output(norm) if norm is not None else None
    found = _logits(flow, stream.links[-1].add.result, width)
    logits = None
    if found is not None:
        position, value = found
        logits = plan.of_output(value)
        if logits is None or not plan.shows_whole_gradient(value, logits):
            logits = Point("", "output", position)
    is_part = norm is not None and norm_point is not None and not plan.shows_whole_gradient(norm, norm_point)
    return Outlet(
        norm_path=None if norm is None else flow.norm_of.get(norm, ""),
        norm_kind="none" if norm is None else branches.norm_kind(flow, [norm]),
        norm=norm_point,
        is_direct=norm is not None and _is_direct(flow, state, norm),
        has_logits=found is not None,
        logits=logits,
        partial=("final_norm",) if is_part else (),
    )


def _final_norm(flow: Dataflow, state: int) -> int | None:
    """Return the output of the one norm that the last state reaches first; None where there is none, or several."""
    waiting = [state]
    for _ in range(DEEPEST):
        further: list[int] = []
        norms: list[int] = []
        for value in waiting:
            for output in (output for reader in flow.consumers.get(value, []) for output in reader.outputs):
                kinds = {kind for parent, kind in flow.light_parents.get(output, []) if parent == value}
                if "norm" in kinds:
                    norms.append(output)
                elif kinds & _PASSED:
                    further.append(output)
        if norms:
            return norms[0] if len(set(norms)) == 1 else None
        waiting = list(dict.fromkeys(further))
    return None


def _is_direct(flow: Dataflow, state: int, norm: int) -> bool:
    is_returned = any(value == state for _, value in flow.trace.calls[0].outputs)
    return flow.light_parents.get(norm) == [(state, "norm")] and len(flow.consumers[state]) == 1 and not is_returned


def _logits(flow: Dataflow, total: int, width: int) -> tuple[tuple[int | str, ...], int] | None:
    """Return the widest result of the model that a last projection makes from the stack's last sum: position and value."""
    trace = flow.trace
    found = []
    for position, value in trace.calls[0].outputs:
        shape = trace.shapes[value]
        is_wide = len(shape) >= 2 and shape[-1] > 1 and shape[-1] != width and trace.dtypes[value].is_floating_point
        if is_wide and not flow.is_constant(value):
            head = _head(flow, value)
            if head is not None and trace.shapes[head.outputs[0]][-1] == shape[-1] and total in _sums(flow, value):
                found.append((position, value))
    return max(found, key=lambda item: trace.shapes[item[1]][-1], default=None)


def _head(flow: Dataflow, value: int) -> Operation | None:
    """Return the projection whose result becomes ``value`` by light operations alone."""
    waiting, seen = [value], {value}
    while waiting and len(seen) < MOST_VALUES:
        current = waiting.pop()
        made = flow.producer.get(current)
        if made is None or current in flow.adds:
            continue
        if is_heavy(made.name):
            is_projection = made.name in LINEAR and sum(not flow.is_constant(v) for v in made.inputs) == 1
            return made if is_projection else None
        fresh = [v for v in made.inputs if v not in seen and not flow.is_constant(v)]
        seen.update(fresh)
        waiting += fresh
    return None


def _sums(flow: Dataflow, value: int) -> set[int]:
    """Return the residual sums that ``value`` is computed from without another such sum in between."""
    waiting, seen, found = [value], {value}, set[int]()
    while waiting and len(seen) < MOST_VALUES:
        current = waiting.pop()
        if current in flow.adds:
            found.add(current)
            continue
        made = flow.producer.get(current)
        fresh = [v for v in (made.inputs if made is not None else ()) if v not in seen and not flow.is_constant(v)]
        seen.update(fresh)
        waiting += fresh
    return found
