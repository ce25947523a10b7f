"""Reduce a tensor on CUDA in one fused kernel, which adds to a row of float64 sums where it lies.

A program takes 16 rows, tile by tile of 256 channels. As in the C kernel, a tile's central sums are taken in float32 about its
own mean, in the power of two that brings its largest value to about 1, and joined in float64; here the joining is an atomic
addition. Nothing is copied to the host and nobody waits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import CHANNEL, N_SUMS, WANTS_CHANNELS, WANTS_ROW_MEANS

ROWS, COLUMNS = 16, 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@triton.jit  # type: ignore[untyped-decorator]
def _reduce(
    data: Any,
    out: Any,
    channels: Any,
    n_rows: Any,
    width: Any,
    wants_channels: tl.constexpr,
    wants_row_means: tl.constexpr,
    is_double: tl.constexpr,
    rows_a_program: tl.constexpr,
    columns: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * rows_a_program + tl.arange(0, rows_a_program)
    is_row = row < n_rows
    totals = tl.zeros((rows_a_program,), tl.float64)
    for start in range(0, width, columns):
        column = start + tl.arange(0, columns)
        is_here = is_row[:, None] & (column < width)[None, :]
        x = tl.load(data + row[:, None] * width + column[None, :], mask=is_here, other=0.0)
        x = x.to(tl.float64) if is_double else x.to(tl.float32)
        size = tl.abs(x)
        is_finite = size < float("inf")
        n = tl.sum(tl.sum(is_here.to(tl.float32), 1), 0).to(tl.float64)
        peak = tl.max(tl.max(tl.where(is_finite, size, 0.0), 1), 0)
        if is_double:
            scale = peak * 0.0 + 1.0
        else:
            exponent = (peak.to(tl.int32, bitcast=True) >> 23) & 0xFF
            exponent = tl.minimum(tl.maximum(exponent, 1), 253)
            scale = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
        y = x * scale
        centre = (tl.sum(tl.sum(y, 1), 0) / n).to(y.dtype)
        d = tl.where(is_here, y - centre, 0.0)
        e = d * d
        s1 = tl.sum(tl.sum(d, 1), 0).to(tl.float64)
        s2 = tl.sum(tl.sum(e, 1), 0).to(tl.float64)
        s3 = tl.sum(tl.sum(e * d, 1), 0).to(tl.float64)
        s4 = tl.sum(tl.sum(e * e, 1), 0).to(tl.float64)
        c, p = centre.to(tl.float64), 1.0 / scale.to(tl.float64)
        c2, p2 = c * c, p * p
        tl.atomic_add(out, n)
        tl.atomic_add(out + 1, p * (s1 + n * c))
        tl.atomic_add(out + 2, p2 * (s2 + 2 * c * s1 + n * c2))
        tl.atomic_add(out + 3, p2 * p * (s3 + 3 * c * s2 + 3 * c2 * s1 + n * c2 * c))
        tl.atomic_add(out + 4, p2 * p2 * (s4 + 4 * c * s3 + 6 * c2 * s2 + 4 * c2 * c * s1 + n * c2 * c2))
        tl.atomic_max(out + 5, peak.to(tl.float64))
        tl.atomic_add(out + 6, tl.sum(tl.sum((is_here & (x == 0.0)).to(tl.float32), 1), 0).to(tl.float64))
        tl.atomic_add(out + 7, tl.sum(tl.sum((~is_finite).to(tl.float32), 1), 0).to(tl.float64))
        if wants_row_means:
            totals += tl.sum(y, 1).to(tl.float64) * p
        if wants_channels:
            tl.atomic_add(channels + column, tl.sum(y, 0).to(tl.float64) * p, mask=column < width)
    if wants_row_means:
        tl.atomic_add(out + 8, tl.sum(totals * totals, 0) / width)


def moments(tensor: Tensor, out: Tensor, flags: int) -> bool:
    """Write the ten sums of ``tensor`` to the row ``out``, on the same device; return whether its dtype is known."""
    if tensor.dtype not in DTYPES:
        return False
    values = tensor.detach().contiguous()
    width = values.shape[-1] if values.dim() else 1
    n_rows = values.numel() // (width or 1)
    out.zero_()
    if not values.numel():
        return True
    wants_channels = bool(flags & WANTS_CHANNELS)
    channels = torch.zeros(width if wants_channels else 1, dtype=torch.float64, device=values.device)
    _reduce[(triton.cdiv(n_rows, ROWS),)](
        values,
        out,
        channels,
        n_rows,
        width,
        wants_channels,
        bool(flags & WANTS_ROW_MEANS),
        values.dtype == torch.float64,
        ROWS,
        COLUMNS,
    )
    if wants_channels:
        out[CHANNEL] = channels.abs().max() / n_rows
    assert out.numel() == N_SUMS
    return True
