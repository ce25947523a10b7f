"""Say which samples and tokens a block's gradient came from: exact shares of its squared norm.

The gradient g of a block is a sum over tokens, of what the loss sends back through each of them; the share of token t is
``<g_t, g> / <g, g>``, and the shares add up to 1. Nothing is stored a token: ``<g_t, g>`` is the product of the loss's gradient
at the last state of token t with how that state moves when the block's weights move along g, one forward of forward-mode
differentiation a block.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.autograd.forward_ad as forward_mode
from rheoscope.probes.anatomy import Anatomy, Point
from rheoscope.probes.batches import Batch, call
from rheoscope.probes.discovery import discover
from rheoscope.probes.errors import BatchError, ProbeError
from rheoscope.probes.hooked import Hooked
from rheoscope.probes.losses import LossFunction
from rheoscope.probes.wrappers import bare, own_name
from torch import Tensor, nn

from .conditions import LossOf, at_rest, loss_of, widened
from .cost import Meter, OnProgress
from .examples import batch_size
from .knocked_tokens import knocked_tokens
from .parts import block_name, parameter_parts
from .path_integral import LIMIT
from .result import Attribution, Row
from .weights import WithWeights

MOST_POSITIONS = 64  # rows a block: the tokens with the largest shares
SIGNED = (
    "A share is signed: a sample below 0 pulls the block the other way. It is of this batch's gradient, not of what the block "
    "learned."
)


@dataclass(frozen=True)
class _Shares:
    """What one block's gradient is made of.

    Attributes:
        norm: of the gradient.
        values: shape (sample, position), or (sample, 1) where positions are not known; they add up to 1.
        has_positions: whether positions are known.
    """

    norm: float
    values: Tensor
    has_positions: bool


def gradient_shares(
    model: nn.Module,
    batch: Batch,
    block: int | None = None,
    *,
    stack: int = 0,
    token_knock_out: bool = False,
    loss_fn: LossFunction | None = None,
    anatomy: Anatomy | None = None,
    step: int | None = None,
    on_progress: OnProgress | None = None,
) -> Attribution:
    """Say which samples and tokens the gradient of a block came from.

    Rows of method ``gradient_share`` give each sample's share, and, with ``position``, those of single tokens: the token at whose
    place the loss sent the gradient back, in a language model the one before what was to be predicted. Shares of a block add up
    to 1 up to ``error``, which is large where the loss reaches the block past the last state (a router's own loss). Samples and
    positions are named by their index, never by their content. ``ranking`` orders blocks by the norm of their gradient.

    Args:
        model: the model; it is left bit-identical.
        batch: the batch, as the training loop passes it.
        block: which block; None for all.
        stack: which stack the block is in.
        token_knock_out: take out, of the sample with the largest share, one token after the other (its first state is replaced by
            the mean), and record the change of the norm of the block's gradient: a pass a token, for one block.
        loss_fn: ``loss_fn(output, batch)``; by default the output's own loss, or next-token cross-entropy.
        anatomy: what ``discover`` found, to skip discovery.
        step: of which training step, for the rows.
        on_progress: called with (passes done, passes in all, what it costs).

    Raises:
        ProbeError: there is no such block, it has no weights of its own, or the last state is not seen.
        BatchError: the model rejects the batch, or no loss can be made of its output.
        DiscoveryError: the model has no residual stream.
    """
    model = bare(model)
    found = discover(model, batch) if anatomy is None else anatomy
    owned = _owned(model, found, None if block is None else (stack, block))
    last = found.stacks[-1].branches[-1].state
    if last is None:
        raise ProbeError(
            "Expected a stream whose last state a hook sees, got one without. Ask for the anatomy's problems: discover(model, "
            "batch).problems."
        )
    n_bytes = 8 * max(sum(p.numel() for p in model.parameters()), 1)
    with at_rest(model):
        wide = widened(batch)
        of = loss_of(wide, loss_fn)
        meter = Meter("shares of gradients", 1 + len(owned), n_bytes, on_progress)
        weights = dict(model.named_parameters())
        names = list(dict.fromkeys(name for members in owned.values() for name in members))
        loss, state, sent, gradients = meter.run(partial(_backward, model, wide, of, last, [weights[n] for n in names]))
        of_name = {name: g for name, g in zip(names, gradients, strict=True) if g is not None}
        shares = {
            place: meter.run(
                partial(_shares, model, wide, last, state, sent, {n: of_name[n] for n in members if n in of_name})
            )
            for place, members in owned.items()
        }
        del loss
        knocked = None
        if token_knock_out:
            place = max(shares, key=lambda at: shares[at].norm)
            sample = int(shares[place].values.sum(1).argmax())
            knocked = place, sample, knocked_tokens(model, wide, found, loss_fn, owned[place], sample, meter)
    return _told(shares, knocked, step, meter)


def _owned(model: nn.Module, anatomy: Anatomy, wanted: tuple[int, int] | None) -> dict[tuple[int, int], list[str]]:
    """Return the names of the floating parameters of every block, or of the one that is wanted.

    Raises:
        ProbeError: there are none.
    """
    named = {name: own_name(name) for name, p in model.named_parameters() if p.is_floating_point()}
    parts = parameter_parts(anatomy, named.values())
    found: dict[tuple[int, int], list[str]] = {}
    for name, own in named.items():
        place = parts[own][:2]
        if place[1] >= 0 and wanted in (None, place):
            found.setdefault(place, []).append(name)
    if not found:
        asked = "a block" if wanted is None else f"block {wanted[1]} of stack {wanted[0]}"
        raise ProbeError(
            f"Expected {asked} with weights of its own, got none: the model has {anatomy.n_blocks} blocks, numbered from 0, and "
            "blocks that share all their weights have no gradients of their own. Pass another block."
        )
    return dict(sorted(found.items()))


def _backward(
    model: nn.Module, batch: Batch, of: LossOf, last: Point, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor | None, Sequence[Tensor | None]]:
    """Return the loss, the last state, the loss's gradient there and with respect to the weights; the graph is kept."""
    seen: list[Tensor] = []
    hooks = Hooked(model, [last], lambda _: seen.append)
    try:
        with torch.enable_grad():
            loss = of(call(model, batch))
    finally:
        hooks.remove()
    sent, *gradients = torch.autograd.grad(loss, [seen[0], *weights], retain_graph=True, allow_unused=True)
    return loss, seen[0], sent, gradients


def _shares(
    model: nn.Module, batch: Batch, last: Point, state: Tensor, sent: Tensor | None, gradients: dict[str, Tensor]
) -> _Shares:
    """Return the shares of one block, by forward-mode differentiation, or sample by sample where that is not known."""
    squared = sum((float(g.double().square().sum()) for g in gradients.values()), 0.0)
    if sent is None or squared == 0:
        return _Shares(0.0, torch.zeros(state.shape[0], 1), has_positions=False)
    try:
        moved = _moved(model, batch, last, gradients)
    except (RuntimeError, BatchError):
        # An operation of somebody's own, that knows its backward alone.
        return _Shares(squared**0.5, _by_sample(model, state, sent, gradients) / squared, has_positions=False)
    product = _by_position((sent.double() * moved.double()).sum(-1), batch_size(batch)).cpu()
    return _Shares(squared**0.5, product / squared, has_positions=product.shape[1] > 1)


def _by_position(products: Tensor, size: int) -> Tensor:
    """Return what is known of every token in shape (sample, position), whichever way round the stream holds them."""
    if products.dim() == 2 and products.shape[0] != size and products.shape[1] == size:
        return products.T
    is_flat = products.dim() == 1 and size > 0 and products.shape[0] % size == 0
    return products.reshape(size if is_flat else products.shape[0], -1)


def _moved(model: nn.Module, batch: Batch, last: Point, gradients: dict[str, Tensor]) -> Tensor:
    """Return how the last state moves when the weights move along their gradients."""
    weights = dict(model.named_parameters())
    seen: list[Tensor] = []
    hooks = Hooked(model, [last], lambda _: seen.append)
    try:
        # The first use of forward mode makes torch warn of its own torch.jit.
        with torch.no_grad(), warnings.catch_warnings(action="ignore"), forward_mode.dual_level():
            duals = {
                name: forward_mode.make_dual(weights[name].detach(), g)  # type: ignore[no-untyped-call]
                for name, g in gradients.items()
            }
            call(WithWeights(model, duals), batch)
            tangent: Tensor | None = forward_mode.unpack_dual(seen[0]).tangent  # type: ignore[no-untyped-call]
    finally:
        hooks.remove()
    return torch.zeros_like(seen[0]) if tangent is None else tangent


def _by_sample(model: nn.Module, state: Tensor, sent: Tensor, gradients: dict[str, Tensor]) -> Tensor:
    """Return the product of each sample's gradient with the block's, shape (sample, 1): a backward a sample."""
    named = dict(model.named_parameters())
    weights, found = [named[name] for name in gradients], []
    for row in range(state.shape[0]):
        own = torch.zeros_like(sent)
        own[row] = sent[row]
        parts = torch.autograd.grad(state, weights, own, retain_graph=True, allow_unused=True)
        products = [
            (p.double() * g.double()).sum() for p, g in zip(parts, gradients.values(), strict=True) if p is not None
        ]
        found.append(float(sum(products)))
    return torch.tensor(found).double()[:, None]


def _told(
    shares: dict[tuple[int, int], _Shares],
    knocked: tuple[tuple[int, int], int, Tensor] | None,
    step: int | None,
    meter: Meter,
) -> Attribution:
    rows: list[Row] = []
    errors = []
    for place, found in shares.items():
        at = {"step": step, "stack": place[0], "block": place[1]}
        off = abs(float(found.values.sum()) - 1) if found.norm else None
        errors += [] if off is None else [off]
        rows.append({"method": "gradient_norm", **at, "value": found.norm})
        share = {"method": "gradient_share", **at, "total": 1.0, "error": off}
        rows += [{**share, "sample": row, "value": value} for row, value in enumerate(found.values.sum(1).tolist())]
        rows += [{**share, **token} for token in _tokens(found)]
    if knocked is not None:
        place, sample, changes = knocked
        at = {"step": step, "stack": place[0], "block": place[1], "sample": sample}
        rows += [
            {"method": "token_knock_out", **at, "position": position, "value": value}
            for position, value in enumerate(changes.tolist())
        ]
    error = max(errors, default=None)
    sound = error is not None and error <= LIMIT
    ranking = tuple(sorted(shares, key=lambda at: -shares[at].norm)) if sound else ()
    return Attribution(
        "gradient", tuple(rows), 1.0, error, ranking, tuple(_sentences(shares, ranking, error)), meter.spent
    )


def _tokens(found: _Shares) -> list[dict[str, Any]]:
    """Return sample, position and share of the tokens whose share is largest, whatever its sign."""
    if not found.has_positions:
        return []
    flat, width = found.values.flatten(), found.values.shape[1]
    chosen = flat.abs().topk(min(MOST_POSITIONS, flat.numel())).indices.tolist()
    return [{"sample": each // width, "position": each % width, "value": float(flat[each])} for each in sorted(chosen)]


def _sentences(
    shares: dict[tuple[int, int], _Shares], ranking: tuple[tuple[int, int], ...], error: float | None
) -> list[str]:
    if not ranking:
        why = "no gradient reaches a block" if error is None else f"the shares miss 1 by {error:.1%}, above {LIMIT:.0%}"
        return [f"No sample is named: {why}. A loss that reaches blocks past the last state cannot be shared out."]
    first = ranking[0]
    of_samples = shares[first].values.sum(1)
    order = of_samples.argsort(descending=True).tolist()
    worst = ", ".join(f"sample {row} ({float(of_samples[row]):.0%})" for row in order[:3])
    told = [
        f"The largest gradient is that of {block_name(first, ranking)}, of norm {shares[first].norm:.4g}; most of its square "
        f"came from {worst}, of {len(order)}; the shares add up to 1 within {error:.1e}."
    ]
    if not all(found.has_positions for found in shares.values()):
        told.append("Tokens are not told apart: the model has operations that know no forward-mode derivative.")
    return [*told, SIGNED]
