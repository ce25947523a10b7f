"""Add to a certified anatomy what behaviour tells beyond the stream: positions, causality, ties, dropout."""

from __future__ import annotations

from dataclasses import replace

from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.batches import Batch
from torch import nn

from .dataflow import Dataflow
from .heads import heads, is_rotated
from .hidden import hidden, projections
from .links import Stream
from .outlets import outlet
from .plan import Plan
from .positions import causal_stacks, shift_test
from .recorder import Operation
from .vocabulary import LINEAR, is_heavy


def detailed(
    model: nn.Module, batch: Batch, flow: Dataflow, plan: Plan, found: list[Stream], anatomy: Anatomy
) -> Anatomy:
    """Return the anatomy with its details filled in.

    Call it inside ``untouched(model, training=False)``: the tests call the model with changed batches.
    """
    causal = causal_stacks(model, batch, anatomy)
    stacks = []
    for stack, stream, is_causal in zip(anatomy.stacks, found, causal, strict=True):
        branches = []
        for branch, link in zip(stack.branches, stream.links, strict=True):
            inside, is_part = hidden(flow, plan, link, branch.kind)
            branches.append(
                replace(
                    branch,
                    projections=projections(flow, link),
                    attention=heads(flow, link),
                    hidden=inside,
                    partial=(*branch.partial, "hidden") if is_part else branch.partial,
                )
            )
        way_out = outlet(flow, plan, stream, stack.width)
        stacks.append(replace(stack, branches=tuple(branches), is_causal=is_causal, outlet=way_out))
    tested = shift_test(model, batch)
    return replace(
        anatomy,
        stacks=tuple(stacks),
        ties_embeddings=_ties(flow, anatomy),
        positions=_positions(flow, found, anatomy, tested.pattern),
        is_shift_invariant=tested.is_shift_invariant,
        dropout=tuple(sorted(set(flow.trace.dropout.values()))),
    )


def _ties(flow: Dataflow, anatomy: Anatomy) -> bool | None:
    """Return whether the table that tokens are looked up in is also the matrix that gives the logits."""
    tables = {made.inputs[0] for made in flow.operations if made.name == "embedding" and made.inputs}
    tables |= {v for made in flow.operations if made.name == "embedding" for v in made.inputs} & set(
        flow.trace.parameters
    )
    if not tables or not anatomy.vocabulary:
        return None
    heads_ = _last_products(flow)
    matrices = {value for made in heads_ for value in made.inputs if value in flow.trace.parameters}
    images = {v for made in heads_ for value in made.inputs for v in _sources(flow, value)}
    return bool(tables & (matrices | images)) if heads_ else None


def _last_products(flow: Dataflow) -> list[Operation]:
    """Return the matrix products that the model's results come from, through light operations."""
    waiting = [value for _, value in flow.trace.calls[0].outputs]
    seen, found = set(waiting), list[Operation]()
    while waiting and len(seen) < 500:
        made = flow.producer.get(waiting.pop())
        if made is not None and made.name in LINEAR:
            found.append(made)
        elif made is not None and not is_heavy(made.name):
            fresh = [value for value in made.inputs if value not in seen]
            seen.update(fresh)
            waiting += fresh
    return found


def _sources(flow: Dataflow, value: int) -> tuple[int, ...]:
    made = flow.producer.get(value)
    return made.inputs if made is not None and flow.is_constant(value) else ()


def _positions(flow: Dataflow, found: list[Stream], anatomy: Anatomy, pattern: str) -> str:
    """Name the scheme: what the shift test showed, and what queries and state 0 are made of."""
    rotated = any(is_rotated(flow, link) for stream in found for link in stream.links)
    if rotated:
        return "rotary"
    if pattern == "constant":
        return "none"
    if pattern in ("linear", "toeplitz"):
        return "alibi" if pattern == "linear" else "relative"
    if pattern == "absolute":
        return "learned" if _has_learned_places(flow, anatomy) else "sinusoidal"
    return "unknown"


def _has_learned_places(flow: Dataflow, anatomy: Anatomy) -> bool:
    """Return whether a trainable table is read at indices that do not depend on the batch, for state 0."""
    varying = {value for _, value in flow.trace.calls[0].inputs}
    for made in flow.operations:
        if not varying.isdisjoint(made.inputs):
            varying.update(made.outputs)
    wide = {stack.width for stack in anatomy.stacks}
    trained = {name for stack in anatomy.stacks for name in stack.start_parameters}
    for made in flow.operations:
        tables = [v for v in made.inputs if flow.trace.parameters.get(v) in trained and len(flow.trace.shapes[v]) >= 2]
        if tables and flow.trace.shapes[tables[0]][-1] in wide and varying.isdisjoint(made.inputs):
            return True
    # A table that is added as it stands.
    return any(
        made.name in ("add", "iadd") and flow.trace.parameters.get(value) in trained
        for made in flow.operations
        for value in made.inputs
    )
