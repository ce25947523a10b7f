"""Read from a recording whether attention is near uniform over all that it may see, and over how many tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rheoscope.probes.anatomy import Branch

from .once import once
from .tables import Tables
from .thresholds import LOGIT_VARIANCE_LIMIT, UNIFORM_ENTROPY_APART

# How many queries of a sequence a recording looks at: a quarter, at least 16 and at most 64, evenly spaced with the last.
_FEWEST, _MOST, _APART = 16, 64, 4


class NoTheoryError(ValueError):
    """No closed form holds; the message is the reason, a clause that follows "because"."""


@dataclass(frozen=True)
class Sequences:
    """How long the sequences are: ``n_tokens`` each, ``n`` tokens in all."""

    n_tokens: int
    n: int


def sequences(tables: Tables, stack: int, step: int, n: int, *, is_causal: bool) -> Sequences:
    """Return the sequences that the attention of a stack saw, from the entropy of its weights.

    The length is that divisor of ``n`` whose share of queries is the one recorded and whose uniform attention has the entropy
    nearest to the recorded one.

    Args:
        tables: of the recording.
        stack: which stack.
        step: at which step.
        n: tokens in a micro-batch.
        is_causal: whether a token sees only itself and those before it.

    Raises:
        NoTheoryError: attention was not recorded, is not near uniform, or does not see all tokens.
    """
    rows = tables.recording.table("attention", steps=step)
    rows = rows[(rows["stack"] == stack) & (rows["depth"] >= 0)].dropna(subset=["entropy", "logit_std", "query_share"])
    if not len(rows):
        raise NoTheoryError("attention was not recorded, so that neither its evenness nor a sequence's length is known")
    widest = float(rows.groupby("depth")["logit_std"].mean().max())
    if widest**2 > LOGIT_VARIANCE_LIMIT:
        raise NoTheoryError(
            f"attention is not near uniform (its logits have a standard deviation of {widest:.2g}; the closed form follows "
            f"{math.sqrt(LOGIT_VARIANCE_LIMIT):.2g})"
        )
    share = float(rows["query_share"].iloc[0])
    # A query's entropy falls below that of even weights by half its logits' variance.
    even = float((rows["entropy"] + rows["logit_std"] ** 2 / 2).mean())
    lengths = [t for t in range(1, n + 1) if n % t == 0 and abs(_share(t) - share) < 1e-6]
    if not lengths:
        raise NoTheoryError("the length of a sequence could not be told from the attention recorded")
    apart = {t: abs(_even_entropy(t, is_causal=is_causal) - even) for t in lengths}
    best = min(apart, key=lambda t: apart[t])
    if apart[best] > UNIFORM_ENTROPY_APART:
        raise NoTheoryError(
            "attention is not even over all tokens that it may see (a window, padding, a position bias or a sink: its entropy is "
            f"{even:.2f} nats, that of even weights over {best} tokens {_even_entropy(best, is_causal=is_causal):.2f})"
        )
    return Sequences(best, n)


def _queries(n_tokens: int) -> range:
    step = -(-n_tokens // min(_MOST, max(_FEWEST, n_tokens // _APART)))
    return range((n_tokens - 1) % step, n_tokens, step)


def _share(n_tokens: int) -> float:
    return len(_queries(n_tokens)) / n_tokens


def _even_entropy(n_tokens: int, *, is_causal: bool) -> float:
    """Return the mean entropy of even weights, over the queries that are recorded and see two tokens or more."""
    if not is_causal:
        return math.log(n_tokens)
    counts = np.array(_queries(n_tokens)) + 1.0
    counts = counts[counts >= 2]
    return float(np.log(counts).mean()) if len(counts) else 0.0


def value_index(
    tables: Tables, branch: Branch, step: int, stds: list[float], n: int, per_product: float, read_rms: float
) -> int:
    """Return which of three input projections makes the values, by the logits that the other two make.

    Args:
        tables: of the recording.
        branch: the attention branch.
        step: at which step.
        stds: of the three matrices.
        n: elements of the smallest.
        per_product: std of a logit between unit tokens over the product of the two stds.
        read_rms: RMS of what the branch reads.

    Raises:
        NoTheoryError: the three differ, and the recorded logits do not tell which is which.
    """
    if are_alike(stds, n):
        return 2
    seen = unit_logits(tables, branch, step) / (per_product * read_rms**2)
    products = [math.prod(stds) / std for std in stds]
    away = [abs(math.log(max(seen, 1e-30) / product)) for product in products]
    best = int(np.argmin(away))
    if away[best] > math.log(1.3):
        raise NoTheoryError(
            "queries, keys and values have different scales, and the recorded logits fit no pair of them"
        )
    return best


def are_alike(stds: list[float], n: int) -> bool:
    """Return whether matrices of ``n`` elements or more have one scale, as far as so many draws tell."""
    return max(stds) < (1.1 + 4 / math.sqrt(n)) * min(stds)


def unit_logits(tables: Tables, branch: Branch, step: int) -> float:
    """Return the std that the recorded logits would have between tokens that have nothing in common.

    Raises:
        NoTheoryError: logits, or the likeness of tokens, were not recorded.
    """
    logits, tokens = (
        frame[frame["depth"].to_numpy() == depth]
        for frame, depth in zip(_at(tables, step, branch.stack), (branch.depth, branch.depth - 1), strict=True)
    )
    if not len(logits) or not len(tokens):
        raise NoTheoryError("no logits were recorded that tell the scale of queries and keys")
    return float(logits["logit_std"].mean()) / math.sqrt(max(1e-6, 1 - float(tokens["cosine"].iloc[0])))


@once
def _at(tables: Tables, step: int, stack: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the attention and the tokens of one stack at one step."""
    attention, tokens = (
        frame[(frame["step"] == step) & (frame["stack"] == stack)] for frame in (tables.attention(), tables.tokens())
    )
    return attention, tokens
