"""Reduce a tensor on the CPU with the C kernel, where the package was built with one.

The kernel takes addresses, so that a call costs a quarter of a microsecond beside reading the tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import N_SUMS

try:
    from . import _moments
except ImportError:  # no compiler, or another platform's wheel: torch's operations serve
    _moments = None  # type: ignore[assignment]

kernel: Any = _moments
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
ROW_BYTES = 8 * N_SUMS


def moments(tensor: Tensor, address: int, flags: int, n_threads: int) -> bool:
    """Write the ten sums of ``tensor`` to ``address``; return whether the kernel could read it."""
    kind = KINDS.get(tensor.dtype)
    # The same as _is_plain, without a call: this runs hundreds of times a step.
    if not (
        kind is not None
        and tensor.is_cpu
        and type(tensor) in _PLAIN
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
    ):
        return False
    shape = tensor.shape
    width = shape[-1] if shape else 1
    kernel.moments(tensor.data_ptr(), tensor.numel() // (width or 1), width, kind, address, flags, n_threads)
    return True


def moments_beside(
    tensor: Tensor, address: int, n_threads: int, partner: Tensor, factor: float, pair_address: int
) -> bool:
    """Write also, to ``pair_address``, the energy of ``tensor - factor * partner`` and its product with ``factor * partner``."""
    kind = KINDS.get(tensor.dtype)
    if kind is None or partner.dtype != tensor.dtype or not _is_plain(tensor) or not _is_plain(partner):
        return False
    shape = tensor.shape
    width = shape[-1] if shape else 1
    rows = tensor.numel() // (width or 1)
    data, beside = tensor.data_ptr(), partner.data_ptr()
    kernel.moments(data, rows, width, kind, address, 0, n_threads, beside, factor, pair_address)
    return True


def is_float32(*tensors: Tensor) -> bool:
    """Return whether all are dense float32 on the CPU: what the kernel's other reductions read."""
    return kernel is not None and all(tensor.dtype == torch.float32 and _is_plain(tensor) for tensor in tensors)


def has_rows(tensor: Tensor) -> bool:
    """Return whether the tensor is float32 in this process's memory, its last axis dense; rows may lie anywhere."""
    return (
        kernel is not None
        and tensor.dtype is torch.float32
        and tensor.is_cpu
        and type(tensor) in _PLAIN
        and tensor.layout is torch.strided
        and (tensor.shape[-1] == 1 or tensor.stride(-1) == 1)
    )


def _is_plain(tensor: Tensor) -> bool:
    """Return whether the values lie at the tensor's address, one after the other, in this process's memory."""
    # A subclass (DTensor, a quantised wrapper) may keep its values elsewhere.
    return tensor.is_cpu and type(tensor) in _PLAIN and tensor.layout is torch.strided and tensor.is_contiguous()


_PLAIN = (Tensor, torch.nn.Parameter)
