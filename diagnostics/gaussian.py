"""Second moments of activations and of their slopes for Gaussian inputs.

With x and y Gaussian, zero mean, variances v_x and v_y, correlation r: ``MOMENTS[name](v, r)`` is E[f(x) f(y)] and
``SLOPES[name](v, r)`` is E[f'(x) f'(y)]. ``v`` is one variance, or one a token; ``r`` is then (token, token). ReLU and GELU have
closed forms; the others are sums over Hermite polynomials,

    E[f(x) f(y)] = sum_n c_n(v_x) c_n(v_y) r^n,        c_n(v) = E[f(sqrt(v) z) h_n(z)]

with h_n orthonormal under the Gaussian (Mehler's formula; Daniely et al. 2016). What the terms left out hold is given to the
last power, so that the moment of one unit with itself is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Variance = float | np.ndarray
Moment = Callable[[Variance, np.ndarray], np.ndarray]
Function = Callable[[np.ndarray], np.ndarray]

N_TERMS, N_NODES = 48, 400
_EDGE = 10.0  # standard deviations: the midpoint rule is exact to rounding for smooth functions of a Gaussian


def _pairs(v: Variance) -> np.ndarray:
    """Return the geometric mean of two tokens' variances, (token, token), or the one variance."""
    std = np.sqrt(np.asarray(v, dtype=float))
    whole: np.ndarray = std * std if std.ndim == 0 else std[:, None] * std[None, :]
    return whole


def relu(v: Variance, r: np.ndarray) -> np.ndarray:
    """Return E[f(x) f(y)] for ReLU (Cho and Saul 2009, eq. 6)."""
    whole: np.ndarray = _pairs(v) * (np.sqrt(1 - r * r) + r * (np.pi - np.arccos(r))) / (2 * np.pi)
    return whole


def relu_slope(v: Variance, r: np.ndarray) -> np.ndarray:
    """Return E[f'(x) f'(y)] for ReLU, the same at every variance."""
    del v
    whole: np.ndarray = (np.pi - np.arccos(r)) / (2 * np.pi)
    return whole


def relu_squared(v: Variance, r: np.ndarray) -> np.ndarray:
    """Return E[f(x) f(y)] for the square of ReLU (Cho and Saul 2009, eq. 7)."""
    angle = np.pi - np.arccos(r)
    whole: np.ndarray = _pairs(v) ** 2 * (3 * r * np.sqrt(1 - r * r) + angle * (1 + 2 * r * r)) / (2 * np.pi)
    return whole


def relu_squared_slope(v: Variance, r: np.ndarray) -> np.ndarray:
    """Return E[f'(x) f'(y)] for the square of ReLU, whose slope is twice ReLU."""
    return 4 * relu(v, r)


def gelu(v: Variance, r: np.ndarray) -> np.ndarray:
    """Return E[f(x) f(y)] for GELU (Kedia et al. 2024), two variances taken at their geometric mean."""
    v = _pairs(v)
    a = r * v / (1 + v)
    top, root = v * (1 - r * r) + 1 + r * r, np.sqrt((1 + v) ** 2 - (r * v) ** 2)
    whole: np.ndarray = v / 4 * (r + 2 / np.pi * r * np.arcsin(a) + 2 * v / np.pi * top / ((1 + v) * root))
    return whole


def gelu_slope(v: Variance, r: np.ndarray) -> np.ndarray:
    """Return E[f'(x) f'(y)] for GELU, the derivative of ``gelu`` by r over v."""
    v = _pairs(v)
    a = r * v / (1 + v)
    top, root = v * (1 - r * r) + 1 + r * r, np.sqrt((1 + v) ** 2 - (r * v) ** 2)
    steepness = (2 * r * (1 - v) + top * r * v * v / root**2) / root
    whole: np.ndarray = (
        1 + 2 / np.pi * (np.arcsin(a) + a / np.sqrt(1 - a * a)) + 2 * v / np.pi * steepness / (1 + v)
    ) / 4
    return whole


def identity(v: Variance, r: np.ndarray) -> np.ndarray:
    """Return E[x y]."""
    whole: np.ndarray = _pairs(v) * r
    return whole


def by_hermite(function: Function) -> Moment:
    """Return the moment of an elementwise ``function``."""
    nodes = (np.arange(N_NODES) + 0.5) * (2 * _EDGE / N_NODES) - _EDGE
    weights = np.exp(-(nodes**2) / 2) / np.sqrt(2 * np.pi) * (2 * _EDGE / N_NODES)
    polynomials = _hermite(nodes) * weights[:, None]

    def moment(v: Variance, r: np.ndarray) -> np.ndarray:
        values = function(np.sqrt(np.atleast_1d(np.asarray(v, dtype=float)))[:, None] * nodes)
        coefficients = values @ polynomials  # (tokens or 1, terms)
        rest = np.sqrt(np.maximum(values**2 @ weights - (coefficients**2).sum(1), 0.0))
        is_one = np.ndim(v) == 0 or len(coefficients) == 1
        whole, power = np.zeros_like(r, dtype=float), np.ones_like(r, dtype=float)
        for column in (*coefficients.T, rest):
            whole = whole + power * (column[0] ** 2 if is_one else np.outer(column, column))
            power = power * r
        return whole

    return moment


def _hermite(nodes: np.ndarray) -> np.ndarray:
    """Return the orthonormal Hermite polynomials at the nodes, (nodes, terms)."""
    found = [np.ones_like(nodes), nodes]
    for n in range(1, N_TERMS - 1):
        found.append((nodes * found[n] - np.sqrt(n) * found[n - 1]) / np.sqrt(n + 1))
    return np.stack(found, axis=1)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    whole: np.ndarray = (1 + np.tanh(z / 2)) / 2
    return whole


def _silu_slope(z: np.ndarray) -> np.ndarray:
    whole: np.ndarray = _sigmoid(z) * (1 + z * (1 - _sigmoid(z)))
    return whole


def _one(v: Variance, r: np.ndarray) -> np.ndarray:
    del v
    return np.ones_like(r, dtype=float)


MOMENTS: dict[str, Moment] = {
    "relu": relu,
    "relu_squared": relu_squared,
    "gelu": gelu,
    "silu": by_hermite(lambda z: z * _sigmoid(z)),
    "sigmoid": by_hermite(_sigmoid),
    "tanh": by_hermite(np.tanh),
    "identity": identity,
}
SLOPES: dict[str, Moment] = {
    "relu": relu_slope,
    "relu_squared": relu_squared_slope,
    "gelu": gelu_slope,
    "silu": by_hermite(_silu_slope),
    "sigmoid": by_hermite(lambda z: _sigmoid(z) * (1 - _sigmoid(z))),
    "tanh": by_hermite(lambda z: 1 - np.tanh(z) ** 2),
    "identity": _one,
}
