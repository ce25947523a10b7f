"""Examine a model as it is: discovery, one forward and backward, and the active checks, in one recording."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .amplification import amplification
from .anatomy import LEDGER_TOLERANCE, Anatomy, Point
from .attribution.check_up import attributed
from .batches import Batch, arguments, call, describe
from .bf16 import bf16_error, bf16_points
from .conservation import conservation
from .discovery import discover
from .dropped import dropped
from .errors import BatchError
from .log import Log
from .logit_scale import logit_scale
from .loss_gradient import loss_gradient
from .losses import LossFunction, default_loss
from .manifest import manifest
from .norms_alone import norm_points, norms_alone
from .origin import first_nonfinite, origin_row
from .parameters import ParameterTaps
from .pending import Pending
from .recording import Recording
from .relations import RelationTaps
from .repeatability import repeatability, without_spoiled
from .rotation import rotation
from .running import place_of
from .schema import TABLES
from .shifts import rounded, shift_points, shifts
from .silent_heads import silent_heads
from .skip_path import skip_path
from .taps import Taps
from .terms import term_conservation
from .together import seen_in
from .untouched import untouched
from .visibility import visibility, visible_points
from .weight_rank import weight_rank
from .wrappers import bare
from .write_scale import write_points, write_scale


def examine(
    model: nn.Module,
    batch: Batch,
    loss_fn: LossFunction | None = None,
    *,
    seed: int = 0,
    label: str = "",
    attribution: bool = False,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Recording:
    """Check a model once, at init or from a checkpoint: how signal and gradient flow through it on one batch.

    Dropout is off. The model is left bit-identical: weights, gradients, buffers, flags, random state.

    Args:
        model: any PyTorch transformer.
        batch: what its training loop passes: a tensor, a tuple of arguments, or a mapping of keywords.
        loss_fn: ``loss_fn(output, batch)`` returns a scalar; by default the output's own ``loss``, or next-token
            cross-entropy where the output holds logits for a batch of token ids.
        seed: of the noise in the active checks.
        label: a name for the model.
        attribution: say as well which blocks matter to the loss (``usefulness``), what each branch contributes to it
            (``output_ledger``) and which samples the gradients came from (``gradient_shares``).
        on_progress: called, while it is attributed, with (passes done, passes in all, what it costs).

    Returns:
        A recording in memory, of one step, numbered 0.

    Raises:
        BatchError: the model rejects the batch, or no loss can be made of its output.
        DiscoveryError: the model has no residual stream.
    """
    model = bare(model)
    anatomy = discover(model, batch)
    log = Log(None)
    head = manifest(model, every=1, label=label)
    with untouched(model, training=False):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = None
        taps, parameters = (
            Taps(model, anatomy, _fail, RelationTaps(model, anatomy, _run)),
            ParameterTaps(model, anatomy, None),
        )
        loss = _forward_backward(model, batch, loss_fn, taps)
        parameters.read_alone()
        pending = Pending(anatomy, taps.layout, parameters)
        numbers = parameters.take()
        pending.add(0, taps.take(), numbers)
        pending.write(log.append)
        hidden = [*taps.layout.not_measured, *anatomy.problems, *parameters.not_measured]
        if taps.relations is not None:
            counted, told = taps.relations.take()
            taps.relations.hold(0, counted)
            hidden += [told] if told else []
            taps.relations.write(log.append)
        norm = None if numbers is None or numbers.gradient_norm is None else float(numbers.gradient_norm)
        identities = [
            *_ledger(anatomy),
            *silent_heads(model, anatomy),
            *weight_rank(model, anatomy),
            *_checked(model, batch, anatomy, loss_fn, seed),
        ]
        if not math.isfinite(loss) or (norm is not None and not math.isfinite(norm)):
            identities += _origin(model, batch, anatomy, loss_fn)
    step = {"step": 0, "loss": loss, "gradient_norm": norm, "micro_batches": 1, "is_sampled": True}
    for name, rows in (("steps", [step]), ("identities", identities)):
        log.append(name, {column: [row.get(column) for row in rows] for column in TABLES[name]})
    head["gradients"] = "of one backward, before any optimizer"
    head["status"] = "closed"
    head["not_measured"] = hidden
    recording = Recording(head, anatomy, log.memory())
    return attributed(recording, model, batch, loss_fn, on_progress) if attribution else recording


def _checked(
    model: nn.Module, batch: Batch, anatomy: Anatomy, loss_fn: LossFunction | None, seed: int
) -> list[dict[str, Any]]:
    """Return the rows of the active checks."""

    def loss_of(output: Any) -> Tensor:
        return _loss_of(output, batch, loss_fn)

    asked = (
        *(visible_points(anatomy), shift_points(anatomy), bf16_points(anatomy)),
        *(write_points(model, anatomy), norm_points(model, anatomy)),
    )
    still = seen_in(model, batch, set[Point]().union(*asked))
    rows = [
        *repeatability(model, batch, anatomy, still),
        *skip_path(model, batch, anatomy, loss_of),
        *amplification(model, batch, anatomy, seed=seed),
        *conservation(model, batch, anatomy, loss_of, seed=seed),
        *term_conservation(model, batch, anatomy, seed=seed),
        *visibility(model, batch, anatomy, still, seed=seed),
        *loss_gradient(model, batch, anatomy, loss_of),
        *logit_scale(model, batch, anatomy),
        *rotation(model, batch, anatomy),
        *write_scale(model, anatomy, still),
        *shifts(anatomy, still),
        *rounded(anatomy, still),
        *norms_alone(model, anatomy, still, seed=seed),
        *bf16_error(model, batch, anatomy, still),
        *dropped(model, batch, anatomy),
    ]
    return without_spoiled(rows)


def _origin(model: nn.Module, batch: Batch, anatomy: Anatomy, loss_fn: LossFunction | None) -> list[dict[str, Any]]:
    """Run forward and backward once more, watching every operation."""
    for parameter in model.parameters():
        parameter.grad = None

    def run() -> Tensor:
        with torch.enable_grad():
            loss = _loss_of(call(model, batch), batch, loss_fn)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss

    found = first_nonfinite(model, run)
    return [] if found is None else [origin_row(found, anatomy)]


def _run(where: str, action: Callable[[], None]) -> None:  # noqa: ARG001
    action()


def _fail(where: str, error: Exception) -> None:  # noqa: ARG001
    raise error


def _forward_backward(model: nn.Module, batch: Batch, loss_fn: LossFunction | None, taps: Taps) -> float:
    taps.attach()
    try:
        taps.begin(*arguments(batch))
        with torch.enable_grad():
            output = call(model, batch)
            taps.end()
            loss = _loss_of(output, batch, loss_fn)
            if not loss.requires_grad:
                raise BatchError(
                    "Expected a loss that depends on parameters that require gradients, got one that depends on none. "
                    "Unfreeze parameters, or return the loss undetached."
                )
            loss.backward()  # type: ignore[no-untyped-call]
    finally:
        taps.detach()
    return float(loss.detach())


def _loss_of(output: Any, batch: Batch, loss_fn: LossFunction | None) -> Tensor:
    return default_loss(output, batch) if loss_fn is None else _loss(loss_fn, output, batch)


def _loss(loss_fn: LossFunction, output: Any, batch: Batch) -> Tensor:
    expected = "Expected loss_fn(output, batch) to return a scalar Tensor, got"
    advice = "Its first argument is what the model returned."
    try:
        loss: object = loss_fn(output, batch)
    except Exception as error:
        raise BatchError(f"{expected} {type(error).__name__}: {str(error)[:300]}. {advice}") from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise BatchError(f"{expected} {describe(loss)}. {advice}")
    return loss.reshape(())


def _ledger(anatomy: Anatomy) -> list[dict[str, Any]]:
    return [
        {
            "check": "ledger",
            **place_of(branch),
            "observed": branch.ledger_error,
            "expected": 0.0,
            "tolerance": LEDGER_TOLERANCE,
            "note": "relative error of sum = scale * skip + write, each term seen by a hook of its own",
        }
        for branch in anatomy.branches
        if branch.ledger_error is not None
    ]
