"""Second moments of activations and of their slopes for Gaussian inputs, in closed form.

With x and y Gaussian, zero mean, variance v and correlation r (arrays of any one shape): ``MOMENTS[name](v, r)`` is
E[f(x) f(y)] and ``SLOPES[name](v, r)`` is E[f'(x) f'(y)] = (1/v) d/dr E[f(x) f(y)] (Price's theorem).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Moment = Callable[[float, np.ndarray], np.ndarray]


def relu(v: float, r: np.ndarray) -> np.ndarray:
    """Return E[f(x) f(y)] for ReLU (Cho and Saul 2009, eq. 6)."""
    whole: np.ndarray = v * (np.sqrt(1 - r * r) + r * (np.pi - np.arccos(r))) / (2 * np.pi)
    return whole


def relu_slope(v: float, r: np.ndarray) -> np.ndarray:
    """Return E[f'(x) f'(y)] for ReLU, the same at every variance."""
    del v
    whole: np.ndarray = (np.pi - np.arccos(r)) / (2 * np.pi)
    return whole


def gelu(v: float, r: np.ndarray) -> np.ndarray:
    """Return E[f(x) f(y)] for GELU (Kedia et al. 2024)."""
    a = r * v / (1 + v)
    top, root = v * (1 - r * r) + 1 + r * r, np.sqrt((1 + v) ** 2 - (r * v) ** 2)
    whole: np.ndarray = v / 4 * (r + 2 / np.pi * r * np.arcsin(a) + 2 * v / np.pi * top / ((1 + v) * root))
    return whole


def gelu_slope(v: float, r: np.ndarray) -> np.ndarray:
    """Return E[f'(x) f'(y)] for GELU, the derivative of ``gelu`` by r over v."""
    a = r * v / (1 + v)
    top, root = v * (1 - r * r) + 1 + r * r, np.sqrt((1 + v) ** 2 - (r * v) ** 2)
    steepness = (2 * r * (1 - v) + top * r * v * v / root**2) / root
    whole: np.ndarray = (
        1 + 2 / np.pi * (np.arcsin(a) + a / np.sqrt(1 - a * a)) + 2 * v / np.pi * steepness / (1 + v)
    ) / 4
    return whole


MOMENTS: dict[str, Moment] = {"relu": relu, "gelu": gelu}
SLOPES: dict[str, Moment] = {"relu": relu_slope, "gelu": gelu_slope}
