"""Take the biases of projections and norms away, or set them to 0 for good where a module's code needs them."""

from __future__ import annotations

import torch
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.batches import Batch, call
from rheoscope.probes.discovery.places import Places
from rheoscope.probes.errors import BatchError, LabError
from rheoscope.probes.plain_norm import PlainNorm
from rheoscope.probes.untouched import untouched
from rheoscope.probes.wrappers import parameters_of
from torch import nn


def biases_of(model: nn.Module, anatomy: Anatomy, places: Places) -> list[nn.Parameter]:
    """Return the biases of all branches' projections and of all norms; the head keeps its own.

    Raises:
        LabError: there are none.
    """
    names = {p.bias for branch in anatomy.branches for p in branch.projections if p.bias is not None}
    names |= {branch.output_bias for branch in anatomy.branches if branch.output_bias is not None}
    names |= {name for found in places.branches for name in found.fused_biases} | set(anatomy.norm_biases)
    found = [p for name, p in parameters_of(model) if name in names]
    if not found:
        raise LabError("Expected biases for biases=False, got none in any projection or norm. Leave it out.")
    return found


def take_away(model: nn.Module, biases: list[nn.Parameter], batch: Batch) -> int:
    """Remove ``biases`` from the model where its code runs without, else zero and freeze them; return how many were frozen.

    Modules of one class are tried together, with a forward on ``batch``.
    """
    wanted = {id(p) for p in biases}
    by_class: dict[type, list[tuple[nn.Module, str, nn.Parameter]]] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None and (id(p) in wanted or (isinstance(module, PlainNorm) and p is module.bias)):
                by_class.setdefault(type(module), []).append((module, name, p))
    n_frozen = 0
    for held in by_class.values():
        for module, name, _ in held:
            module._parameters[name] = None
        if _runs(model, batch):
            continue
        for module, name, p in held:
            module._parameters[name] = p
            with torch.no_grad():
                p.zero_()
            p.requires_grad_(False)
            n_frozen += 1
    return n_frozen


def _runs(model: nn.Module, batch: Batch) -> bool:
    """Return whether the model runs, in evaluation and in training: its code may differ."""
    for training in (False, True):
        with untouched(model, training=training), torch.no_grad():
            try:
                call(model, batch)
            except BatchError:
                return False
    return True
