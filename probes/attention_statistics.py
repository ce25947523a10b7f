"""Reduce attention logits to statistics per head, on their device.

Axes: (batch, heads, queries, keys). A key is *visible* to a query where no mask hides it. A query that sees fewer than
two keys has no choice to make: it counts in the largest logit alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .kernels import by_c
from .scratch import Scratch

# Columns of a row of sums, one row a head: the largest visible logit, or a bound on it; sums over queries of the standard
# deviation of their visible logits, of entropy, of entropy over its most, of the share of key 0; the number of these
# queries, those that see two keys or more. NaN stands for "not measured".
N_SUMS = 6
LARGEST, SPREAD, ENTROPY, RATIO, FIRST, N_CHOOSING = range(N_SUMS)

# An additive mask and logits masked by hand hide a key by a large negative number: -1e4 in the smallest convention in
# use (the first GPT-2), -1e9 or the dtype's smallest in others. Logits of a run that is alive do not go there: loss
# degrades from about 1e3 on (Wortsman et al. 2023, arXiv:2309.14322, section 3.1).
HIDDEN_BELOW = -5e3
# What a hidden logit is set to: its weight is 0 beside any visible one, and 0 times it is 0, which of -inf is NaN.
HIDDEN = -1e30
# e^-87 = 2e-38 is nothing beside 1 and the last number that float32 holds in full: what underflows costs fifty times more.
_SMALLEST_EXPONENT = -87.0


def visible_by_value(logits: Tensor) -> Tensor:
    """Return 1 where a key is visible and 0 where it is masked, from the size of ``logits`` alone; a NaN is visible."""
    return 1.0 - (logits <= HIDDEN_BELOW).to(logits.dtype)


def head_sums(logits: Tensor, visible: Tensor | None, scratch: Scratch | None = None) -> Tensor:
    """Return sums per head, shape (heads, 6); nothing is copied to the host.

    For one query with visible logits x of n keys, p = softmax x: spread = sqrt(mean (x - mean x)^2), entropy
    = - sum p ln p = ln z - sum e^c c / z with c = x - max x and z = sum e^c, and its ratio to ln n.

    Filling by a boolean mask costs thirty times an addition or multiplication on the CPU: the mask is numbers.

    Args:
        logits: as they enter the softmax, float32 or wider, shape (batch, heads, queries, keys), ``HIDDEN`` where a key
            is masked; overwritten.
        visible: 1 where a key is visible and 0 where it is masked, of the same dtype, any shape that broadcasts to that
            of the logits; None shows all.
        scratch: where to work; tensor 0 is used.
    """
    work = (scratch or Scratch()).empty(0, logits.shape, logits)
    n_heads, n_keys = logits.shape[1], logits.shape[3]
    if visible is None:
        n = logits.new_full((1, 1, 1), n_keys)
    else:
        n = visible.expand(*visible.shape[:-1], n_keys).sum(-1)
        n = n.view((1,) * (3 - n.dim()) + n.shape)
    peak = logits.amax(-1)
    centred = logits.sub_(peak.unsqueeze(-1))
    counted = centred if visible is None else torch.mul(centred, visible, out=work)
    some = n.clamp_min(1.0)
    mean = counted.sum(-1) / some
    variance = (torch.mul(counted, counted, out=work).sum(-1) / some).addcmul_(mean, mean, value=-1.0)
    centred.clamp_min_(_SMALLEST_EXPONENT)
    weights = torch.exp(centred, out=work)
    total = weights.sum(-1)
    first = weights[..., 0] / total
    entropy = total.log().sub_(weights.mul_(centred).sum(-1).div_(total))
    chooses = (n >= 2).to(logits.dtype)
    ratio = entropy / n.clamp_min(2.0).log()
    # A query that sees nothing has finite numbers too: it is left out by multiplication.
    values = torch.stack([variance.clamp_min_(0.0).sqrt_(), entropy, ratio, first, chooses.expand_as(peak)]) * chooses
    sums = values.sum((1, 3), dtype=torch.float32 if logits.device.type == "mps" else torch.float64)
    largest = peak.amax((0, 2)) if peak.numel() else peak.new_full((n_heads,), math.nan)
    return torch.cat([largest.unsqueeze(0), sums]).T


def together(parts: list[Tensor]) -> Tensor:
    """Return the sums of several parts of a batch as those of all of it."""
    if len(parts) == 1:
        return parts[0]
    stacked = torch.stack(parts)
    total = stacked.sum(0)
    total[:, LARGEST] = stacked[:, :, LARGEST].amax(0)
    return total


def largest_alone(logits: Tensor) -> Tensor:
    """Return rows of sums that hold the largest logit and nothing else, shape (heads, 6)."""
    return _one_column(logits.detach().amax((0, 2, 3)))


def bound(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Return rows of sums that hold the bound of Cauchy and Schwarz on the logits: max |q| max |k| |scale| per head.

    Args:
        query: shape (batch, heads, queries, head size).
        key: shape (batch, heads or a divisor of them, keys, head size).
        scale: of the logits.
    """
    sizes = [torch.linalg.vector_norm(t.detach().float(), dim=-1).amax((0, 2)) for t in (query, key)]
    repeats = sizes[0].shape[0] // sizes[1].shape[0]
    return _one_column(sizes[0] * sizes[1].repeat_interleave(repeats) * abs(scale))


def bound_by_kernel(query: Tensor, key: Tensor, scale: float, to: int) -> None:
    """Write the same rows, float64, to an address, in C; both tensors must have rows that ``by_c.has_rows``."""
    of_query = (query.data_ptr(), *query.shape, *query.stride()[:3])
    of_key = (key.data_ptr(), *key.shape, *key.stride()[:3])
    by_c.kernel.bound(*of_query, *of_key, float(scale), to, N_SUMS)


def _one_column(values: Tensor) -> Tensor:
    rows = torch.full((len(values), N_SUMS), math.nan, dtype=torch.float32, device=values.device)
    rows[:, LARGEST] = values
    return rows


def statistics(sums: list[float], *, is_bound: bool = False) -> dict[str, float | None]:
    """Return the named statistics of one row of sums; None where one was not measured or is not finite.

    Args:
        sums: one row.
        is_bound: whether its largest logit is a bound.
    """
    n = sums[N_CHOOSING]
    means = [sums[column] / n if n > 0 else math.nan for column in (SPREAD, ENTROPY, RATIO, FIRST)]
    largest = sums[LARGEST] if sums[LARGEST] > HIDDEN / 2 else math.nan
    values = [math.nan if is_bound else largest, *means, largest if is_bound else math.nan]
    names = ("logit_max", "logit_std", "entropy", "entropy_ratio", "sink_share", "logit_bound")
    return {name: value if math.isfinite(value) else None for name, value in zip(names, values, strict=True)}
