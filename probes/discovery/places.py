"""Say at which call of a forward each residual add, each product of queries and keys and each soft cap happens.

A call is named by the innermost module call around it, the name of torch's function, and its number among the calls of that
name there: what a function mode can count as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.batches import Batch
from rheoscope.probes.errors import LabError
from rheoscope.probes.untouched import untouched
from torch import nn

from .branches import attention, queries_and_keys
from .dataflow import Add, Dataflow
from .heads import images
from .links import Link, Stream
from .recorder import Operation
from .residual import streams
from .trace import trace
from .vocabulary import is_heavy


@dataclass(frozen=True)
class CallPlace:
    """One call of a forward: the ``order``-th of its ``name`` within the ``nth`` call of the module at ``path``, from 0."""

    path: str
    nth: int
    name: str
    order: int


@dataclass(frozen=True)
class AddPlace:
    """Where a branch is added to the stream.

    Attributes:
        first: the call that reads the skip operand.
        last: the call that gives the sum; another than ``first`` where a parallel block adds one branch after the other.
        skip: which of the tensors given to ``first`` is the skip operand.
        write: which of the tensors given to ``last`` is the branch's write.
        is_plain: whether nothing but views and a scale stands between the state and the skip operand.
        reads_elsewhere: whether the branch reads other states of its stream than the one before it.
    """

    first: CallPlace
    last: CallPlace
    skip: int
    write: int
    is_plain: bool
    reads_elsewhere: bool


@dataclass(frozen=True)
class AttentionPlace:
    """Where queries meet keys.

    Attributes:
        call: the call that multiplies them.
        query: which of its tensors holds the queries.
        key: which of its tensors holds the keys.
        is_transposed: whether the keys' features are on the axis before the last.
        query_factor: what queries were multiplied by since their projection.
        norms: paths of the modules that norm queries and keys.
        is_in_modules: whether all their norms stand in modules of their own; true without any.
        cap: the tanh that bounds the logits, None without one.
    """

    call: CallPlace
    query: int
    key: int
    is_transposed: bool
    query_factor: float
    norms: tuple[str, ...]
    is_in_modules: bool
    cap: CallPlace | None


@dataclass(frozen=True)
class BranchPlaces:
    """The calls of one branch that a function mode sees; None where it does not.

    Attributes:
        add: the residual add.
        attention: queries times keys.
        fused_biases: names of the biases that torch's fused attention takes.
    """

    add: AddPlace | None
    attention: AttentionPlace | None
    fused_biases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Places:
    """The calls of a whole model: of its branches in the order of its anatomy, and those that give state 0 of its stacks."""

    branches: tuple[BranchPlaces, ...]
    starts: tuple[CallPlace | None, ...]


def places(model: nn.Module, batch: Batch, anatomy: Anatomy) -> Places:
    """Return the places of everything in ``anatomy``; one traced forward.

    Raises:
        LabError: torch's functions do not show the adds that discovery found: they run inside compiled code.
    """
    with untouched(model, training=False):
        flow = Dataflow(trace(model, batch))
        found = streams(flow)
    n_links = sum(len(stream.links) for stream in found)
    if n_links != anatomy.n_branches:
        raise LabError(
            f"Expected the {anatomy.n_branches} residual adds of the anatomy among the calls of torch's functions, got "
            f"{n_links}: the rest runs inside compiled or scripted code. Pass the model uncompiled."
        )
    counted = _Counted(flow)
    branches = [
        BranchPlaces(_add(flow, counted, link, state), _attention(flow, counted, link), _fused_biases(flow, link))
        for stream in found
        for link, state in zip(stream.links, _before(stream), strict=True)
    ]
    return Places(tuple(branches), tuple(_start(flow, counted, stream.start) for stream in found))


def _before(stream: Stream) -> list[int]:
    return [stream.start, *(link.state for link in stream.links[:-1])]


def _start(flow: Dataflow, counted: _Counted, value: int) -> CallPlace | None:
    """Return the call that gives a state 0; None behind a dropout, which changes it once more in training."""
    made = flow.producer.get(value)
    return None if made is None or value in flow.trace.dropout else counted.place(made)


class _Counted:
    """Numbers the calls of a trace."""

    def __init__(self, flow: Dataflow) -> None:
        self._calls = flow.trace.calls
        self._order: dict[int, int] = {}
        seen: dict[tuple[int, str], int] = {}
        for operation in flow.trace.operations:
            key = (operation.calls[-1] if operation.calls else 0, operation.name)
            self._order[id(operation)] = seen.get(key, 0)
            seen[key] = seen.get(key, 0) + 1

    def place(self, operation: Operation) -> CallPlace | None:
        """Return where an operation is called; None for one that is a part of a call."""
        order = self._order.get(id(operation))
        if order is None or not operation.calls:
            return None
        inside = self._calls[operation.calls[-1]]
        return CallPlace(inside.path, inside.nth, operation.name, order)


def _add(flow: Dataflow, counted: _Counted, link: Link, before: int) -> AddPlace | None:
    adds: list[Add] = [flow.adds[link.add.result]]
    while adds[0].skip != link.add.skip and adds[0].skip in flow.adds:
        adds.insert(0, flow.adds[adds[0].skip])
    first, last = counted.place(adds[0].operation), counted.place(adds[-1].operation)
    if first is None or last is None or adds[0].skip != link.add.skip:
        return None
    return AddPlace(
        first,
        last,
        adds[0].operation.inputs.index(link.add.skip),
        adds[-1].operation.inputs.index(adds[-1].branch),
        link.skip_kinds <= {"view", "scale", "norm"},
        not set(link.read) <= {before},
    )


def _attention(flow: Dataflow, counted: _Counted, link: Link) -> AttentionPlace | None:
    attends = attention(flow, link.operations)
    call = None if attends is None else counted.place(attends)
    if attends is None or call is None or "multi_head" in attends.name or attends.name == "einsum":
        return None
    operands = queries_and_keys(attends)
    if len(operands) < 2:
        return None
    query, key = operands
    steps = [*images(flow, query), *images(flow, key)]
    norms = dict.fromkeys(value for value, kind in steps if kind == "norm")
    holders = [_holder(flow, value, {query, key, *(value for value, _ in steps)}) for value in norms]
    caps = [made for made in link.operations if made.name == "tanh" and made.outputs[0] > attends.outputs[0]]
    return AttentionPlace(
        call,
        attends.inputs.index(query),
        attends.inputs.index(key),
        "scaled_dot_product" not in attends.name and "flex" not in attends.name,
        _factor(flow, query),
        tuple(dict.fromkeys(path for path in holders if path)),
        all(holders),
        counted.place(caps[-1]) if caps else None,
    )


def _holder(flow: Dataflow, value: int, images_: set[int]) -> str:
    """Return the module that norms queries or keys and does nothing else; "" where the norm is written out beside other work.

    Heads are views: the norm's input may have been seen first in another shape, so that it is not among the stream's norms.
    """
    if value in flow.norm_of:
        return flow.norm_of[value]
    trace = flow.trace
    for index in reversed(flow.producer[value].calls):
        inside = trace.calls[index]
        made = {value for _, value in inside.outputs}
        names = [operation.name for operation in trace.operations[inside.first : inside.last]]
        if len(made) == 1 == len(inside.inputs) and made <= images_ and not any(map(is_heavy, names)):
            return inside.path
    return ""


def _factor(flow: Dataflow, query: int) -> float:
    """Return the product of the plain numbers that queries are multiplied by on their way to the keys."""
    result = 1.0
    for value, kind in images(flow, query):
        made = flow.producer[value]
        if kind == "scale" and len(made.inputs) == 1 and made.numbers:
            result *= 1 / made.numbers[0] if "div" in made.name else made.numbers[0]
    return result


def _fused_biases(flow: Dataflow, link: Link) -> tuple[str, ...]:
    """Return the biases that torch's fused attention takes."""
    attends = attention(flow, link.operations)
    if attends is None or "multi_head" not in attends.name:
        return ()
    names = flow.trace.parameters
    return tuple(names[v] for v in attends.inputs if v in names and len(flow.trace.shapes[v]) == 1)
