"""Reduce a tensor with torch's own operations: on any device, in float64 (float32 where a device has no other).

Only operations that run at the speed of memory are used (facts measured on CPUs: var, std, norm(inf) and pow are 10 to 80
times slower than a sum).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import N_SUMS, WANTS_CHANNELS, WANTS_ROW_MEANS


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the widest float that ``device`` computes with."""
    return torch.float32 if device.type == "mps" else torch.float64


def moments(tensor: Tensor, flags: int = 0) -> Tensor:
    """Return the ten sums of ``tensor``, shape (10,), on its device; nothing is copied to the host."""
    values = tensor.detach()
    wide = values.to(wide_dtype(values.device))
    n = values.numel()
    if n == 0:
        return torch.zeros(N_SUMS, dtype=wide.dtype, device=wide.device)
    flat = wide.reshape(-1)
    square = flat * flat
    # One-byte floats know few operations.
    low, high = torch.aminmax(values if values.element_size() > 1 else wide)
    counted = torch.stack([n - torch.count_nonzero(flat), n - torch.isfinite(flat).sum()]).to(wide.dtype)
    count = torch.full((), n, dtype=wide.dtype, device=wide.device)
    powers = [flat.sum(), square.sum(), torch.dot(square, flat), torch.dot(square, square)]
    peak = torch.maximum(-low, high).to(wide.dtype)
    return torch.cat([torch.stack([count, *powers, peak]), counted, _means(wide, flags)])


def pair(tensor: Tensor, partner: Tensor, factor: float) -> Tensor:
    """Return the energy of ``tensor - factor * partner`` and its product with ``factor * partner``, shape (2,)."""
    wide = wide_dtype(tensor.device)
    skip = factor * partner.detach().to(tensor.device, wide).reshape(-1)
    rest = tensor.detach().to(wide).reshape(-1) - skip
    return torch.stack([torch.dot(rest, rest), torch.dot(skip, rest)])


def _means(wide: Tensor, flags: int) -> Tensor:
    found = torch.zeros(2, dtype=wide.dtype, device=wide.device)
    if flags:
        rows = wide.reshape(-1, wide.shape[-1]) if wide.dim() else wide.reshape(1, 1)
        if flags & WANTS_ROW_MEANS:
            means = rows.mean(1)
            found[0] = rows.shape[1] * torch.dot(means, means)
        if flags & WANTS_CHANNELS:
            found[1] = rows.mean(0).abs().max()
    return found
