"""Measure what bf16 costs every branch: how far its write is off when it alone runs under autocast, from the float32 state."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Branch, Point
from .batches import Batch
from .interventions import Change
from .repeatability import written
from .running import place_of
from .together import ends_of, seen_in

NOTE = "RMS of the write's error under bf16 autocast, the state before it being float32's, over the RMS of the "


def bf16_points(anatomy: Anatomy) -> set[Point]:
    """Return where ``bf16_error`` looks."""
    return {point for branch, before, added in ends_of(anatomy) for point in (before, added, *written(branch))}


def bf16_error(model: nn.Module, batch: Batch, anatomy: Anatomy, exact: Mapping[Point, Tensor]) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``bf16_error`` and ``bf16_state_error`` of every branch whose write is seen.

    ``observed`` is the error of the write over the write, and over the sum behind it. Every state is put back before its branch
    reads it, so that each error is of one branch: one forward for all of them. bf16 holds 8 bits, so that one rounding errs by
    1.7e-3 on average; a branch adds some of them up. One row without a value and with the reason where the model fails under
    autocast; none of a model that is not in float32, or runs under autocast already. Call it inside
    ``untouched(model, training=False)``.

    Args:
        model: the model.
        batch: one batch.
        anatomy: what ``discover`` found on it.
        exact: what a forward in float32 showed at ``bf16_points``.
    """
    kinds = {parameter.device.type for parameter in model.parameters()}
    is_float32 = all(p.dtype == torch.float32 for p in model.parameters() if p.is_floating_point())
    if len(kinds) != 1 or not is_float32 or torch.is_autocast_enabled(kind := kinds.pop()):
        return []
    ends = [(branch, before, added) for branch, before, added in ends_of(anatomy) if written(branch)]
    befores = {before for _, before, _ in ends}
    writes = {point for branch, _, _ in ends for point in written(branch)}
    changes: dict[Point, Change] = {at: partial(_as, exact[at]) for at in befores if at in exact}
    try:
        # That a norm's weight stays in float32 is told by torch, and is what autocast means.
        with warnings.catch_warnings(action="ignore"), torch.autocast(kind, torch.bfloat16, cache_enabled=False):
            rough = seen_in(model, batch, writes, changes)
    except Exception as error:  # noqa: BLE001 - what cannot run in bf16 is no fault of a model in float32
        return [
            {"check": "bf16_error", "note": f"not measured: under bf16 autocast {type(error).__name__}: {error!s:.200}"}
        ]
    rows = []
    for branch, before, added in ends:
        mine = written(branch)
        if before in exact and added in exact and all(point in exact and point in rough for point in mine):
            rows += _rows(branch, [exact[at] for at in mine], [rough[at] for at in mine], exact[added])
    return rows


def _as(value: Tensor, tensor: Tensor) -> Tensor:
    return value.reshape(tensor.shape)


def _rows(branch: Branch, exact: list[Tensor], rough: list[Tensor], total: Tensor) -> list[dict[str, Any]]:
    if any(one.shape != other.shape or not one.is_floating_point() for one, other in zip(exact, rough, strict=True)):
        return []
    error = sum((other.double() - one.double() for one, other in zip(exact, rough, strict=True)), torch.tensor(0.0))
    write = sum((one.double() for one in exact), torch.tensor(0.0))
    off = float(error.square().mean().sqrt())
    found = []
    for check, whole, name in (("bf16_error", write, "write"), ("bf16_state_error", total, "sum")):
        size = float(whole.double().square().mean().sqrt())
        if size > 0:
            found.append({"check": check, **place_of(branch), "observed": off / size, "note": NOTE + name})
    return found
