"""Tensors that are hard to reduce, and what their sums are in float64: the same question for every implementation."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

STATISTICS = (
    "mean", "std", "rms", "absmax", "kurtosis", "zero_share", "mean_share", "channel_absmean", "nonfinite"
)  # fmt: skip
EXACT = ("absmax", "zero_share", "nonfinite")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SCALES = (1e-30, 1e-4, 1.0, 300.0, 1e30)
SHAPES = {
    "odd width": (7, 33),
    "one element": (1,),
    "a scalar": (),
    "one row": (1, 257),
    "one column": (129, 1),
    "whole blocks": (64, 64),
    "three axes": (2, 3, 130),
    "wider than a block": (3, 5001),
    "worth threads": (600, 257),
}


def cases(largest: int = 10**9) -> Iterator[tuple[str, Tensor]]:
    """Yield a name and a tensor of at most ``largest`` elements; the same ones each time."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    for name, shape in SHAPES.items():
        tensor = normal(*shape) + 0.3
        for dtype in DTYPES:
            yield f"{name}, {dtype}", tensor.to(dtype)
    for scale in SCALES:
        for dtype in DTYPES:
            tensor = (normal(7, 33) + 0.3) * scale
            yield f"{scale}, {dtype}", (tensor.clamp(-65504, 65504) if dtype == torch.float16 else tensor).to(dtype)
    for dtype in DTYPES:
        tensor = normal(70, 130)
        tensor[tensor.abs() < 0.5] = 0.0
        yield f"zeros among values, {dtype}", tensor.to(dtype)
        yield f"a spread of sizes, {dtype}", (tensor * torch.logspace(-4, 4, 130, dtype=torch.float64)).to(dtype)
        yield f"not contiguous, {dtype}", normal(40, 30).to(dtype).T[::2]
        yield f"a slice of rows, {dtype}", normal(40, 30).to(dtype)[3:17]
        yield f"zeros alone, {dtype}", torch.zeros(9, 40, dtype=dtype)
        yield f"a constant, {dtype}", torch.full((70, 65), 3.7, dtype=dtype)
        for bad in (math.nan, math.inf, -math.inf):
            tensor = normal(70, 130)
            tensor[17, 3] = bad
            tensor[50, 100] = bad
            yield f"two values {bad}, {dtype}", tensor.to(dtype)
    yield "a constant with a tiny spread", (1000 + 1e-2 * normal(80, 130)).float()
    yield "one outlier", torch.where(torch.arange(9000.0).reshape(90, 100) == 777, 1e6, normal(90, 100)).float()
    yield "blocks of very different sizes", torch.cat([normal(40, 130) * 1e-20, normal(40, 130) * 1e20]).float()
    yield "subnormal", (normal(9, 40) * 1e-41).float()


def oracle(tensor: Tensor) -> dict[str, float]:
    """Return the statistics from numpy in float64, central moments taken about the mean."""
    x = tensor.double().numpy()
    if not x.size:
        return {**dict.fromkeys(STATISTICS, math.nan), "nonfinite": 0.0}
    if not np.isfinite(x).all():
        return {**dict.fromkeys(STATISTICS, math.nan), "nonfinite": float((~np.isfinite(x)).sum())}
    rows = x.reshape(-1, x.shape[-1]) if x.ndim else x.reshape(1, 1)
    energy = np.square(x).sum()
    variance = x.var() if x.var() > 1e-12 * energy / x.size else 0.0
    means = rows.shape[1] * np.square(rows.mean(1)).sum()
    channel = np.abs(rows.mean(0)).max()
    return {
        "mean": float(x.mean()),
        "std": math.sqrt(variance),
        "rms": math.sqrt(energy / x.size),
        "absmax": float(np.abs(x).max()),
        "kurtosis": float(((x - x.mean()) ** 4).mean() / variance**2)
        if variance > 1e-6 * energy / x.size
        else math.nan,
        "zero_share": float((x == 0).mean()),
        "mean_share": float(means / energy) if means > 0 else math.nan,
        "channel_absmean": float(channel) if channel > 0 else math.nan,
        "nonfinite": 0.0,
    }


def differences(found: dict[str, float], tensor: Tensor) -> list[str]:
    """Return, in words, where statistics are further from the oracle's than the tolerances that the docs state.

    rms 5e-7 relative; mean and channel_absmean 1e-6 of the largest magnitude at most, mean also 1e-6 of the rms; std 1e-6 of
    the rms; kurtosis 1e-5 relative; mean_share 2e-6; absmax, zero_share and nonfinite exact.
    """
    expected = oracle(tensor)
    size = expected["rms"]
    allowed = {
        "rms": 5e-7 * size,
        "mean": 1e-6 * size,
        "std": 1e-6 * size if expected["std"] > 1e-3 * size else 1e-3 * expected["std"],
        "kurtosis": 1e-5 * expected["kurtosis"],
        "mean_share": 2e-6,
        "channel_absmean": 1e-6 * expected["absmax"],
    } | dict.fromkeys(EXACT, 0.0)  # fmt: skip
    return [
        f"{name}: expected {expected[name]!r}, got {found[name]!r}"
        for name in STATISTICS
        if not (
            math.isnan(expected[name]) == math.isnan(found[name])
            and (math.isnan(expected[name]) or abs(found[name] - expected[name]) <= allowed[name])
        )
    ]
