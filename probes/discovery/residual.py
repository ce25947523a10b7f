"""Describe the links of each stream: what is skipped, what is added, what the branch reads, where norms stand."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from .chains import chains
from .dataflow import Add, Dataflow
from .last_norm import describe_last
from .links import Link, Stream
from .recorder import Operation
from .vocabulary import ADDS, NORM_MODULE, NORMS, is_heavy


def streams(flow: Dataflow) -> list[Stream]:
    """Return every residual stream of the graph, in order of execution."""
    found = chains(flow)
    sums = {add.result: number for number, chain in enumerate(found) for add in chain}
    return [
        _described(flow, chain, {value for value, owner in sums.items() if owner != number})
        for number, chain in enumerate(found)
    ]


def _described(flow: Dataflow, chain: list[Add], elsewhere: set[int]) -> Stream:
    """Describe one chain; the sums of other chains, ``elsewhere``, end the walk into a branch."""
    links = [Link(add, operands=[add.branch]) for add in chain]
    state_of: dict[int, int] = {}
    for index, link in enumerate(links):
        target = links[index - 1].add.result if index else _origin(flow, link.add)
        link.skip_path = _skip_path(flow, link.add.skip, target)
        for value, _ in link.skip_path:
            state_of.setdefault(value, index)
    for index, link in enumerate(links[:-1]):
        link.skip_norms = [value for value, kind in links[index + 1].skip_path if kind == "norm"]
    stream = 0
    for value in state_of:
        stream |= flow.bit(value)
    for link in links:
        link.stream = stream
        _describe_output(flow, link, state_of)
        _describe_inputs(flow, link, state_of, elsewhere)
    for index, link in enumerate(links[:-1]):
        link.state = _fork(link, links[index + 1], index + 1, state_of)
    describe_last(flow, links)
    return Stream(links[0].skip_path[-1][0], _merged(flow, links))


def _fork(link: Link, following: Link, number: int, state_of: dict[int, int]) -> int:
    """Return where the next branch leaves the stream: the sum, or what it became by a norm, a scale, a rebuilding."""
    read = {value for value in following.read if state_of[value] == number}
    forks = [value for value, _ in following.skip_path if value in read]
    return forks[-1] if forks else link.skip_norms[0] if link.skip_norms else link.add.result


def _origin(flow: Dataflow, add: Add) -> int:
    """Return state 0: the nearest value that the skip operand is an image of and that the branch computes on."""
    waiting, seen = deque([add.skip]), {add.skip}
    while waiting:
        value = waiting.popleft()
        if flow.computes_on(add.branch, value):
            return value
        fresh = [v for v, _ in flow.light_parents.get(value, []) if v not in seen]
        seen.update(fresh)
        waiting.extend(fresh)
    return add.skip


def _skip_path(flow: Dataflow, skip: int, target: int) -> list[tuple[int, str]]:
    """Return the way from the skip operand back to the previous sum, or to state 0."""
    came_from: dict[int, tuple[int, str] | None] = {skip: None}
    waiting = [skip]
    while waiting:
        value = waiting.pop()
        if value == target:
            break
        if value in flow.adds and value != skip:
            continue
        for parent, kind in [*flow.light_parents.get(value, []), *flow.carried.get(value, [])]:
            if parent not in came_from and (parent == target or flow.reaches(target, parent)):
                came_from[parent] = (value, kind)
                waiting.append(parent)
    way, value = [], target
    while (step := came_from.get(value)) is not None:
        way.append((step[0], step[1]))  # step[0] was made from `value` by a step of this kind
        value = step[0]
    return [*reversed(way), (target, "view")]


def _describe_output(flow: Dataflow, link: Link, state_of: dict[int, int]) -> None:
    """Follow the branch operand back to the last heavy operation, through sums written where the add is written."""
    waiting, link.terms = [link.add.branch], []
    while waiting:
        term = waiting.pop()
        value, kinds, norms = _core(flow, term, state_of)
        made = flow.producer.get(value)
        if made is not None and _joins_terms(flow, value, made, link):
            waiting += made.inputs
        else:
            link.terms.append(term)
            link.cores.append(value)
        link.output_kinds += kinds
        link.output_norms += norms


def _joins_terms(flow: Dataflow, value: int, made: Operation, link: Link) -> bool:
    """Return whether a value is the sum of two branches: full-sized, varying, added in the same module call."""
    if made.name not in ADDS or value in flow.adds or len(made.inputs) != 2 or made.inputs[0] == made.inputs[1]:
        return False
    size = flow.trace.n_elements(value)
    full = all(flow.trace.n_elements(v) == size and not flow.is_constant(v) for v in made.inputs)
    return full and made.calls == link.add.operation.calls


def _core(flow: Dataflow, value: int, state_of: dict[int, int]) -> tuple[int, list[str], list[int]]:
    kinds: list[str] = []
    norms: list[int] = []
    while value not in state_of:
        parents = flow.light_parents.get(value, [])
        made = flow.producer.get(value)
        if len(parents) != 1 or parents[0][1] == "add" or made is None:
            break
        if parents[0][1] == "shift" and any(not flow.is_constant(v) for v in made.inputs if v != parents[0][0]):
            break
        if is_heavy(made.name):
            break
        if parents[0][1] == "norm":
            norms.append(value)
        kinds.append(parents[0][1])
        value = parents[0][0]
    return value, kinds, norms


def _describe_inputs(flow: Dataflow, link: Link, state_of: dict[int, int], elsewhere: set[int]) -> None:
    """Walk back from the operand to the states it reads, and see whether each is normed before it is used."""
    seen: set[int] = set()
    entered: list[tuple[int, Operation]] = []
    beside: list[tuple[int, Operation]] = []
    waiting = [link.add.branch]
    while waiting:
        value = waiting.pop()
        made = flow.producer.get(value)
        if value in state_of:
            continue
        if value in seen or made is None:
            continue
        seen.add(value)
        depends = flow.reaches_any(link.stream, value)
        if not flow.is_constant(value) and (not depends or value in elsewhere):
            link.foreign.append(value)
            beside += [(value, reader) for reader in flow.consumers.get(value, []) if value in elsewhere]
            continue
        link.operations.append(made)
        for source in made.inputs:
            if source in state_of:
                entered.append((source, made))
            else:
                waiting.append(source)
    # A branch that reads nothing of its own stream reads the other one of a reversible pair.
    sources = dict.fromkeys(entered) or {(v, o): None for v, o in beside if not seen.isdisjoint(o.outputs)}
    link.read = list(dict.fromkeys(source for source, _ in entered))
    own = state_of.get(link.add.skip, 0)
    link.entries += [
        (state_of.get(source, own), norm >= 0, norm if norm >= 0 else None)
        for source, operation in sources
        if (norm := _first_use(flow, operation, seen)) is not None
    ]


def _first_use(flow: Dataflow, operation: Operation, inside: set[int]) -> int | None:
    """Return the norm output that a state first passes, -1 when a heavy operation comes first, None for neither."""
    waiting, seen = [operation], set[int]()
    while waiting:
        current = waiting.pop(0)
        output = current.outputs[0]
        kinds = [kind for _, kind in flow.light_parents.get(output, [])]
        if current.name == NORM_MODULE or current.name in NORMS or "norm" in kinds:
            return output
        if is_heavy(current.name):
            return -1
        for value in current.outputs:
            for reader in flow.consumers.get(value, []):
                fresh = [v for v in reader.outputs if v in inside and v not in seen]
                if fresh:
                    seen.update(fresh)
                    waiting.append(reader)
    return None


def _merged(flow: Dataflow, links: list[Link]) -> list[Link]:
    """Join ``x + a + b`` into one parallel link where b reads the state before a, and nobody reads ``x + a``."""
    result: list[Link] = []
    first = 0
    for index, link in enumerate(links):
        reads = max((state for state, _, _ in link.entries), default=index)
        before = result[-1] if result else None
        readers = flow.consumers.get(before.add.result, []) if before is not None else []
        is_joint = reads <= first < index and len(readers) == 1 and link.add.operation in readers
        if before is not None and is_joint and bool(link.entries) and link.add.skip == before.add.result:
            add = Add(link.add.result, before.add.skip, link.add.branch, link.add.operation)
            result[-1] = Link(
                add,
                before.skip_path,
                link.state,
                [*before.terms, *link.terms],
                [*before.operands, *link.operands],
                [*before.cores, *link.cores],
                [*before.output_kinds, *link.output_kinds],
                [*before.entries, *link.entries],
                [*before.operations, *link.operations],
                [*before.foreign, *link.foreign],
                link.skip_norms,
                [*before.output_norms, *link.output_norms],
                link.stream,
                [*before.read, *link.read],
            )
        else:
            result.append(link)
            first = index
    return result


def reads_of(stream: Stream, sums: Iterable[int]) -> bool:
    """Return whether a branch of ``stream`` reads one of these sums of another stream."""
    wanted = set(sums)
    return any(not wanted.isdisjoint(link.foreign) for link in stream.links)
