"""Predict signal and gradient at initialisation in closed form, state by state.

The recursion follows position-averaged second moments (Xiong et al. 2020; Kedia et al. 2024, "Transformers get stable").
Assumed: weights independent with zero mean, biases zero, gains one, no dropout, attention uniform over the visible
tokens (true while its logits' std is small beside 1). With q the mean square of a state's coordinates, r the mean
cosine between two tokens and g the squared norm of the gradient summed over tokens:

    branch energy   attention  G_a kappa(r)            MLP  G_f          (times q where the input is not normed)
    pre-norm        q <- q + b                   g <- g (1 + B/q)
    post-norm       q <- 1, sum s = q + b        g <- (g/s) (1 + B)      skip gain of the gradient 1/sqrt(s)
    double          q <- q + 1                   g <- g (1 + B/(b q))
    reordered       q <- q + 1                   g <- g (1 + B/b)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Start:
    """What a prediction starts from.

    Attributes:
        placement: pre, post, double or reordered.
        n_blocks: blocks of an attention and an MLP branch.
        attention_gain: G_a = (d s_v^2)(d s_o^2), with s the std of the value and output projections.
        hidden_energy: d s_1^2, the variance of an MLP hidden unit at unit input.
        output_gain: f s_2^2, of the MLP's second projection.
        input_gain_backward: f s_1^2 d s_2^2, the product of both projections' backward gains.
        activation: relu or gelu.
        n_tokens: tokens in a sequence.
        energy: mean square of state 0.
        is_causal: whether a token sees only those before it.
    """

    placement: str
    n_blocks: int
    attention_gain: float
    hidden_energy: float
    output_gain: float
    input_gain_backward: float
    activation: str
    n_tokens: int
    energy: float
    is_causal: bool = True


@dataclass(frozen=True)
class _Add:
    """One add on the way up: what the way down needs."""

    is_attention: bool
    correlation: float
    energy: float
    branch: float
    sum: float


def predict(start: Start) -> pd.DataFrame:
    """Return the prediction: one row a state, depth 0 to 2 x n_blocks.

    Returns:
        Columns ``depth``, ``rms`` (of the state), ``gradient`` (RMS of the loss's gradient with respect to the state,
        over that of the last state), ``transmission`` (gain of the gradient along the skip path, last state to this).

    Raises:
        ValueError: the placement or the activation has no closed form here.
    """
    if start.placement not in ("pre", "post", "double", "reordered"):
        raise ValueError(f"no closed form for placement {start.placement!r}")
    energies, adds = _upward(start)
    gradients, gains = _downward(start, adds)
    transmission = [1.0]
    for gain in reversed(gains):
        transmission.append(transmission[-1] * gain)
    return pd.DataFrame(
        {
            "depth": range(len(energies)),
            "rms": [math.sqrt(q) for q in energies],
            "gradient": [math.sqrt(g / gradients[-1]) for g in gradients],
            "transmission": transmission[::-1],
        }
    )


def _upward(start: Start) -> tuple[list[float], list[_Add]]:
    kernel = _KERNELS.get(start.activation)
    if kernel is None:
        raise ValueError(f"no closed form for activation {start.activation!r}")
    q, c = start.energy, 0.0
    energies, adds = [q], []
    for index in range(2 * start.n_blocks):
        is_attention = index % 2 == 0
        r = min(max(c / q, 0.0), 1 - 1e-9)
        input_energy = 1.0 if start.placement in ("pre", "double") else q
        if is_attention:
            diagonal, off = _averaged(r, start)
            b, cb = start.attention_gain * input_energy * diagonal, start.attention_gain * input_energy * off
        else:
            v = start.hidden_energy * input_energy
            b, cb = start.output_gain * kernel(v, 1.0), start.output_gain * kernel(v, r)
        added, added_c = (1.0, cb / b) if start.placement in ("double", "reordered") else (b, cb)
        s, c = q + added, c + added_c
        adds.append(_Add(is_attention, r, q, b, s))
        if start.placement == "post":
            q, c = 1.0, c / s
        else:
            q = s
        energies.append(q)
    return energies, adds


def _downward(start: Start, adds: list[_Add]) -> tuple[list[float], list[float]]:
    slope = _SLOPES[start.activation]
    g, cg = 1.0, 0.0
    gradients, gains = [g], []
    for add in reversed(adds):
        if start.placement == "post":
            g, cg = g / add.sum, cg / add.sum
        arriving, arriving_c = g, cg
        if start.placement in ("double", "reordered"):
            arriving, arriving_c = g / add.branch, cg / add.branch
        rg = min(max(arriving_c / arriving, 0.0), 1.0)
        if add.is_attention:
            diagonal, off = _averaged_back(rg, start)
            branch, branch_c = start.attention_gain * arriving * diagonal, start.attention_gain * arriving * off
        else:
            v = start.hidden_energy * (1.0 if start.placement in ("pre", "double") else add.energy)
            branch = start.input_gain_backward * slope(v, 1.0) * arriving
            branch_c = start.input_gain_backward * slope(v, add.correlation) * arriving_c
        normed = 1 / add.energy if start.placement in ("pre", "double") else 1.0
        gains.append(1 / math.sqrt(add.sum) if start.placement == "post" else 1.0)
        g, cg = g + branch * normed, cg + branch_c * normed
        gradients.append(g)
    return gradients[::-1], gains[::-1]


def _averaged(r: float, start: Start) -> tuple[float, float]:
    """Return the second moment of a mean over visible tokens, and between two such means, for token cosine r."""
    n = start.n_tokens
    if n == 1:
        return 1.0, 1.0
    if not start.is_causal:
        return (1 + (n - 1) * r) / n, (1 + (n - 1) * r) / n
    h = _harmonic(n)
    return r + (1 - r) * h / n, r + (1 - r) * 2 * (n - h) / (n * (n - 1))


def _averaged_back(r: float, start: Start) -> tuple[float, float]:
    """The same for the transposed average, through which gradients come back."""
    n = start.n_tokens
    if n == 1:
        return 1.0, 1.0
    if not start.is_causal:
        return (1 + (n - 1) * r) / n, (1 + (n - 1) * r) / n
    h = _harmonic(n)
    return (1 - r) * h / n + r * (2 - h / n), ((1 - r) * (n - h) + r * (n * n - 2 * n + h)) / (n * (n - 1))


def _harmonic(n: int) -> float:
    return sum(1 / k for k in range(1, n + 1))


def _relu(v: float, r: float) -> float:
    """E[relu(x) relu(y)], x and y Gaussian with variance v and correlation r (Cho and Saul 2009, eq. 6)."""
    return v * (math.sqrt(max(0.0, 1 - r * r)) + r * (math.pi - math.acos(min(1.0, r)))) / (2 * math.pi)


def _relu_slope(v: float, r: float) -> float:
    del v
    return (math.pi - math.acos(min(1.0, r))) / (2 * math.pi)


def _gelu(v: float, r: float) -> float:
    """E[gelu(x) gelu(y)] (Kedia et al. 2024, moments of GELU)."""
    a = v / (1 + v)
    last = (v * (1 - r * r) + 1 + r * r) / ((1 + v) * math.sqrt((1 + v) ** 2 - (r * v) ** 2))
    return v / 4 * (r + 2 / math.pi * r * math.asin(r * a) + 2 * v / math.pi * last)


def _gelu_slope(v: float, r: float) -> float:
    """E[gelu'(x) gelu'(y)] = (1/v) d/dr E[gelu(x) gelu(y)] (Price's theorem), by a one-sided difference."""
    step = 1e-5
    return (_gelu(v, r) - _gelu(v, r - step)) / (step * v)


_KERNELS: dict[str, Callable[[float, float], float]] = {"relu": _relu, "gelu": _gelu}
_SLOPES: dict[str, Callable[[float, float], float]] = {"relu": _relu_slope, "gelu": _gelu_slope}
