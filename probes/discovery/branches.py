"""Name what a branch is and how it is normed, from the operations inside it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from .dataflow import Dataflow
from .links import Link
from .recorder import Operation
from .vocabulary import (
    ATTENTION,
    CONVOLUTIONS,
    EXPERTS,
    LINEAR,
    MATRIX_PRODUCTS,
    NORM_MODULE,
    NORMS,
    POOLS,
    ROUTERS,
    is_heavy,
)


def kind(flow: Dataflow, link: Link) -> str:
    """Return attention, cross_attention, mlp, moe, mixer, shortcut or parallel.

    Attention multiplies two values that both depend on the batch, takes a softmax and multiplies again (or calls
    torch's attention); it is cross attention when its keys come from elsewhere. An MLP multiplies by parameters only;
    an MoE does, and picks by content which ones. A mixer moves content between positions by other means. A shortcut
    computes nothing: it adds an earlier state again.
    """
    if link.is_parallel:
        return "parallel"
    attends = attention(flow, link.operations)
    if attends is not None:
        return "cross_attention" if _is_cross(flow, link, attends) else "attention"
    return _kind_without_attention(flow, link)


def _kind_without_attention(flow: Dataflow, link: Link) -> str:
    # Bookkeeping of routers (counts, offsets of experts) is small or whole-numbered: it moves no content.
    sizes = flow.trace.n_elements
    operations = link.operations
    written = min(sizes(core) for core in link.cores)
    heavy = [operation for operation in operations if is_heavy(operation.name)]
    heavy = [
        operation
        for operation in heavy
        if flow.trace.dtypes[operation.outputs[0]].is_floating_point and sizes(operation.outputs[0]) * 8 >= written
    ]
    if not heavy:
        return "shortcut"
    if not all(_is_linear(flow, operation) for operation in heavy):
        return "mixer"
    return "moe" if any(ROUTERS.fullmatch(operation.name) for operation in operations) else "mlp"


def _is_linear(flow: Dataflow, operation: Operation) -> bool:
    if operation.name in LINEAR or EXPERTS.fullmatch(operation.name) or operation.name in ("opaque", "embedding"):
        return True
    return bool(CONVOLUTIONS.fullmatch(operation.name)) and not is_spatial(flow, operation)


def is_spatial(flow: Dataflow, operation: Operation) -> bool:
    """Return whether a convolution's kernel is wider than one position."""
    if not CONVOLUTIONS.fullmatch(operation.name) or len(operation.inputs) < 2:
        return False
    return any(size > 1 for size in flow.trace.shapes[operation.inputs[1]][2:])


def attention(flow: Dataflow, operations: list[Operation]) -> Operation | None:
    """Return the call that multiplies queries with keys, None where nothing attends.

    Args:
        flow: the graph.
        operations: of one branch, last first.
    """
    scores: dict[int, Operation] = {}
    shares: dict[int, Operation] = {}
    for operation in sorted(operations, key=lambda made: made.outputs[0]):
        if ATTENTION.fullmatch(operation.name):
            return operation
        attending = next((shares[v] for v in operation.inputs if v in shares), None)
        scored = next((scores[v] for v in operation.inputs if v in scores), None)
        if operation.name in MATRIX_PRODUCTS:
            if attending is not None:
                return attending
            varying = [v for v in operation.inputs if not flow.is_constant(v)]
            if len(varying) >= 2 and scored is None:
                scored = operation
        if scored is not None and ("softmax" in operation.name or operation.name == "logsumexp"):
            attending, scored = scored, None
        for output in operation.outputs:
            if attending is not None:
                shares[output] = attending
            elif scored is not None:
                scores[output] = scored
    return None


def _is_cross(flow: Dataflow, link: Link, attends: Operation) -> bool:
    own = [flow.reaches_any(link.stream, value) for value in queries_and_keys(attends)]
    if len(own) == 2 and own[0] != own[1]:
        return True
    return bool(link.read) and any(value in flow.adds for value in link.foreign)


def queries_and_keys(attends: Operation) -> tuple[int, ...]:
    """Return the two values that an attention call multiplies; a bias that it adds comes first in some."""
    is_added = attends.name in ("baddbmm", "addbmm") and len(attends.inputs) >= 3
    return attends.inputs[1:3] if is_added else attends.inputs[:2]


def beside(flow: Dataflow, link: Link) -> list[Operation]:
    """Return what the attention call's own module computes from elsewhere: projections of another stream's keys."""
    attends = attention(flow, link.operations)
    frame = attends.calls if attends is not None else ()
    waiting, seen, found = list(link.foreign), set[int](), list[Operation]()
    while waiting and len(frame) > 1:
        value = waiting.pop()
        made = flow.producer.get(value)
        if value in seen or made is None or made.calls[: len(frame)] != frame:
            continue
        seen.add(value)
        found.append(made)
        waiting += made.inputs
    return found


def is_convolutional(flow: Dataflow, links: list[Link]) -> bool:
    """Return whether positions are mixed by convolution alone: then this is no transformer.

    Either all that is computed is convolutions, some over several positions; or every branch holds one over a plane.
    """
    heavy = [[made for made in link.operations if is_heavy(made.name)] for link in links]
    spatial = [[made for made in branch if is_spatial(flow, made)] for branch in heavy]
    if any(attention(flow, link.operations) is not None for link in links):
        return False
    names = {made.name for branch in heavy for made in branch}
    if any(spatial) and all(CONVOLUTIONS.fullmatch(name) or POOLS.fullmatch(name) for name in names):
        return True
    return all(any(len(flow.trace.shapes[made.inputs[1]]) >= 4 for made in branch) for branch in spatial)


def block_numbers(links: list[Link], kinds: list[str]) -> list[int]:
    """Return the block of each branch.

    Adds that one module call holds together are one block: a new block starts where two adds in a row share the
    fewest module calls. Where every add has a call of its own, or all stand in one, a block starts where the first
    kind that recurs comes again.
    """
    calls = [link.add.operation.calls for link in links]
    shared = [_n_shared(one, other) for one, other in itertools.pairwise(calls)]
    numbers = _split(shared, kinds)
    if len(set(numbers)) in (1, len(links)) and len(set(kinds)) > 1:
        return _by_kind(kinds)
    return numbers


def _split(shared: list[int], kinds: list[str]) -> list[int]:
    """Split at the fewest shared calls; split on where a group still repeats its first kind."""
    fewest = min(shared, default=0)
    groups: list[list[int]] = [[0]]
    for index, count in enumerate(shared, start=1):
        if count == fewest:
            groups.append([])
        groups[-1].append(index)
    numbers: list[int] = []
    for group in groups:
        inner = shared[group[0] : group[-1]]
        mine = [kinds[index] for index in group]
        is_split = len(inner) > 1 and len(set(inner)) > 1 and mine.count(mine[0]) > 1
        parts = _split(inner, mine) if is_split else [0] * len(group)
        first = numbers[-1] + 1 if numbers else 0
        numbers += [first + part for part in parts]
    return numbers


def _by_kind(kinds: list[str]) -> list[int]:
    leading = next((name for name in kinds if kinds.count(name) > 1), None)
    numbers, current = [], -1
    for index, name in enumerate(kinds):
        if index == 0 or name == leading:
            current += 1
        numbers.append(current)
    return numbers


def _n_shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


def placement(link: Link) -> str:
    """Return where the branch is normed: pre, post, double, reordered, none or unknown."""
    normed = [is_normed for _, is_normed, _ in link.entries]
    before, raw = any(normed), any(not is_normed for is_normed in normed)
    after, on_skip = bool(link.output_norms), bool(link.skip_norms)
    if before and raw:
        return "unknown"
    if before or after:
        # A norm of the stream itself behind such a branch, as at the end of a conformer's block, is in skip_norms.
        return "double" if before and after else "pre" if before else "reordered"
    return "post" if on_skip else "none"


def norm_values(link: Link) -> tuple[list[int], list[int], list[int]]:
    """Return the outputs of the norms on the branch's input, on its output and on the skip path."""
    inputs = [value for _, _, value in link.entries if value is not None]
    return list(dict.fromkeys(inputs)), list(dict.fromkeys(link.output_norms)), list(link.skip_norms)


def norm_kind(flow: Dataflow, values: list[int]) -> str:
    """Return the kind that all norms with these outputs share, mixed where they differ, none without any."""
    kinds = {_norm_kind(flow, value) for value in values}
    return "none" if not kinds else kinds.pop() if len(kinds) == 1 else "mixed"


def _norm_kind(flow: Dataflow, value: int) -> str:
    made = flow.producer[value]
    if made.name == NORM_MODULE:
        return flow.norms[flow.norm_of[value]].kind
    if made.name in NORMS:
        return NORMS[made.name]
    # Written out: divided by a function of itself; layernorm when its own mean was taken off before.
    steps = 0
    while steps < 8:
        parents = flow.light_parents.get(value, [])
        if len(parents) != 1:
            break
        if parents[0][1] == "center":
            return "layernorm"
        value, steps = parents[0][0], steps + 1
    return "rmsnorm"


def direct_norms(flow: Dataflow, link: Link, before: int) -> Iterator[str]:
    """Yield which norms (input, output, stream) stand right between two values that are recorded.

    Nothing else reads what output and stream norms read, and the branch reads its state through its input norms alone.

    Args:
        flow: the graph.
        link: the add and its branch.
        before: the state that the branch should read.
    """
    inputs, outputs, skips = norm_values(link)
    parents, dropout = flow.light_parents, flow.trace.dropout
    reads_all = all(is_normed for _, is_normed, _ in link.entries) and set(link.read) <= {before}
    if inputs and reads_all and all(parents.get(value) == [(before, "norm")] for value in inputs):
        yield "input"
    core = link.cores[0]
    is_alone = len(outputs) == len(link.cores) == 1 and len(flow.consumers[core]) == 1
    is_bare = core not in dropout and link.add.branch not in dropout and outputs[:1] == [link.add.branch]
    if is_alone and is_bare and parents.get(outputs[0]) == [(core, "norm")]:
        yield "output"
    total = link.add.result
    is_whole = skips[:1] == [link.state] and len(flow.consumers[total]) == 1 and link.state not in dropout
    if len(skips) == 1 and is_whole and parents.get(skips[0]) == [(total, "norm")]:
        yield "stream"


def output_bias(flow: Dataflow, link: Link, width: int) -> str | None:
    """Return the name of the bias that the branch's last projection adds, None without one or with several."""
    if len(link.cores) != 1:
        return None
    made = flow.producer.get(link.cores[0])
    if made is None or not is_heavy(made.name):
        return None
    names = [flow.trace.parameters[value] for value in made.inputs if _is_bias(flow, value, width)]
    return names[0] if len(set(names)) == 1 else None


def _is_bias(flow: Dataflow, value: int, width: int) -> bool:
    return value in flow.trace.parameters and flow.trace.shapes[value] == (width,)


def parameters(flow: Dataflow, link: Link) -> tuple[str, ...]:
    """Return the names of the parameters that the branch and the norms after its sum use."""
    found: dict[str, None] = {}
    names = flow.trace.parameters
    for operation in reversed([*link.operations, *beside(flow, link)]):
        for value in operation.inputs:
            if value in names:
                found[names[value]] = None
    inputs, outputs, skip = norm_values(link)
    for value in [*inputs, *outputs, *skip]:
        path = flow.norm_of.get(value)
        if path is not None:
            behaviour = flow.norms[path]
            found.update(dict.fromkeys(f"{path}.{name}" for name in (*behaviour.gains, *behaviour.biases)))
    return tuple(found)
