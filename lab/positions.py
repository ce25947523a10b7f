"""How positions enter the reference transformer: a table that is added, a turn of queries and keys, a slope of logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROTARY_BASE = 10_000.0


def sinusoidal(n: int, width: int) -> Tensor:
    """Return sines and cosines of n positions, shape (n, width) (Vaswani et al. 2017, section 3.5)."""
    angles = _angles(n, width + width % 2)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]


def rotary(x: Tensor) -> Tensor:
    """Turn pairs of channels by angles that grow with the position (Su et al. 2021, RoFormer, equation 34).

    Args:
        x: queries or keys, shape (..., position, head size), the head size even.

    Returns:
        The same shape; products of queries and keys depend on their distance alone.
    """
    angles = _angles(x.shape[-2], x.shape[-1]).to(x.device)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def bias_of_logits(length: int, n_heads: int, *, alibi: bool, window: int, is_causal: bool) -> Tensor:
    """Return what is added to the logits of attention, shape (heads or 1, length, length).

    ALiBi's slopes are 2^(-8 h / heads) for head h from 1 (Press et al. 2021, section 3).

    Args:
        length: positions.
        n_heads: heads of queries.
        alibi: whether logits fall with the distance.
        window: how many positions back are seen, 0 for all.
        is_causal: whether later positions are hidden.
    """
    place = torch.arange(length)
    distance = place[:, None] - place[None, :]
    hidden = torch.zeros(length, length, dtype=torch.bool)
    if is_causal:
        hidden |= distance < 0
    if window:
        hidden |= distance.abs() >= window
    bias = torch.zeros(1, length, length)
    if alibi:
        slopes = 2.0 ** (-8.0 * torch.arange(1, n_heads + 1) / n_heads)
        bias = -slopes[:, None, None] * distance.abs()
    return bias.masked_fill(hidden, -math.inf)


def _angles(n: int, width: int) -> Tensor:
    frequencies = ROTARY_BASE ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.arange(n, dtype=torch.float64)[:, None] * frequencies
