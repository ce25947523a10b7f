"""Chain residual adds into streams.

Adds are linked where one's sum is carried, by transparent steps or pooling, to the next one's skip operand. Linked adds
fall into components; in each, the longest path is a chain, then the longest path of what remains. Two rules keep what
runs *inside* a branch from passing as a stream:

- a path's tail is cut where an add outside the path takes it as its branch: it is that add's inside
- a chain is dropped when its first skip operand depends on the skip operand of another chain's add and its last sum
  enters the branch of the same add (experts' sums, recurrences over positions, residual networks inside a branch)

A chain that both continues an earlier sum and is itself carried into the add (pooled blocks that are added again at
full length, U-nets) is a detour of the stream and stays.

Reversible and cross-attending streams read each other and pass both rules, because neither starts inside the other.
"""

from __future__ import annotations

from collections import defaultdict

from .dataflow import Add, Dataflow

SHORTEST = 2  # one add alone recurs nowhere
MOST_STREAMS = 64  # more than any known model has; bounds the time spent on a graph that is none


def chains(flow: Dataflow) -> list[list[Add]]:
    """Return every chain of residual adds that is no part of a branch, in order of execution."""
    before, entering = _links(flow)
    found: list[list[Add]] = []
    for component in _components(before):
        remaining = set(component)
        while remaining and len(found) < 16 * MOST_STREAMS:
            path = _longest(flow, [value for value in component if value in remaining], before)
            if len(path) < SHORTEST:
                break
            tail = _superseded(flow, path, remaining, before, entering)
            if tail:
                remaining -= set(tail)
                continue
            found.append([flow.adds[value] for value in path])
            remaining -= set(path)
    kept = [chain for chain in found if not _is_inside_another(flow, chain, found, before, entering)]
    return sorted(kept, key=lambda chain: chain[0].result)[:MOST_STREAMS]


Links = dict[int, tuple[int, ...]]


def _links(flow: Dataflow) -> tuple[Links, Links]:
    """Return, for each residual sum, the sums that its skip operand, and its branch operand, continue directly."""
    nearest: dict[int, frozenset[int]] = {}
    before: Links = {}
    entering: Links = {}
    for operation in flow.operations:
        for value in operation.outputs:
            if value in nearest or flow.producer.get(value) is not operation:
                continue
            add = flow.adds.get(value)
            if add is not None:
                before[value] = tuple(sorted(nearest.get(add.skip, ())))
                entering[value] = tuple(sorted(nearest.get(add.branch, ())))
                nearest[value] = frozenset((value,))
                continue
            parents = [*flow.light_parents.get(value, []), *flow.carried.get(value, [])]
            sets = [nearest[parent] for parent, _ in parents if nearest.get(parent)]
            nearest[value] = sets[0] if len(sets) == 1 else frozenset().union(*sets)
    return before, entering


def _components(before: Links) -> list[list[int]]:
    """Return the connected groups of sums, each in order of execution."""
    leader: dict[int, int] = {}

    def lead(value: int) -> int:
        while leader.setdefault(value, value) != value:
            leader[value] = leader[leader[value]]
            value = leader[value]
        return value

    for value, previous in before.items():
        for other in previous:
            leader[lead(other)] = lead(value)
    groups: dict[int, list[int]] = defaultdict(list)
    for value in before:
        groups[lead(value)].append(value)
    return list(groups.values())


def _longest(flow: Dataflow, values: list[int], before: Links) -> list[int]:
    """Return the longest path; of several, the one that ends last: an add comes after what is inside its branch."""
    depth: dict[int, int] = {}
    previous: dict[int, int | None] = {}
    for value in values:
        choice = max((v for v in before[value] if v in depth), key=lambda v: (depth[v], v), default=None)
        previous[value] = choice
        depth[value] = 1 if choice is None else depth[choice] + 1
    last: int | None = max(values, key=lambda v: (depth[v], flow.trace.n_elements(v), v), default=None)
    path: list[int] = []
    while last is not None:
        path.append(last)
        last = previous[last]
    return path[::-1]


def _superseded(flow: Dataflow, path: list[int], remaining: set[int], before: Links, entering: Links) -> list[int]:
    """Return the tail of ``path`` that another add, continuing from the same sum, takes as its branch."""
    place = {value: index for index, value in enumerate(path)}
    end = flow.bit(path[-1])
    for value in sorted(remaining - set(path)):
        add = flow.adds[value]
        forks = [place[v] for v in before[value] if v in place]
        if forks and flow.reaches_any(end, add.branch) and not _is_detour(flow, path[-1], value, entering):
            tail = path[max(forks) + 1 :]
            if tail and all(flow.reaches_any(flow.bit(item), add.branch) for item in tail):
                return tail
    return []


def _is_inside_another(
    flow: Dataflow, chain: list[Add], found: list[list[Add]], before: Links, entering: Links
) -> bool:
    first, last = chain[0], chain[-1]
    for other in found:
        if other is chain:
            continue
        for add in other:
            # Skip operands are read by the branch too, at least through what they are images of.
            source = flow.junction(add.skip)
            if not source or not flow.reaches_any(source, first.skip):
                continue
            is_detour = before[first.result] and _is_detour(flow, last.result, add.result, entering)
            if flow.reaches_any(flow.bit(last.result), add.branch) and not is_detour:
                return True
    return False


def _is_detour(flow: Dataflow, last: int, total: int, entering: Links) -> bool:
    """Return whether the sum ``last`` is itself carried into the add ``total``, at another length: pooled blocks."""
    return last in entering[total] and flow.trace.n_elements(last) != flow.trace.n_elements(total)
