"""Find what stands behind the last state of a stack: its final norm, and the logits that the model returns."""

from __future__ import annotations

from collections.abc import Iterator

from rheoscope.probes.anatomy import Outlet, Point

from . import branches
from .dataflow import Dataflow
from .links import Stream
from .plan import Plan
from .recorder import Operation, Position
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
    logits, partial = None, list[str]()
    if found is not None:
        position, value = found
        logits = plan.of_output(value)
        is_part = logits is not None and not plan.shows_whole_gradient(value, logits)
        if position is not None and (logits is None or is_part):
            logits, is_part = Point("", "output", position), False
        partial += ["logits"] if is_part else []
    if norm is not None and norm_point is not None and not plan.shows_whole_gradient(norm, norm_point):
        partial.append("final_norm")
    return Outlet(
        norm_path=None if norm is None else flow.norm_of.get(norm, ""),
        norm_kind="none" if norm is None else branches.norm_kind(flow, [norm]),
        norm=norm_point,
        is_direct=norm is not None and _is_direct(flow, state, norm),
        has_logits=found is not None,
        logits=logits,
        partial=tuple(partial),
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


def norms_before(flow: Dataflow, value: int) -> list[int]:
    """Return the outputs of the norms that a value comes out of, with nothing but views, dropouts and the like behind them."""
    waiting, found = [value], []
    for _ in range(DEEPEST):
        steps = [step for current in waiting for step in flow.light_parents.get(current, [])]
        found += [current for current in waiting if "norm" in {kind for _, kind in flow.light_parents.get(current, [])}]
        waiting = list(dict.fromkeys(parent for parent, kind in steps if kind in _PASSED))
    return found


def _is_direct(flow: Dataflow, state: int, norm: int) -> bool:
    is_returned = any(value == state for _, value in flow.trace.calls[0].outputs)
    return flow.light_parents.get(norm) == [(state, "norm")] and len(flow.consumers[state]) == 1 and not is_returned


def _logits(flow: Dataflow, total: int, width: int) -> tuple[Position | None, int] | None:
    """Return the widest result of the model that a last projection makes from the stack's last sum: position and value.

    Where the model returns a loss alone, it is what that projection gives, at no position.
    """
    trace = flow.trace
    returned: list[tuple[Position | None, int]] = []
    inside: list[tuple[Position | None, int]] = []
    for position, value in trace.calls[0].outputs:
        if flow.is_constant(value) or not trace.dtypes[value].is_floating_point:
            continue
        is_loss = trace.n_elements(value) == 1
        for made in _heads(flow, value):
            product = made.outputs[0]
            size = trace.shapes[product][-1]
            is_own = is_loss or trace.shapes[value][-1] == size
            if is_own and size not in (1, width) and total in _sums(flow, product):
                (inside if is_loss else returned).append((None, product) if is_loss else (position, value))
    return max(returned or inside, key=lambda item: trace.shapes[item[1]][-1], default=None)


def _heads(flow: Dataflow, value: int) -> Iterator[Operation]:
    """Yield the projections whose results become ``value`` by light operations alone."""
    waiting, seen = [value], {value}
    while waiting and len(seen) < MOST_VALUES:
        current = waiting.pop()
        made = flow.producer.get(current)
        if made is None or current in flow.adds:
            continue
        if is_heavy(made.name):
            if made.name in LINEAR and sum(not flow.is_constant(v) for v in made.inputs) == 1:
                yield made
            continue
        fresh = [v for v in made.inputs if v not in seen and not flow.is_constant(v)]
        seen.update(fresh)
        waiting += fresh


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
