"""Run every norm alone on what it reads: how large its epsilon is, and whether its backward is that of its forward.

A norm gives ``y = g (x - m) r + b`` with ``r = 1 / sqrt(v + epsilon)``, v the mean square of what is left of x when m, its own
mean in a LayerNorm and 0 in an RMSNorm, is taken away. So its backward is known from its input alone:
``dx = r (u - mean(u) - z mean(u z))`` with ``u = g dy`` and ``z = (x - m) r``, the first mean in a LayerNorm alone (Ba et al.
2016; Zhang and Sennrich 2019). A fused kernel that saves another r, or forgets a mean, is seen here to rounding, and hardly in
the gradient of a whole branch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Point
from .running import place_of
from .wrappers import modules_of

TOKENS = 64  # of what a norm reads: a gain and a bias a channel are fitted to them
SMALL = 1e-5  # mean square at which epsilon is read: its usual size
FIT = 1e-4  # of the output: what the closed form may leave of it
ROUNDING = 3e-6  # of what a norm gives: several times float32's, in the part of it that differs between tokens
VARIES = 1e-4  # of what a norm gives: less difference between tokens tells nothing of a gain
TOLERANCE = 1e-3  # of the gradient: float32 leaves 1e-6
MATTERS = 2e-3  # of mean square and epsilon: a change of epsilon by it changes what the norm gives by a thousandth


@dataclass(frozen=True)
class _Form:
    """The closed form that one norm follows: whether the mean goes, what is left, factor, gain, epsilon, misfit, what may be."""

    has_mean: bool
    left: Tensor
    factor: Tensor
    gain: Tensor
    epsilon: float
    miss: float
    allowed: float

    def backward(self, gradient: Tensor, n: int) -> Tensor:
        """Return the gradient at the first ``n`` inputs, (token, width), for one at their outputs."""
        u, z = self.gain * gradient, (self.left * self.factor)[:n]
        found = u - z * (u * z).mean(-1, keepdim=True)
        return self.factor[:n] * (found - u.mean(-1, keepdim=True) if self.has_mean else found)


def norm_points(model: nn.Module, anatomy: Anatomy) -> set[Point]:
    """Return where ``norms_alone`` looks."""
    modules = modules_of(model)
    return {_input(path) for path, _ in _places(anatomy) if path in modules}


def norms_alone(
    model: nn.Module, anatomy: Anatomy, seen: Mapping[Point, Tensor], *, seed: int = 0
) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``norm_form``, ``norm_epsilon`` and ``norm_backward`` of norms around the stream.

    ``norm_form`` observes what the closed form that fits best leaves of what the norm gives. ``norm_epsilon`` observes the
    epsilon that the norm shows; its tolerance is the change of it that would change what the norm gives by a thousandth.
    ``norm_backward`` observes the relative error of the gradient that the norm's own backward gives against the closed form in
    float64. No row of a norm that reads less than float32, and the first alone of one that follows no closed form. Two forwards
    and a backward of every norm on a few tokens. Call it inside ``untouched(model, training=False)``.

    Args:
        model: the model.
        anatomy: what ``discover`` found on it.
        seen: what one forward showed at ``norm_points``.
        seed: of the gradient that is sent back.
    """
    modules = modules_of(model)
    places = {path: place for path, place in _places(anatomy) if path in modules}
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for path, place in places.items():
        read = seen.get(_input(path))
        tokens = None if read is None else _tokens(read)
        if tokens is not None:
            rows += [row | place | {"module_path": path} for row in _measured(modules[path], tokens, generator)]
    return rows


def _input(path: str) -> Point:
    return Point(path, "input", (0,))


def _places(anatomy: Anatomy) -> Iterator[tuple[str, dict[str, Any]]]:
    for branch in anatomy.branches:
        for path in (*branch.input_norms, *branch.output_norms, *branch.skip_norms):
            yield path, place_of(branch)
    for stack in anatomy.stacks:
        if stack.outlet is not None and stack.outlet.norm_path is not None:
            yield stack.outlet.norm_path, {"stack": stack.index, "block": -1, "branch": "output", "depth": -1}


def _tokens(read: Tensor) -> Tensor | None:
    """Return some tokens that are not all 0, (token, width)."""
    rows = read.reshape(-1, read.shape[-1])
    usable = (rows.square().mean(-1) > 0) & torch.isfinite(rows).all(-1)
    rows = rows[usable]
    if read.dtype not in (torch.float32, torch.float64) or len(rows) < TOKENS // 4:
        return None
    return rows[:: max(1, len(rows) // TOKENS)][:TOKENS].clone()


def _measured(norm: nn.Module, tokens: Tensor, generator: torch.Generator) -> list[dict[str, Any]]:
    sizes = tokens.square().mean(-1, keepdim=True).sqrt()
    large, small = tokens / sizes, tokens / sizes * SMALL**0.5
    try:
        with torch.no_grad():
            outputs = norm(torch.stack([large, -large, small, -small, tokens, tokens + sizes]))
        leaf = tokens.clone().requires_grad_()
        with torch.enable_grad():
            output = norm(leaf.unsqueeze(0))
        if not isinstance(output, Tensor) or output.numel() != tokens.numel() or outputs.numel() != 6 * tokens.numel():
            return []
        sent = torch.randn(output.shape, generator=generator).to(output)
        arrived = torch.autograd.grad(output, leaf, sent, allow_unused=True)[0] if output.requires_grad else None
    except Exception:  # noqa: BLE001 - it needs more than what is normed
        return []
    outputs = outputs.double().reshape(6, *tokens.shape)
    # A norm is odd but for its bias, which the difference takes away.
    odd = (outputs[0] - outputs[1]) / 2, (outputs[2] - outputs[3]) / 2
    # Tokens without a mean, as other norms give them, do not tell what becomes of a mean: they are asked with one as well.
    read, given = torch.cat([tokens, tokens + sizes]).double(), outputs[4:].flatten(0, 1)
    forms = [_form(read, given, *odd, has_mean=has_mean) for has_mean in (True, False)]
    form = min((form for form in forms if form is not None), key=lambda form: form.miss, default=None)
    if form is None:
        return []
    note = "what the closed form of a norm leaves of what it gives, over that"
    told = {"check": "norm_form", "observed": form.miss, "expected": 0.0, "tolerance": form.allowed, "note": note}
    if not form.miss <= FIT:
        return [told]
    wanted = form.backward(sent.double().reshape(tokens.shape), len(tokens))
    arrived = torch.zeros_like(leaf) if arrived is None else arrived
    error = float((arrived.double() - wanted).norm() / wanted.norm().clamp_min(1e-300))
    square = float(form.left[: len(tokens)].square().mean())
    return [
        told,
        {
            "check": "norm_epsilon",
            "observed": form.epsilon,
            "tolerance": MATTERS * (square + form.epsilon),
            "note": "epsilon, from what the norm gives of large and of small tokens",
        },
        {
            "check": "norm_backward",
            "observed": error,
            "expected": 0.0,
            "tolerance": TOLERANCE,
            "note": "relative error of the norm's own backward against that of its closed form in float64",
        },
    ]


def _form(read: Tensor, given: Tensor, large: Tensor, small: Tensor, *, has_mean: bool) -> _Form | None:
    """Return the closed form that fits best, with or without the mean taken away; None where none does."""
    left = read - read.mean(-1, keepdim=True) if has_mean else read
    square = left.square().mean(-1, keepdim=True)
    share = (square / read.square().mean(-1, keepdim=True))[: len(large)]
    energy = (large * large).sum(-1, keepdim=True)
    ratio = ((small * large).sum(-1, keepdim=True) / energy).square()
    # ratio = t (s + e) / (t s + e), s the share of a token of size 1 that is left, t = SMALL.
    each = SMALL * share * (1 - ratio) / (ratio - SMALL)
    epsilon = float(each.median())
    if not bool((square > 0).all()) or not epsilon > -SMALL * 1e-3:
        return None
    epsilon = max(epsilon, 0.0)
    factor = (square + epsilon).rsqrt()
    z = left * factor
    centred, rest = z - z.mean(0), given - given.mean(0)
    varies = min(float(rest.norm()) / max(float(given.norm()), 1e-300), float(centred.norm()) / float(z.norm()))
    if not varies > VARIES:
        return None  # tokens that are all alike tell no gain
    gain = (centred * rest).sum(0) / centred.square().sum(0).clamp_min(1e-300)
    miss = float((rest - gain * centred).norm() / rest.norm().clamp_min(1e-300))
    return _Form(has_mean, left, factor, gain, epsilon, miss, max(FIT, ROUNDING / varies))
