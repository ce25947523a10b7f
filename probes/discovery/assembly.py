"""Put an anatomy together: stacks, branches, and where each of their tensors is seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rheoscope.probes.anatomy import Anatomy, Branch, Point, Stack
from rheoscope.probes.wrappers import parameters_of
from torch import Tensor, nn

from . import branches
from .certificate import Entry, entry
from .dataflow import Dataflow
from .links import Link, Stream
from .outlets import norms_before
from .plan import Plan
from .residual import reads_of
from .routes import Route
from .vocabulary import QUOTIENTS


def assembled(model: nn.Module, flow: Dataflow, plan: Plan, found: list[Stream]) -> tuple[Anatomy, list[Entry]]:
    """Return the anatomy of the streams ``found``, not yet certified, and one ledger entry a branch."""
    trainable = {name for name, _ in parameters_of(model, remove_duplicate=False)}
    stacks = _exclusive(tuple(_stack(flow, plan, stream, i, found, trainable) for i, stream in enumerate(found)))
    gains = tuple(f"{path}.{name}" for path, norm in flow.norms.items() for name in norm.gains)
    biases = tuple(f"{path}.{name}" for path, norm in flow.norms.items() for name in norm.biases)
    widest = max((shape[-1] for shape in _output_shapes(flow)), default=0)
    vocabulary = widest if widest > max(stack.width for stack in stacks) else 0
    entries = [_entry(flow, plan, link) for stream in found for link in stream.links]
    return Anatomy(stacks, (), gains, biases, vocabulary, notes=tuple(_notes(stacks))), entries


def _entry(flow: Dataflow, plan: Plan, link: Link) -> Entry:
    return entry(flow, plan, link.add, link.operands)


def _output_shapes(flow: Dataflow) -> list[tuple[int, ...]]:
    trace = flow.trace
    outputs = [value for _, value in trace.calls[0].outputs] if trace.calls else []
    return [trace.shapes[v] for v in outputs if trace.shapes[v] and trace.dtypes[v].is_floating_point]


def _stack(flow: Dataflow, plan: Plan, stream: Stream, index: int, found: list[Stream], trainable: set[str]) -> Stack:
    kinds = [branches.kind(flow, link) for link in stream.links]
    numbers = branches.block_numbers(stream.links, kinds)
    made = tuple(
        _branch(flow, plan, link, before, kind, index, block, depth)
        for depth, (link, before, kind, block) in enumerate(
            zip(stream.links, [stream.start, *(link.state for link in stream.links)], kinds, numbers, strict=False),
            start=1,
        )
    )
    names = _sources(flow, stream.start)
    start_parameters = tuple(name for name in names if name in trainable)
    n_streams, mixing = _mixing(flow, stream, found)
    start = plan.of_state(stream.start)
    return Stack(
        index,
        made,
        start,
        start_parameters,
        _width(flow, stream),
        n_streams,
        mixing,
        start_is_partial=start is not None and not plan.shows_whole_gradient(stream.start, start),
        start_norms=tuple(dict.fromkeys(flow.norm_of.get(value, "") for value in norms_before(flow, stream.start))),
    )


def _sources(flow: Dataflow, value: int) -> list[str]:
    """Return the names of the parameters that ``value`` is made from."""
    waiting, seen, found = [value], {value}, dict[str, None]()
    while waiting:
        current = waiting.pop()
        if current in flow.trace.parameters:
            found[flow.trace.parameters[current]] = None
        made = flow.producer.get(current)
        for source in made.inputs if made is not None else ():
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    return list(found)


def _width(flow: Dataflow, stream: Stream) -> int:
    """Return the size of the stream's feature axis: what the last projections of its branches end in."""
    shape = flow.trace.shapes[stream.start]
    sizes: dict[int, int] = {}
    for link in stream.links:
        for core in link.cores:
            made = flow.producer.get(core)
            for value in made.inputs if made is not None else ():
                weight = flow.trace.shapes[value]
                if value in flow.trace.parameters and len(weight) >= 2:
                    sizes[weight[0]] = sizes.get(weight[0], 0) + 1
    likely = max(sizes, key=lambda size: sizes[size], default=0)
    return likely if likely in shape else shape[-1] if shape else 0


def _mixing(flow: Dataflow, stream: Stream, found: list[Stream]) -> tuple[int, str]:
    """Return how many parallel streams a stack carries and how they are mixed, in words."""
    if any("mix" in link.skip_kinds for link in stream.links):
        sizes = flow.trace.n_elements
        ratios = [sizes(link.add.result) / max(1, sizes(core)) for link in stream.links for core in link.cores]
        whole = [int(ratio) for ratio in ratios if ratio > 1 and ratio == int(ratio)]
        count = max(set(whole), key=whole.count) if whole else 2
        return count, f"{count} parallel streams, mixed by a matrix before each write is added"
    mine = [link.add.result for link in stream.links]
    for other_index, other in enumerate(found):
        if other is stream or not reads_of(stream, [link.add.result for link in other.links]):
            continue
        if reads_of(other, mine) and not any(link.read for link in stream.links[1:]):
            return 2, f"reversible: every branch reads stack {other_index} and writes to this one"
    return 1, ""


def _notes(stacks: tuple[Stack, ...]) -> list[str]:
    notes = [f"Stack {stack.index}: {stack.mixing}." for stack in stacks if stack.mixing]
    for stack in stacks:
        places = [branch for branch in stack.branches if branch.placement != "post" and branch.skip_norms]
        if places:
            notes.append(
                f"Stack {stack.index}: the stream itself is normed behind {len(places)} branches that have norms "
                f"of their own, first behind the {places[0].kind} branch of block {places[0].block}."
            )
    return notes


def _branch(
    flow: Dataflow, plan: Plan, link: Link, before: int, kind: str, stack: int, block: int, depth: int
) -> Branch:
    inputs, outputs, skips = branches.norm_values(link)
    shape = flow.trace.shapes[link.add.result]
    has_sum = link.state != link.add.result
    input_points = [plan.of_output(value) for value in inputs]
    own = [norm for norm in (inputs, outputs, skips) if norm]
    made = Branch(
        stack=stack,
        block=block,
        depth=depth,
        kind=kind,
        placement=branches.placement(link),
        norm_kind=branches.norm_kind(flow, [value for norm in own for value in norm]),
        is_parallel=link.is_parallel,
        scale=_scale(flow, link, before),
        module_path=plan.holder(link.cores),
        parameters=branches.parameters(flow, link),
        output_bias=branches.output_bias(flow, link, shape[-1] if shape else 0),
        input_norms=tuple(flow.norm_of[value] for value in inputs if value in flow.norm_of),
        output_norms=tuple(flow.norm_of[value] for value in outputs if value in flow.norm_of),
        skip_norms=tuple(flow.norm_of[value] for value in skips if value in flow.norm_of),
        state=plan.of_state(link.state),
        sum=plan.of_state(link.add.result) if has_sum else None,
        write=None if link.is_parallel or link.add.sign < 0 else plan.of_branch(link.add.branch),
        output=None if link.is_parallel else plan.of_output(link.cores[0]),
        terms=_terms(plan, link),
        inputs=tuple(dict.fromkeys(point for point in input_points if point is not None)),
        is_gated_skip="gate" in link.skip_kinds,
        direct_norms=tuple(branches.direct_norms(flow, link, before)),
    )
    made = replace(made, partial=tuple(_partial(plan, link, made)))
    return made if made.write is not None or made.terms else _with_seen(plan, link, made)


def _partial(plan: Plan, link: Link, made: Branch) -> Iterator[str]:
    """Yield which of the branch's points show a copy or a view, whose gradient is not the whole one."""
    shown = (
        ("state", link.state, made.state),
        ("sum", link.add.result, made.sum),
        ("write", link.add.branch, made.write),
    )
    for name, value, point in shown:
        if point is not None and not plan.shows_whole_gradient(value, point):
            yield name
    normed = [(value, plan.of_output(value)) for value in branches.norm_values(link)[0]]
    if any(point is not None and not plan.shows_whole_gradient(value, point) for value, point in normed):
        yield "branch_input"


def _terms(plan: Plan, link: Link) -> tuple[Point, ...]:
    if not link.is_parallel:
        return ()
    points = [plan.of_branch(value) for value in link.terms]
    return tuple(point for point in points if point is not None) if None not in points else ()


def _with_seen(plan: Plan, link: Link, made: Branch) -> Branch:
    """Say what hooks see of a write that they do not see as it is added."""
    routes = [route for value in link.operands for route in plan.expression(value, through_adds=True)]
    sightings = [plan.branch_sighting(route.value) for route in routes]
    if not routes or None in sightings:
        return made
    return replace(
        made,
        seen=tuple(sighting.point for sighting in sightings if sighting is not None),
        factors=tuple(_factor(route, link.add.sign) for route in routes),
        write_dropout=max((plan.dropout(route.value) for route in routes), default=0.0),
    )


def _factor(route: Route, sign: int) -> float | None:
    """Return the one number that a route's tensor is multiplied by, None where it differs between elements."""
    result = float(sign)
    for step in route.steps:
        result *= step.sign
        if step.kind == "scale":
            factor = _number(step.operation.factors, step.there, step.operation.numbers)
            if factor is None:
                return None
            result *= 1 / factor if step.operation.name in QUOTIENTS else factor
    return result


def _number(factors: dict[int, Tensor], operand: int, numbers: tuple[float, ...]) -> float | None:
    for value, tensor in factors.items():
        if value != operand:
            return float(tensor.detach()) if tensor.numel() == 1 else None
    return numbers[0] if numbers else None


def _scale(flow: Dataflow, link: Link, before: int) -> float:
    """Return the factor of the skip operand: the mean, where a learned factor differs between elements."""
    result = 1.0
    for value, kind in link.skip_path:
        if value == before:
            break  # what made the state itself is no part of the skip
        made = flow.producer.get(value)
        if kind == "scale" and made is not None:
            tensors = [made.factors[v] for v in made.inputs if v in made.factors]
            numbers = [float(t.detach().double().mean()) for t in tensors] or list(made.numbers[:1])
            for number in numbers[:1]:
                result *= 1 / number if made.name in QUOTIENTS and number else number
    return result


def _exclusive(stacks: tuple[Stack, ...]) -> tuple[Stack, ...]:
    """Leave to each branch the parameters that no other branch uses."""
    users: dict[str, int] = {}
    for stack in stacks:
        for branch in stack.branches:
            for name in branch.parameters:
                users[name] = users.get(name, 0) + 1
    return tuple(
        replace(
            stack,
            branches=tuple(
                replace(branch, parameters=tuple(name for name in branch.parameters if users[name] == 1))
                for branch in stack.branches
            ),
        )
        for stack in stacks
    )
