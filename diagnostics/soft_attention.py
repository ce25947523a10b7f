"""Follow second moments through attention that is close to uniform, upward and back.

K is (token, token), the mean product of two tokens' coordinates in what attention reads; M is (token, token), the product of two
tokens' gradients summed over coordinates. Two softmax weights on one token go together by ``exp(s^2 K spread)``: to that order
the weights are log-normal, s being the std of logits at unit input. Sums over visible tokens are running sums, so that a branch
costs (tokens)^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .thresholds import LOGIT_VARIANCE_LIMIT


@dataclass(frozen=True)
class Attention:
    """What an attention branch's weights do to second moments.

    Attributes:
        gain: G_a = (d s_v^2)(h s_o^2): energy that value and output projection make of one unit; h is the heads' joint width.
        logits_std: std of a logit between two tokens of unit mean square; 0 for uniform attention.
        is_qk_normed: whether queries and keys are normed: logits then do not grow with what is read.
        bias_energy: what biases of value and output add to every token.
    """

    gain: float
    logits_std: float = 0.0
    is_qk_normed: bool = False
    bias_energy: float = 0.0


@dataclass(frozen=True)
class Sight:
    """Who sees whom: every token itself and those before it, or all of them."""

    n_tokens: int
    is_causal: bool

    @property
    def count(self) -> np.ndarray:
        """Tokens that each query sees, (query,)."""
        n = self.n_tokens
        return np.arange(1.0, n + 1) if self.is_causal else np.full(n, float(n))

    @property
    def common(self) -> np.ndarray:
        """Tokens that both of two queries see, (query, query)."""
        whole: np.ndarray = np.minimum(self.count[:, None], self.count[None, :])
        return whole

    def total(self, values: np.ndarray) -> np.ndarray:
        """Return, of a value a token, the sum over those that each query sees, (query,)."""
        summed: np.ndarray = np.cumsum(values)
        return summed if self.is_causal else np.full(self.n_tokens, summed[-1])

    def gathered(self, pairs: np.ndarray) -> np.ndarray:
        """Return V P V^T, V being 1 where the query (row) sees the token: sums over what two queries see."""
        if self.is_causal:
            return np.cumsum(np.cumsum(pairs, 0), 1)
        return np.full_like(pairs, pairs.sum())

    def scattered(self, pairs: np.ndarray) -> np.ndarray:
        """Return V^T P V: sums over the queries that see two tokens."""
        return self.gathered(pairs[::-1, ::-1])[::-1, ::-1]


@dataclass(frozen=True)
class Softmax:
    """Products of attention weights, expected, for each pair of queries.

    Attributes:
        apart: (query, query), E[w_ij w_kl] for j and l different tokens.
        same: (query, query), E[w_ij w_kj].
        spread: (query, query), variance of the visible tokens' coordinates about their mean, as keys see them.
        value_spread: the same as values see them: the branch's input, which a QK-norm does not norm for them.
        read: what queries and keys are made of, (token, token): the branch's input, of unit tokens behind a QK-norm.
        largest: the largest variance of a query's logits.
    """

    apart: np.ndarray
    same: np.ndarray
    spread: np.ndarray
    value_spread: np.ndarray
    read: np.ndarray
    largest: float


def softmax(attention: Attention, read: np.ndarray, sight: Sight) -> Softmax:
    """Return the moments of softmax weights over ``read``.

    Raises:
        ValueError: the logits' variance passes LOGIT_VARIANCE_LIMIT: attention is no longer near uniform.
    """
    value_spread = spread = _spread(read, sight)
    if attention.is_qk_normed:
        read = read / outer(np.diag(read))
        spread = _spread(read, sight)
    count = sight.count
    variance = attention.logits_std**2 * read * spread
    largest = float(np.diag(variance).max())
    if largest > LOGIT_VARIANCE_LIMIT:
        raise ValueError(
            f"Expected attention logits of variance below {LOGIT_VARIANCE_LIMIT:g}, where attention is near uniform, got "
            f"{largest:.3g}: no closed form."
        )
    together = np.exp(variance)
    apart = 1 / (count[:, None] * count[None, :] + (together - 1) * sight.common)
    return Softmax(apart, together * apart, spread, value_spread, read, largest)


def _spread(read: np.ndarray, sight: Sight) -> np.ndarray:
    count, own = sight.count, sight.total(np.diag(read))
    pairs = np.diag(sight.gathered(read)) - own
    spread = np.where(count > 1, own / count - pairs / np.maximum(1, count * (count - 1)), 0.0)
    return outer(np.maximum(spread, 0.0))


def attended(attention: Attention, read: np.ndarray, weights: Softmax, sight: Sight) -> np.ndarray:
    """Return the second moments of what the branch gives, (token, token)."""
    own = sight.total(np.diag(read))
    shared = np.minimum(own[:, None], own[None, :])
    gathered = weights.apart * sight.gathered(read) + (weights.same - weights.apart) * shared
    whole: np.ndarray = attention.gain * gathered + attention.bias_energy
    return whole


def attended_back(
    attention: Attention, arriving: np.ndarray, read: np.ndarray, weights: Softmax, sight: Sight
) -> np.ndarray:
    """Return what comes back to the branch's input through values, queries and keys, (token, token)."""
    w, common = weights, sight.common
    value = sight.scattered(w.apart * arriving)
    value = value + np.diag(np.diag(sight.scattered((w.same - w.apart) * arriving)))
    # The softmax passes on only what tells one visible token from their mean, hence spread and 1 - 1 / common.
    told = attention.logits_std**2 * w.value_spread * (1 - 1 / common)
    query = arriving * told * w.spread * w.same * common
    by_key = arriving * told * w.read
    both = np.diag(sight.scattered(by_key * w.apart / np.maximum(1, common - 1)))
    key = np.diag(np.diag(sight.scattered(by_key * (w.same + w.apart / np.maximum(1, common - 1)))))
    index = np.arange(len(both))
    key = key - both[np.maximum(index[:, None], index[None, :])]  # what sees two tokens sees the later
    logits = query + key
    whole: np.ndarray = attention.gain * (value + (logits / outer(np.diag(read)) if attention.is_qk_normed else logits))
    return whole


def outer(energy: np.ndarray) -> np.ndarray:
    """Return the products of two tokens' RMS, (token, token)."""
    rms = np.sqrt(energy)
    whole: np.ndarray = rms[:, None] * rms[None, :]
    return whole
