"""Discover a model's anatomy on one batch, and prove it there."""

from __future__ import annotations

from dataclasses import replace

import torch
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.batches import Batch, arguments, call, tensors
from rheoscope.probes.errors import BatchError, DiscoveryError
from rheoscope.probes.gathered import gathered
from rheoscope.probes.untouched import untouched
from rheoscope.probes.wrappers import bare
from torch import nn

from .assembly import assembled
from .branches import is_convolutional
from .certificate import captured, outcome
from .dataflow import Dataflow
from .details import detailed
from .links import Stream
from .plan import Plan
from .residual import streams
from .trace import Trace, trace
from .verdict import certified


def discover(model: nn.Module, batch: Batch) -> Anatomy:
    """Find every residual stream of ``model``, its branches and norms, and certify each add with plain hooks.

    A few forwards without gradients in eval mode: one traced, one with hooks only, some with a changed batch to see
    what depends on what. The model's buffers, training flags, random state and gradients are left as they were.

    Args:
        model: any PyTorch module.
        batch: what its training loop passes: a tensor, a tuple of arguments, or a mapping of keywords.

    Raises:
        BatchError: the model rejects the batch.
        DiscoveryError: its dataflow holds no residual stream, or its parameters are on the meta device.
    """
    model = bare(model)
    with gathered(model), untouched(model, training=False):
        _check(model, batch)
        flow, found = _traced(model, batch)
        if not found:
            raise DiscoveryError(
                f"Expected a model whose blocks add what they compute to a running sum, got {type(model).__name__}, in "
                f"whose {len(flow.operations)} traced operations no such sum recurs. Pass the transformer itself, with "
                "a batch that runs all of it."
            )
        if is_convolutional(flow, [link for stream in found for link in stream.links]):
            raise DiscoveryError(
                f"Expected a transformer, got {type(model).__name__}, whose residual branches mix positions by "
                "convolution alone: a convolutional net. Pass the transformer itself."
            )
        plan = Plan(flow)
        anatomy, entries = assembled(model, flow, plan, found)
        seen = captured(model, batch, entries)
        anatomy = detailed(model, batch, flow, plan, found, anatomy)
    anatomy = certified(anatomy, [outcome(entry, seen) for entry in entries])
    return _with_notes(anatomy, model)


def _check(model: nn.Module, batch: Batch) -> None:
    if any(parameter.is_meta for parameter in model.parameters()):
        raise DiscoveryError(
            "Expected parameters that hold values, got parameters on the meta device. Materialise the model first."
        )
    own = {parameter.device for parameter in model.parameters()}
    positional, keywords = arguments(batch)
    given = {tensor.device for _, tensor in tensors((positional, keywords))}
    if own and given and not own & given:
        raise BatchError(
            f"Expected a batch on the model's device ({_listed(own)}), got one on {_listed(given)}. "
            "Move the batch there first."
        )


def _traced(model: nn.Module, batch: Batch) -> tuple[Dataflow, list[Stream]]:
    """Trace by torch's functions; where they hide something or show no stream, by the dispatcher as well."""
    try:
        first: Trace | None = trace(model, batch)
    except BatchError:
        call(model, batch)  # raises again when the model, not the trace, is at fault
        first = None
    flow = Dataflow(first) if first is not None else None
    found = streams(flow) if flow is not None else []
    if flow is not None and found and first is not None and not first.n_opaque:
        return flow, found
    try:
        deeper = Dataflow(trace(model, batch, by="dispatcher"))
        streams_below = streams(deeper)
    except (BatchError, RuntimeError):
        if flow is None:
            raise
        return flow, found
    if flow is None or _n_adds(streams_below) > _n_adds(found):
        return deeper, streams_below
    return flow, found


def _n_adds(found: list[Stream]) -> int:
    return sum(len(stream.links) for stream in found)


def _with_notes(anatomy: Anatomy, model: nn.Module) -> Anatomy:
    notes = list(anatomy.notes)
    integers = {
        str(tensor.dtype).removeprefix("torch.")
        for tensor in model.parameters()
        if not tensor.is_floating_point() and tensor.dtype != torch.bool and not tensor.is_complex()
    }
    if integers:
        notes.append(
            f"Some weights are quantised ({', '.join(sorted(integers))}): their gradients and updates are not measured."
        )
    return replace(anatomy, notes=tuple(notes))


def _listed(devices: set[torch.device]) -> str:
    return ", ".join(sorted(map(str, devices)))
