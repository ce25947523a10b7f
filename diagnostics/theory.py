"""Predict signal and gradient at initialisation in closed form, state by state.

The recursion follows the second moments between tokens (Xiong et al. 2020; Kedia et al. 2024, "Transformers get
stable"; Noci et al. 2022). Axes: K is (token, token), the mean product of two tokens' coordinates in a state, with q its
diagonal; M is (token, token), the product of two tokens' gradients summed over coordinates.

    branch        attention  G_a avg(K)                MLP  f s_2^2 E[phi phi](d s_1^2 K)
    pre-norm      K <- K + b(K/q)                      M <- M + B(M)/q
    post-norm     S = K + b(K);  K <- S/diag S         M <- (1 + B)(M/diag S)       skip gain of the gradient 1/sqrt s
    double        K <- K + b(K/q)/diag b               M <- M + B(M/diag b)/q
    reordered     K <- K + b(K)/diag b                 M <- M + B(M/diag b)

Assumed: weights independent, Gaussian with zero mean, biases zero, gains one, no dropout, width large, and targets
independent of the inputs, so that M starts as the identity. Softmax is followed to the order at which its weights are
log-normal: two weights on one token go together by ``exp(s^2 spread)``, s the std of logits at unit input. Where that
variance passes LOGIT_VARIANCE_LIMIT the attention is no longer near uniform and the prediction is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from .gaussian import MOMENTS, SLOPES
from .thresholds import LOGIT_VARIANCE_LIMIT

MOST_BLOCKS, MOST_TOKENS = 1_000, 2_048  # a start may come from a file: what it costs is bounded
PLACEMENTS = ("pre", "post", "double", "reordered")


@dataclass(frozen=True)
class Start:
    """What a prediction starts from.

    Attributes:
        placement: pre, post, double or reordered.
        n_blocks: blocks of an attention and an MLP branch.
        attention_gain: G_a = (d s_v^2)(d s_o^2), with s the std of the value and output projections.
        hidden_energy: d s_1^2, the variance of an MLP hidden unit at unit input.
        output_gain: f s_2^2, of the MLP's second projection.
        input_gain_backward: f s_1^2 d s_2^2, the product of both projections' backward gains.
        activation: relu or gelu.
        n_tokens: tokens in a sequence.
        energy: mean square of state 0, whose tokens are taken to be uncorrelated.
        logits_std: d s_q s_k, std of an attention logit between two tokens of unit mean square; 0 for uniform attention.
        norm_eps: what the norms add to the mean square.
        is_causal: whether a token sees only itself and those before it.
    """

    placement: str
    n_blocks: int
    attention_gain: float
    hidden_energy: float
    output_gain: float
    input_gain_backward: float
    activation: str
    n_tokens: int
    energy: float
    logits_std: float = 0.0
    norm_eps: float = 0.0
    is_causal: bool = True


@dataclass(frozen=True)
class _Weights:
    """Products of attention weights, expected: ``same`` on one token and ``apart`` on two, for each pair of queries.

    Attributes:
        visible: (query, token), 1 where the query sees the token.
        common: (query, query), number of tokens that both see.
        apart: (query, query), E[w_ij w_kl] for j and l different tokens.
        same: (query, query), E[w_ij w_kj].
        spread: (query, query), variance of the visible tokens' coordinates about their mean.
    """

    visible: np.ndarray
    common: np.ndarray
    apart: np.ndarray
    same: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True)
class _Add:
    """One add on the way up: what the way down needs. ``read`` is what the branch reads, after its norm."""

    read: np.ndarray
    energy: np.ndarray
    branch: np.ndarray
    sum: np.ndarray
    weights: _Weights | None


def predict(start: Start) -> pd.DataFrame:
    """Return the prediction: one row a state, depth 0 to 2 x n_blocks.

    Returns:
        Columns ``depth``, ``rms`` (of the state), ``gradient`` (RMS of the loss's gradient with respect to the state,
        over that of the last state), ``transmission`` (gain of the gradient along the skip path, last state to this).

    Raises:
        ValueError: there is no closed form here: another placement or activation, a start that is not positive, or
            attention that is far from uniform.
    """
    if start.placement not in PLACEMENTS:
        raise ValueError(f"Expected a placement among {PLACEMENTS}, got {start.placement!r}: no closed form.")
    if start.activation not in MOMENTS:
        raise ValueError(f"Expected an activation among {tuple(MOMENTS)}, got {start.activation!r}: no closed form.")
    positive = (start.n_blocks, start.n_tokens, start.energy, start.attention_gain, start.hidden_energy)
    sane = start.n_blocks <= MOST_BLOCKS and start.n_tokens <= MOST_TOKENS
    if not sane or not all(value > 0 for value in (*positive, start.output_gain, start.input_gain_backward)):
        raise ValueError(f"Expected positive sizes and gains, got {start}: no closed form.")
    states, adds = _upward(start)
    gradients, transmission = _downward(start, adds)
    return pd.DataFrame(
        {
            "depth": range(len(states)),
            "rms": [float(np.sqrt(np.diag(state).mean())) for state in states],
            "gradient": gradients,
            "transmission": transmission,
        }
    )


def _upward(start: Start) -> tuple[list[np.ndarray], list[_Add]]:
    n = start.n_tokens
    visible = np.tril(np.ones((n, n))) if start.is_causal else np.ones((n, n))
    state = start.energy * np.eye(n)
    states, adds = [state], []
    for index in range(2 * start.n_blocks):
        energy = np.diag(state) + start.norm_eps
        read = state / _outer(energy) if start.placement in ("pre", "double") else state
        weights = _weights(start, read, visible) if index % 2 == 0 else None
        branch = _attention(start, read, weights) if weights else _mlp(start, read)
        size = np.diag(branch) + start.norm_eps
        write = branch / _outer(size) if start.placement in ("double", "reordered") else branch
        whole = state + write
        total = np.diag(whole) + start.norm_eps
        adds.append(_Add(read, energy, size, total, weights))
        state = whole / _outer(total) if start.placement == "post" else whole
        states.append(state)
    return states, adds


def _downward(start: Start, adds: list[_Add]) -> tuple[list[float], list[float]]:
    gradient = np.eye(start.n_tokens)
    skipped = np.ones(start.n_tokens)  # the energy of each token's gradient that kept to the skips
    sizes, transmissions = [1.0], [1.0]
    for add in reversed(adds):
        gradient = gradient / _outer(add.sum) if start.placement == "post" else gradient
        skipped = skipped / add.sum if start.placement == "post" else skipped
        transmissions.append(float(np.sqrt(skipped.mean())))
        arriving = gradient / _outer(add.branch) if start.placement in ("double", "reordered") else gradient
        back = _attention_back(start, arriving, add) if add.weights else _mlp_back(start, arriving, add)
        gradient = gradient + (back / _outer(add.energy) if start.placement in ("pre", "double") else back)
        sizes.append(float(np.sqrt(np.diag(gradient).mean())))
    return sizes[::-1], transmissions[::-1]


def _outer(energy: np.ndarray) -> np.ndarray:
    """Return the products of two tokens' RMS, (token, token)."""
    rms = np.sqrt(energy)
    whole: np.ndarray = rms[:, None] * rms[None, :]
    return whole


def _weights(start: Start, read: np.ndarray, visible: np.ndarray) -> _Weights:
    """Return the moments of softmax weights: E[w_ij w_kl] in proportion to exp(s^2 read_ik spread [j is l])."""
    count, common = visible.sum(1), visible @ visible.T
    own = visible @ np.diag(read)  # sum of the visible tokens' mean squares
    pairs = np.einsum("ij,jl,il->i", visible, read, visible) - own
    spread = np.where(count > 1, own / count - pairs / np.maximum(1, count * (count - 1)), 0.0)
    spread = _outer(np.maximum(spread, 0.0))
    variance = start.logits_std**2 * read * spread
    if float(np.diag(variance).max()) > LOGIT_VARIANCE_LIMIT:
        raise ValueError(
            f"Expected attention logits of variance below {LOGIT_VARIANCE_LIMIT:g}, where attention is near uniform, got "
            f"{float(np.diag(variance).max()):.3g}: no closed form."
        )
    together = np.exp(variance)
    apart = 1 / (count[:, None] * count[None, :] + (together - 1) * common)
    return _Weights(visible, common, apart, together * apart, spread)


def _attention(start: Start, read: np.ndarray, w: _Weights) -> np.ndarray:
    shared = (w.visible * np.diag(read)) @ w.visible.T
    gathered = w.apart * (w.visible @ read @ w.visible.T) + (w.same - w.apart) * shared
    whole: np.ndarray = start.attention_gain * gathered
    return whole


def _attention_back(start: Start, arriving: np.ndarray, add: _Add) -> np.ndarray:
    """Return what comes back to the branch's input through values, queries and keys."""
    w = add.weights
    assert w is not None
    value = w.visible.T @ (w.apart * arriving) @ w.visible
    value = value + np.diag(_seen(w, (w.same - w.apart) * arriving))
    # The softmax passes on only what tells one visible token from their mean, hence spread and 1 - 1 / common.
    told = start.logits_std**2 * w.spread * (1 - 1 / w.common)
    query = arriving * told * w.spread * w.same * w.common
    by_key = arriving * told * add.read
    shared = _seen(w, by_key * w.apart / np.maximum(1, w.common - 1))
    index = np.arange(len(shared))
    key = np.diag(_seen(w, by_key * (w.same + w.apart / np.maximum(1, w.common - 1))))
    key = key - shared[np.maximum(index[:, None], index[None, :])]
    whole: np.ndarray = start.attention_gain * (value + query + key)
    return whole


def _seen(w: _Weights, pairs: np.ndarray) -> np.ndarray:
    """Return for each token the sum of ``pairs`` over all two queries that see it."""
    whole: np.ndarray = np.einsum("ij,ik,kj->j", w.visible, pairs, w.visible)
    return whole


def _mlp(start: Start, read: np.ndarray) -> np.ndarray:
    variance, correlation = _hidden(start, read)
    whole: np.ndarray = start.output_gain * MOMENTS[start.activation](variance, correlation)
    return whole


def _mlp_back(start: Start, arriving: np.ndarray, add: _Add) -> np.ndarray:
    variance, correlation = _hidden(start, add.read)
    whole: np.ndarray = start.input_gain_backward * arriving * SLOPES[start.activation](variance, correlation)
    return whole


def _hidden(start: Start, read: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the variance of a hidden unit, the same at every token for every placement here, and correlations."""
    energy = np.diag(read)
    correlation = np.clip(read / _outer(energy), -1.0, 1.0)
    np.fill_diagonal(correlation, 1.0)
    return start.hidden_energy * float(energy.mean()), correlation
