"""Keep the sums of many tensors on their device, and turn them into statistics on the host.

Sums add up over micro-batches and ranks; they are kept in float64, so that a norm never overflows where the tensor
is finite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .kernels import (
    ABSMAX,
    CHANNEL,
    COUNT,
    FIRST,
    FOURTH,
    N_SUMS,
    NONFINITE,
    ROW_MEANS,
    SECOND,
    THIRD,
    WANTS_CHANNELS,
    ZEROS,
    by_c,
    by_torch,
)
from .schema import STATISTICS

# Variance over mean square. A difference of float64 moments is rounding at about 1e-16: at _NO_SPREAD the variance
# has four digits left, and at _THIN_SPREAD the fourth central moment has.
_NO_SPREAD, _THIN_SPREAD = 1e-12, 1e-6


class Sheet:
    """Rows of sums on one device, filled by index while a model runs and copied to the host once.

    Attributes:
        values: shape (rows, 10), float64 (float32 where a device has no other).
        channels: row -> sum over tokens of each channel, where these are kept.
    """

    def __init__(self, n_rows: int, device: torch.device) -> None:
        """Allocate ``n_rows`` rows of zeros."""
        # Outside inference mode, or the rows could not be written later.
        with torch.inference_mode(False):
            self.values = torch.zeros(n_rows, N_SUMS, dtype=by_torch.wide_dtype(device), device=device)
        self.channels: dict[int, Tensor] = {}
        self._address = self.values.data_ptr() if device.type == "cpu" and by_c.kernel is not None else 0
        self._n_threads = torch.get_num_threads()
        self._on_cuda: Any = _triton() if device.type == "cuda" else None

    def measure(self, row: int, tensor: Tensor, flags: int = 0) -> None:
        """Fill ``row`` with the sums of ``tensor``; the host does not wait for a device."""
        address = self._address
        if address and by_c.moments(tensor, address + row * by_c.ROW_BYTES, flags, self._n_threads):
            return
        is_there = self._on_cuda is not None and tensor.device == self.values.device
        if is_there and self._on_cuda.moments(tensor, self.values[row], flags):
            return
        self.values[row] = by_torch.moments(tensor, flags).to(self.values.device)

    def measure_beside(self, row: int, tensor: Tensor, partner: Tensor, factor: float, pair: Tensor) -> None:
        """Fill ``row``, and ``pair`` with the energy of ``tensor - factor * partner`` and its product with the latter."""
        address = self._address
        if address and by_c.moments_beside(
            tensor, address + row * by_c.ROW_BYTES, self._n_threads, partner, factor, pair.data_ptr()
        ):
            return
        self.measure(row, tensor)
        pair.copy_(by_torch.pair(tensor, partner, factor))

    def clear(self) -> None:
        """Make every row empty."""
        self.values.zero_()
        self.channels.clear()


class ChannelSheet(Sheet):
    """Rows of sums that join over ranks: the largest of several means is none of their sums, so channels are kept."""

    def measure(self, row: int, tensor: Tensor, flags: int = 0) -> None:
        """Fill ``row``, and keep the sums of the channels where their means are asked for."""
        super().measure(row, tensor, flags)
        if flags & WANTS_CHANNELS and tensor.dim():
            rows = tensor.detach().reshape(-1, tensor.shape[-1])
            # Ten times faster than in float64, and as exact as the means are asked for.
            dtype = self.values.dtype if tensor.dtype == torch.float64 else torch.float32
            self.channels[row] = rows.sum(0, dtype=dtype)


def _triton() -> Any:
    """Return the module of the CUDA kernel, None where triton is not installed."""
    try:
        from .kernels import by_triton
    except ImportError:
        return None
    return by_triton


def power_sums(tensor: Tensor, flags: int = 0) -> Tensor:
    """Return the ten sums of one tensor, shape (10,), on its device."""
    sheet = Sheet(1, tensor.device)
    sheet.measure(0, tensor.detach(), flags)
    return sheet.values[0]


def statistics(sums: Tensor) -> dict[str, Tensor]:
    """Return the named statistics of rows of sums.

    With n elements, mean m and variance v (divided by n): std = sqrt v, rms = sqrt(mean x^2), kurtosis =
    mean (x - m)^4 / v^2 (3 for a Gaussian), zero_share = zeros / n, mean_share = the share of the energy that is in the
    tokens' own means (what a LayerNorm removes and an RMSNorm keeps), channel_absmean = the largest |mean| of a channel.
    Without spread (v = 0 but for rounding) std is 0, and kurtosis is NaN. A row whose tensor holds a value that is not
    finite has no other statistics but ``nonfinite``, the number of such elements: they are NaN. So are all of an empty
    tensor, and the last two where they were not asked for.

    Args:
        sums: shape (rows, 10), on the CPU.

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
        "mean_share": torch.where(sums[:, ROW_MEANS] > 0, sums[:, ROW_MEANS] / sums[:, SECOND], torch.nan),
        "channel_absmean": torch.where(sums[:, CHANNEL] > 0, sums[:, CHANNEL], torch.nan),
    }
    is_known = (n > 0) & (sums[:, NONFINITE] == 0)
    known = {name: torch.where(is_known, value, torch.nan) for name, value in values.items()}
    return {name: known.get(name, sums[:, NONFINITE]) for name in STATISTICS}
