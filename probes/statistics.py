"""Reduce a tensor to power sums on its own device; turn the sums into statistics on the host.

Power sums add up over micro-batches and ranks; they are accumulated in float64, so that a norm is exact to about
1e-12 and a float32, bfloat16 or float16 tensor never overflows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .schema import STATISTICS

# Columns of a row of sums: count, x, x^2, x^3, x^4, largest |x|, zeros, non-finite elements.
N_SUMS = 8
COUNT, FIRST, SECOND, THIRD, FOURTH, ABSMAX, ZEROS, NONFINITE = range(N_SUMS)

# Variance over mean square. A difference of float64 moments is rounding at about 1e-16: at _NO_SPREAD the variance
# has four digits left, and at _THIN_SPREAD the fourth central moment has.
_NO_SPREAD, _THIN_SPREAD = 1e-12, 1e-6


def power_sums(tensor: Tensor) -> Tensor:
    """Return the sums of ``tensor``, shape (8,), float64, on its device; nothing is copied to the host."""
    values = tensor.detach().reshape(-1)
    wide = values.to(torch.float32 if values.device.type == "mps" else torch.float64)
    n = values.numel()
    if n == 0:
        return torch.zeros(N_SUMS, dtype=wide.dtype, device=wide.device)
    square = wide * wide
    # One-byte floats know few operations.
    low, high = torch.aminmax(values if values.element_size() > 1 else wide)
    counted = torch.stack([n - torch.count_nonzero(wide), n - torch.isfinite(wide).sum()]).to(wide.dtype)
    peak = torch.maximum(-low, high).to(wide.dtype)
    count = torch.full((), n, dtype=wide.dtype, device=wide.device)
    powers = [wide.sum(), square.sum(), torch.dot(square, wide), torch.dot(square, square)]
    return torch.cat([torch.stack([count, *powers, peak]), counted])


def statistics(sums: Tensor) -> dict[str, Tensor]:
    """Return the named statistics of rows of sums.

    With n elements, mean m and variance v (divided by n): std = sqrt v, rms = sqrt(mean x^2), kurtosis =
    mean (x - m)^4 / v^2 (3 for a Gaussian), zero_share = zeros / n. Without spread (v = 0 but for rounding) std is 0,
    and kurtosis is NaN. A row whose tensor holds a value that is not finite has no other statistics but ``nonfinite``,
    the number of such elements: they are NaN. So are all of an empty tensor.

    Args:
        sums: shape (rows, 8), on the CPU.

    Returns:
        For each statistic a tensor of shape (rows,).
    """
    n = sums[:, COUNT]
    m, s2, s3, s4 = (sums[:, column] / n for column in (FIRST, SECOND, THIRD, FOURTH))
    variance = s2 - m * m
    variance = torch.where(variance <= _NO_SPREAD * s2, 0.0, variance)
    fourth = s4 - 4 * m * s3 + 6 * m * m * s2 - 3 * m**4
    spread = torch.where(variance > _THIN_SPREAD * s2, variance, torch.nan)
    values = {
        "mean": m,
        "std": variance.sqrt(),
        "rms": s2.sqrt(),
        "absmax": sums[:, ABSMAX],
        "kurtosis": fourth / (spread * spread),
        "zero_share": sums[:, ZEROS] / n,
    }
    is_known = (n > 0) & (sums[:, NONFINITE] == 0)
    known = {name: torch.where(is_known, value, torch.nan) for name, value in values.items()}
    return {name: known.get(name, sums[:, NONFINITE]) for name in STATISTICS}
