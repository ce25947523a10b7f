"""Reduce a tensor to power sums on its own device; turn the sums into statistics on the host.

Power sums add up over micro-batches and ranks; they are accumulated in float64, so that a norm is exact to about
1e-12 and never overflows where the tensor is finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .schema import STATISTICS

# Columns of a row of sums: count, x, x^2, x^3, x^4, largest |x|, zeros, non-finite elements.
N_SUMS = 8
COUNT, FIRST, SECOND, THIRD, FOURTH, ABSMAX, ZEROS, NONFINITE = range(N_SUMS)


def power_sums(tensor: Tensor) -> Tensor:
    """Return the sums of ``tensor``, shape (8,), float64, on its device; nothing is copied to the host."""
    values = tensor.detach().reshape(-1)
    wide = values.to(torch.float32 if values.device.type == "mps" else torch.float64)
    square = wide * wide
    low, high = torch.aminmax(values)
    count = torch.full((), values.numel(), dtype=wide.dtype, device=wide.device)
    sums = [count, wide.sum(), square.sum(), torch.dot(square, wide), torch.dot(square, square)]
    counts = [values.numel() - torch.count_nonzero(values), values.numel() - torch.isfinite(values).sum()]
    return torch.stack([*sums, torch.maximum(-low, high).to(wide.dtype), *(item.to(wide.dtype) for item in counts)])


def statistics(sums: Tensor) -> dict[str, Tensor]:
    """Return the named statistics of rows of sums.

    With n elements, mean m and variance v (divided by n): std = sqrt v, rms = sqrt(mean x^2), kurtosis =
    mean (x - m)^4 / v^2 (3 for a Gaussian), zero_share = zeros / n. A row whose tensor holds a value that is not
    finite has no other statistics but ``nonfinite``, the number of such elements: they are NaN.

    Args:
        sums: shape (rows, 8), on the CPU.

    Returns:
        For each statistic a tensor of shape (rows,).
    """
    n = sums[:, COUNT]
    m, s2, s3, s4 = (sums[:, column] / n for column in (FIRST, SECOND, THIRD, FOURTH))
    variance = (s2 - m * m).clamp_min(0)
    fourth = s4 - 4 * m * s3 + 6 * m * m * s2 - 3 * m**4
    # Below this the difference of moments is rounding, not spread.
    spread = torch.where(variance > 1e-12 * s2, variance, torch.nan)
    values = {
        "mean": m,
        "std": variance.sqrt(),
        "rms": s2.sqrt(),
        "absmax": sums[:, ABSMAX],
        "kurtosis": fourth / (spread * spread),
        "zero_share": sums[:, ZEROS] / n,
        "nonfinite": sums[:, NONFINITE],
    }
    return {name: values[name] for name in STATISTICS}
