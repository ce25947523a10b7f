"""Chain residual adds into streams, and describe the branch of each add.

A stream is the longest path over residual adds; adds nested inside one of its branches are not streams of their own;
what remains gives the next stream (an encoder beside a decoder, towers).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .dataflow import ADDS, HEAVY, NORM_MODULE, NORMS, Add, Dataflow
from .trace import Operation

MOST_STREAMS = 16


@dataclass
class Link:
    """One add of a stream and its branch.

    Attributes:
        add: the residual add.
        skip_path: (value, kind of the step that made it) from the skip operand back to the previous sum.
        state: the value that the next skip path and branch read.
        terms: what is summed into the branch operand; one unless the block is parallel.
        cores: per term, the output of its last heavy operation.
        output_kinds: kinds of the transparent steps between the cores and the operand.
        entries: (index of the state that is read, normed or raw, norm output value or None).
        operations: everything computed between the states it reads and the operand.
        foreign: values it reads that vary with the batch but do not come from this stream.
        skip_norms: outputs of the norms between this sum and the state.
        output_norms: outputs of the norms between core and operand.
    """

    add: Add
    skip_path: list[tuple[int, str]] = field(default_factory=list)
    state: int = -1
    terms: list[int] = field(default_factory=list)
    cores: list[int] = field(default_factory=list)
    output_kinds: list[str] = field(default_factory=list)
    entries: list[tuple[int, bool, int | None]] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    foreign: list[int] = field(default_factory=list)
    skip_norms: list[int] = field(default_factory=list)
    output_norms: list[int] = field(default_factory=list)

    @property
    def is_parallel(self) -> bool:
        """Whether several terms are added at once."""
        return len(self.terms) > 1

    @property
    def scaled_skip(self) -> bool:
        """Whether the skip operand is scaled on its way."""
        return any(kind in ("scale", "gate") for _, kind in self.skip_path)


@dataclass
class Stream:
    """One chain of residual adds; ``start`` is state 0."""

    start: int
    links: list[Link]


def streams(flow: Dataflow) -> list[Stream]:
    """Return every residual stream of the graph, in order of execution."""
    found = [_described(flow, chain) for chain in _chains(flow)]
    return sorted(found, key=lambda stream: stream.links[0].add.result)


def _chains(flow: Dataflow) -> Iterator[list[Add]]:
    order = [value for operation in flow.operations for value in operation.outputs if value in flow.adds]
    nearest: dict[int, frozenset[int]] = {}
    for operation in flow.operations:
        for value in operation.outputs:
            if value in flow.adds:
                nearest[value] = frozenset((value,))
            elif value not in nearest:
                parents = flow.light_parents.get(value, [])
                nearest[value] = frozenset().union(*(nearest.get(parent, frozenset()) for parent, _ in parents))
    remaining = set(order)
    for number in range(MOST_STREAMS):
        depth: dict[int, int] = {}
        before: dict[int, int | None] = {}
        for value in order:
            if value in remaining:
                previous = [v for v in nearest.get(flow.adds[value].skip, ()) if v in depth]
                deepest = max(previous, key=lambda v: depth[v], default=None)
                before[value] = deepest
                depth[value] = 1 + (0 if deepest is None else depth[deepest])
        if not depth:
            return
        end = max(depth, key=lambda v: (depth[v], flow.trace.n_elements(v)))
        if depth[end] < 2:
            return
        chain: list[Add] = []
        last: int | None = end
        while last is not None:
            chain.append(flow.adds[last])
            last = before[last]
        chain.reverse()
        yield chain
        remaining -= _nested(flow, chain, remaining, end) | {add.result for add in chain}
        if number + 1 == MOST_STREAMS:
            return


def _nested(flow: Dataflow, chain: list[Add], remaining: set[int], end: int) -> set[int]:
    """Return the adds inside branches of the chain: computed from its states and needed for its end."""
    skips = 0
    for add in chain:
        skips |= 1 << add.skip
    inside = set()
    for value in remaining:
        skip = flow.adds[value].skip
        if (flow.ancestors[skip] | 1 << skip) & skips and flow.reaches(value, end):
            inside.add(value)
    return inside


def _described(flow: Dataflow, chain: list[Add]) -> Stream:
    links = [Link(add) for add in chain]
    state_of: dict[int, int] = {}
    for index, link in enumerate(links):
        target = links[index - 1].add.result if index else None
        link.skip_path = _skip_path(flow, link.add.skip, target)
        for value, _ in link.skip_path:
            state_of.setdefault(value, index)
    for index, link in enumerate(links[:-1]):
        link.skip_norms = [value for value, kind in links[index + 1].skip_path if kind == "norm"]
        link.state = link.skip_norms[0] if link.skip_norms else link.add.result
    for link in links:
        _describe_output(flow, link, state_of)
        _describe_inputs(flow, link, state_of)
    _describe_last(flow, links)
    return Stream(links[0].add.skip, _merged(flow, links))


def _skip_path(flow: Dataflow, skip: int, target: int | None) -> list[tuple[int, str]]:
    """Return the transparent way from the skip operand back to the previous sum (or to nothing, for the first)."""
    if target is None:
        return [(skip, "view")]
    came_from: dict[int, tuple[int, str] | None] = {skip: None}
    waiting = [skip]
    while waiting:
        value = waiting.pop()
        if value == target:
            break
        if value in flow.adds and value != skip:
            continue
        for parent, kind in flow.light_parents.get(value, []):
            if parent not in came_from and (parent == target or flow.reaches(target, parent)):
                came_from[parent] = (value, kind)
                waiting.append(parent)
    way, value = [], target
    while (step := came_from.get(value)) is not None:
        way.append((step[0], step[1]))  # step[0] was made from `value` by a step of this kind
        value = step[0]
    return [*reversed(way), (target, "view")]


def _describe_output(flow: Dataflow, link: Link, state_of: dict[int, int]) -> None:
    """Follow the branch operand back to the last heavy operation, through sums of several terms."""
    waiting, link.terms = [link.add.branch], []
    while waiting:
        value, kinds, norms = _core(flow, waiting.pop(), state_of)
        made = flow.producer.get(value)
        is_sum = made is not None and made.name in ADDS and value not in flow.adds and len(made.inputs) == 2
        if is_sum and made is not None and all(_is_written(flow, v, made) for v in made.inputs):
            waiting += made.inputs
            continue
        link.terms.append(value)
        link.cores.append(value)
        link.output_kinds += kinds
        link.output_norms += norms


def _core(flow: Dataflow, value: int, state_of: dict[int, int]) -> tuple[int, list[str], list[int]]:
    kinds: list[str] = []
    norms: list[int] = []
    while value not in state_of:
        parents = [(v, kind) for v, kind in flow.light_parents.get(value, []) if kind not in ("add", "shift")]
        if not parents:
            break
        if parents[0][1] == "norm":
            norms.append(value)
        kinds.append(parents[0][1])
        value = parents[0][0]
    return value, kinds, norms


def _is_written(flow: Dataflow, value: int, made: Operation) -> bool:
    """Return whether ``value`` is a full-sized, varying operand: a term of its own rather than a bias."""
    sizes = flow.trace.n_elements
    return sizes(value) == sizes(made.outputs[0]) and not flow.is_constant(value)


def _describe_inputs(flow: Dataflow, link: Link, state_of: dict[int, int]) -> None:
    """Walk back from the operand to the states it reads, and see whether each is normed before it is used."""
    stream = 0
    for value in state_of:
        stream |= 1 << value
    seen: set[int] = set()
    entered: list[tuple[int, Operation]] = []
    waiting = [link.add.branch]
    while waiting:
        value = waiting.pop()
        made = flow.producer.get(value)
        if value in seen or made is None or value in state_of:
            continue
        seen.add(value)
        if not flow.is_constant(value) and not flow.ancestors[value] & stream:
            link.foreign.append(value)
            continue
        link.operations.append(made)
        for source in made.inputs:
            if source in state_of:
                entered.append((source, made))
            else:
                waiting.append(source)
    for source, operation in dict.fromkeys(entered):
        norm = _first_use(flow, operation, seen)
        if norm is not None:
            link.entries.append((state_of[source], norm >= 0, norm if norm >= 0 else None))


def _first_use(flow: Dataflow, operation: Operation, inside: set[int]) -> int | None:
    """Return the norm output that a state first passes, -1 when a heavy operation comes first, None for neither."""
    waiting, seen = [operation], set[int]()
    while waiting:
        current = waiting.pop(0)
        output = current.outputs[0]
        kinds = [kind for _, kind in flow.light_parents.get(output, [])]
        if current.name == NORM_MODULE or current.name in NORMS or "norm" in kinds:
            return output
        if HEAVY.fullmatch(current.name):
            return -1
        for value in current.outputs:
            for reader in flow.consumers.get(value, []):
                fresh = [v for v in reader.outputs if v in inside and v not in seen]
                if fresh:
                    seen.update(fresh)
                    waiting.append(reader)
    return None


def _describe_last(flow: Dataflow, links: list[Link]) -> None:
    """Decide whether a norm behind the last sum is part of the stream (post-norm) or the model's final norm."""
    last = links[-1]
    last.state = last.add.result
    if len(links) < 2 or not links[-2].skip_norms or any(normed for _, normed, _ in last.entries):
        return
    for reader in flow.consumers.get(last.add.result, []):
        for value in reader.outputs:
            if "norm" in [kind for _, kind in flow.light_parents.get(value, [])]:
                last.skip_norms, last.state = [value], value
                return


def _merged(flow: Dataflow, links: list[Link]) -> list[Link]:
    """Join ``x + a + b`` into one parallel link where b reads the state before a, and nobody reads ``x + a``."""
    result: list[Link] = []
    first = 0
    for index, link in enumerate(links):
        reads = max((state for state, _, _ in link.entries), default=index)
        before = result[-1] if result else None
        readers = flow.consumers.get(before.add.result, []) if before is not None else []
        if before is not None and reads <= first < index and len(readers) == 1 and link.add.operation in readers:
            merged = Link(
                Add(link.add.result, before.add.skip, link.add.branch, link.add.operation),
                before.skip_path,
                link.state,
                [*before.terms, *link.terms],
                [*before.cores, *link.cores],
                [*before.output_kinds, *link.output_kinds],
                [*before.entries, *link.entries],
                [*before.operations, *link.operations],
                [*before.foreign, *link.foreign],
                link.skip_norms,
                [*before.output_norms, *link.output_norms],
            )
            result[-1] = merged
        else:
            result.append(link)
            first = index
    return result
