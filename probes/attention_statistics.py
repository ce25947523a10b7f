"""Reduce attention logits to statistics per head, on their device.

Axes: (batch, heads, queries, keys). A key is *visible* to a query where no mask hides it. A query that sees fewer than
two keys has no choice to make: it counts in the largest logit alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Columns of a row of sums, one row a head: the largest visible logit; sums over queries of the standard deviation of
# their visible logits, of entropy, of entropy over its most, of the share of key 0; queries that saw two keys or more;
# queries that saw any; the bound |q| |k| scale. NaN stands for "not measured".
N_SUMS = 8
LARGEST, SPREAD, ENTROPY, RATIO, FIRST, N_CHOOSING, N_SEEING, BOUND = range(N_SUMS)

# An additive mask and logits masked by hand hide a key by a large negative number: -1e4 in the smallest convention in
# use (the first GPT-2), -1e9 or the dtype's smallest in others. Logits of a run that is alive do not go there: loss
# degrades from about 1e3 on (Wortsman et al. 2023, arXiv:2309.14322, section 3.1).
HIDDEN_BELOW = -5e3


def hidden_by_value(logits: Tensor) -> Tensor:
    """Return which keys are masked, from the size of ``logits`` alone; a NaN is not masked."""
    return logits <= HIDDEN_BELOW


def head_sums(logits: Tensor, hidden: Tensor | None) -> Tensor:
    """Return sums per head, shape (heads, 8); nothing is copied to the host.

    For one query with visible logits x of n keys, p = softmax x: spread = sqrt(mean (x - mean x)^2), entropy
    = - sum p ln p = ln z - sum e^c c / z with c = x - max x and z = sum e^c, and its ratio to ln n.

    Args:
        logits: as they enter the softmax, float32 or wider, shape (batch, heads, queries, keys); overwritten.
        hidden: true where a key is masked, any shape that broadcasts to that of the logits; None hides none.
    """
    n_heads, n_keys = logits.shape[1], logits.shape[3]
    if hidden is None:
        n = logits.new_full((1, 1, 1), n_keys)
    else:
        logits.masked_fill_(hidden, -math.inf)
        n = n_keys - hidden.expand(*hidden.shape[:-1], n_keys).sum(-1).to(logits.dtype)
        n = n.reshape((1,) * (3 - n.dim()) + n.shape)
    peak = logits.amax(-1)
    is_choosing = n >= 2
    # A query that sees nothing has the peak -inf, and -inf - -inf is NaN.
    centred = logits.sub_(torch.where(n >= 1, peak, 0.0).unsqueeze(-1))
    weights = centred.exp()
    total = weights.sum(-1)
    first = weights[..., 0] / total
    if hidden is not None:
        centred.masked_fill_(hidden, 0.0)
    entropy = total.log() - weights.mul_(centred).sum(-1) / total
    mean = centred.sum(-1) / n
    variance = centred.square_().sum(-1) / n - mean * mean
    values = [variance.clamp_min(0.0).sqrt(), entropy, entropy / n.log(), first]
    sums = torch.stack([torch.where(is_choosing, value, 0.0) for value in values], -1)
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    counts = torch.stack([is_choosing, n >= 1], -1).expand(*peak.shape, 2).sum((0, 2))
    largest = peak.amax((0, 2)) if peak.numel() else peak.new_zeros(n_heads)
    unknown = largest.new_full((n_heads, 1), math.nan)
    return torch.cat([largest.unsqueeze(-1), sums.sum((0, 2), dtype=wide), counts, unknown], -1)


def largest_alone(logits: Tensor) -> Tensor:
    """Return rows of sums that hold the largest logit and nothing else, shape (heads, 8)."""
    return _one_column(LARGEST, logits.detach().amax((0, 2, 3)))


def bound(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Return rows of sums that hold the bound of Cauchy and Schwarz on the logits: max |q| max |k| |scale| per head.

    Args:
        query: shape (batch, heads, queries, head size).
        key: shape (batch, heads or a divisor of them, keys, head size).
        scale: of the logits.
    """
    sizes = [torch.linalg.vector_norm(t.detach().float(), dim=-1).amax((0, 2)) for t in (query, key)]
    repeats = sizes[0].shape[0] // sizes[1].shape[0]
    return _one_column(BOUND, sizes[0] * sizes[1].repeat_interleave(repeats) * abs(scale))


def _one_column(column: int, values: Tensor) -> Tensor:
    rows = torch.full((len(values), N_SUMS), math.nan, dtype=torch.float32, device=values.device)
    rows[:, column] = values
    return rows


def statistics(sums: list[float]) -> dict[str, float | None]:
    """Return the named statistics of one row of sums; None where one was not measured or is not finite."""
    n = sums[N_CHOOSING]
    means = [sums[column] / n if n > 0 else math.nan for column in (SPREAD, ENTROPY, RATIO, FIRST)]
    values = [sums[LARGEST], *means, sums[BOUND]]
    names = ("logit_max", "logit_std", "entropy", "entropy_ratio", "sink_share", "logit_bound")
    return {name: value if math.isfinite(value) else None for name, value in zip(names, values, strict=True)}
