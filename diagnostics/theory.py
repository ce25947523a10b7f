"""Predict signal and gradient at initialisation in closed form, state by state.

The recursion follows the second moments between tokens (Xiong et al. 2020; Kedia et al. 2024, "Transformers get
stable"; Noci et al. 2022). Axes: K is (token, token), the mean product of two tokens' coordinates in a state, with q its
diagonal; M is (token, token), the product of two tokens' gradients, a coordinate's mean. Of an add with skip factor alpha:

    branch        attention  G_a avg(K)                       MLP  f s_2^2 E[phi phi](d s_1^2 K), times d s_1^2 K where gated
    pre-norm      K <- alpha^2 K + b(K/q)                     M <- alpha^2 M + B(M)/q
    post-norm     S = alpha^2 K + b(K);  K <- S/diag S        M <- (alpha^2 + B)(M/diag S)
    double        K <- alpha^2 K + b(K/q)/diag b              M <- alpha^2 M + B(M/diag b)/q
    reordered     K <- alpha^2 K + b(K)/diag b                M <- alpha^2 M + B(M/diag b)
    none          K <- alpha^2 K + b(K)                       M <- alpha^2 M + B(M)

The gradient starts at the head: mean cross-entropy over N tokens, with head weights of std s_h, sends s_h/N RMS a coordinate
behind the final norm, which divides it by the last state's RMS. So gradients are predicted in absolute size.

Assumed: weights independent, Gaussian with zero mean, no dropout, width large, and targets independent of the inputs, so that M
starts as the identity. Softmax is followed to the order at which its weights are log-normal: see ``soft_attention``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from .gaussian import MOMENTS, SLOPES
from .soft_attention import Attention, Sight, Softmax, attended, attended_back, outer, softmax

MOST_TOKENS = 256  # a longer sequence is followed as one of these: averages over more tokens hardly differ
MOST_PAIRS = 40_000_000  # (tokens)^2 over all branches: a recording may come from a file, and what it costs is bounded
MOST_ADDS = 2_000
PLACEMENTS = ("pre", "post", "double", "reordered", "none")


@dataclass(frozen=True)
class Mlp:
    """What an MLP branch's weights do to second moments.

    Attributes:
        input_gain: d s_1^2, variance of a hidden unit before the activation at unit input.
        output_gain: f s_2^2, of the last projection.
        activation: a name of ``gaussian.MOMENTS``; "identity" where there is none.
        gate_gain: d s_g^2 of the projection that the activation is multiplied by; None without a gate.
        input_bias_energy: mean square of the first projection's bias.
        bias_energy: mean square of the last one's.
    """

    input_gain: float
    output_gain: float
    activation: str
    gate_gain: float | None = None
    input_bias_energy: float = 0.0
    bias_energy: float = 0.0


@dataclass(frozen=True)
class Add:
    """One residual add: ``state k = norm(skip_scale * state k-1 + write)``.

    Attributes:
        branches: whose outputs the write is the sum of; two in a parallel block of one add.
        placement: pre, post, double, reordered or none.
        reads: how many adds below the state lies that the branches read: 1, and 2 for the second of two parallel branches.
        skip_scale: alpha.
        input_scale: gain of the norm that the branches read through, with what multiplies its output.
        write_scale: constant factor of the write, or gain of its norm.
        stream_scale: gain of the norm on the stream.
    """

    branches: tuple[Attention | Mlp, ...]
    placement: str
    reads: int = 1
    skip_scale: float = 1.0
    input_scale: float = 1.0
    write_scale: float = 1.0
    stream_scale: float = 1.0


@dataclass(frozen=True)
class Stream:
    """What a prediction starts from.

    Attributes:
        adds: of one stack, from the first.
        n_tokens: tokens in a sequence.
        energy: mean square of state 0.
        cosine: mean cosine between two tokens of state 0.
        norm_eps: what the norms add to the mean square.
        is_causal: whether a token sees only itself and those before it.
        head_gradient: RMS of the gradient a coordinate where the head reads: s_h / N; 1 where only ratios are wanted.
        final_scale: gain of the final norm; None without one.
    """

    adds: tuple[Add, ...]
    n_tokens: int
    energy: float
    cosine: float = 0.0
    norm_eps: float = 0.0
    is_causal: bool = True
    head_gradient: float = 1.0
    final_scale: float | None = None


@dataclass(frozen=True)
class _Passed:
    """What the way down needs of an add: energies before each norm, and what each branch read. Energies are (tokens,)."""

    source: np.ndarray
    read: np.ndarray
    branch: np.ndarray
    sum: np.ndarray
    weights: tuple[Softmax | None, ...]


def predict(stream: Stream) -> pd.DataFrame:
    """Return the prediction: one row a state, depth 0 to the number of adds.

    Returns:
        Columns ``depth``, ``rms`` (of the state), ``gradient`` (RMS a coordinate of the loss's gradient with respect to the
        state), ``transmission`` (gain of the gradient along the skip path, last state to this), ``logit_variance`` (the
        largest of a query's attention logits in the branches up to here).

    Raises:
        ValueError: there is no closed form here: another placement or activation, a start that is not positive, or
            attention that is far from uniform.
    """
    _check(stream)
    bound = int(np.sqrt(MOST_PAIRS / max(1, len(stream.adds))))
    sight = Sight(min(stream.n_tokens, MOST_TOKENS, max(2, bound)), stream.is_causal)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        states, passed = _upward(stream, sight)
        gradients, transmissions = _downward(stream, sight, states[-1], passed)
    frame = pd.DataFrame(
        {
            "depth": range(len(states)),
            "rms": [float(np.sqrt(np.diag(state).mean())) for state in states],
            "gradient": gradients,
            "transmission": transmissions,
            "logit_variance": np.maximum.accumulate([0.0, *(_variance(add) for add in passed)]),
        }
    )
    if not np.isfinite(frame.to_numpy(float)).all():
        raise ValueError("Expected a stream whose moments are numbers, got one that overflows: no closed form.")
    return frame


def _check(stream: Stream) -> None:
    values = [stream.energy, stream.n_tokens, stream.head_gradient]
    for add in stream.adds:
        if add.placement not in PLACEMENTS:
            raise ValueError(f"Expected a placement among {PLACEMENTS}, got {add.placement!r}: no closed form.")
        for branch in add.branches:
            if isinstance(branch, Mlp):
                if branch.activation not in MOMENTS:
                    raise ValueError(
                        f"Expected an activation among {tuple(MOMENTS)}, got {branch.activation!r}: no closed form."
                    )
                values += [branch.input_gain, branch.output_gain]
            else:
                values += [branch.gain]
    is_sane = 1 <= len(stream.adds) <= MOST_ADDS and all(0 < value < float("inf") for value in values)
    if not is_sane or not -1 <= stream.cosine <= 1:
        raise ValueError(f"Expected positive sizes and gains, got {stream!s:.300}: no closed form.")


def _variance(add: _Passed) -> float:
    return max((w.largest for w in add.weights if w is not None), default=0.0)


def _upward(stream: Stream, sight: Sight) -> tuple[list[np.ndarray], list[_Passed]]:
    n = sight.n_tokens
    likeness = max(stream.cosine, -1 / n)  # tokens cannot all be opposite to each other
    states = [stream.energy * ((1 - likeness) * np.eye(n) + likeness)]
    passed = []
    for index, add in enumerate(stream.adds):
        source = states[max(0, index + 1 - add.reads)]
        energy = np.diag(source) + stream.norm_eps
        is_in, is_out = add.placement in ("pre", "double"), add.placement in ("double", "reordered")
        read = add.input_scale**2 * (source / outer(energy) if is_in else source)
        weights = tuple(softmax(b, read, sight) if isinstance(b, Attention) else None for b in add.branches)
        outputs = [
            attended(b, read, w, sight) if isinstance(b, Attention) and w is not None else _hidden(b, read)
            for b, w in zip(add.branches, weights, strict=True)
        ]
        branch = np.sum(outputs, axis=0)
        size = np.diag(branch) + stream.norm_eps
        write = add.write_scale**2 * (branch / outer(size) if is_out else branch)
        whole = add.skip_scale**2 * states[-1] + write
        total = np.diag(whole) + stream.norm_eps
        passed.append(_Passed(energy, read, size, total, weights))
        states.append(add.stream_scale**2 * whole / outer(total) if add.placement == "post" else whole)
    return states, passed


def _downward(stream: Stream, sight: Sight, last: np.ndarray, passed: list[_Passed]) -> tuple[list[float], list[float]]:
    n = sight.n_tokens
    final = 1.0 if stream.final_scale is None else stream.final_scale**2 / (np.diag(last) + stream.norm_eps)
    arriving: list[np.ndarray] = [np.zeros((n, n)) for _ in range(len(passed) + 1)]
    arriving[-1] = stream.head_gradient**2 * np.eye(n) * final
    skipped = np.ones(n)  # the energy of each token's gradient that kept to the skips
    transmissions = [1.0]
    for index in reversed(range(len(passed))):
        add, at = stream.adds[index], passed[index]
        is_in, is_out = add.placement in ("pre", "double"), add.placement in ("double", "reordered")
        on_stream = add.stream_scale**2 / at.sum if add.placement == "post" else np.ones(n)
        gradient = arriving[index + 1] * outer(on_stream)
        skipped = skipped * on_stream * add.skip_scale**2
        transmissions.append(float(np.sqrt(skipped.mean())))
        entering = add.write_scale**2 * (gradient / outer(at.branch) if is_out else gradient)
        back = np.sum(
            [
                attended_back(b, entering, at.read, w, sight)
                if isinstance(b, Attention) and w is not None
                else _hidden_back(b, entering, at.read)
                for b, w in zip(add.branches, at.weights, strict=True)
            ],
            axis=0,
        )
        back = add.input_scale**2 * (back / outer(at.source) if is_in else back)
        arriving[index] = arriving[index] + add.skip_scale**2 * gradient
        below = max(0, index + 1 - add.reads)
        arriving[below] = arriving[below] + back
    return [float(np.sqrt(np.diag(m).mean())) for m in arriving], transmissions[::-1]


def _units(mlp: Mlp, read: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the variance of a hidden unit before the activation, (tokens,), and correlations, (token, token)."""
    whole = mlp.input_gain * read + mlp.input_bias_energy
    variance = np.diag(whole)
    correlation = np.clip(whole / outer(variance), -1.0, 1.0)
    np.fill_diagonal(correlation, 1.0)
    return variance, correlation


def hidden_rms(mlp: Mlp, read_rms: float) -> float:
    """Return the RMS of an MLP's hidden layer, behind activation and gate, where it reads tokens of ``read_rms``."""
    read = np.array([[read_rms**2]])
    gate = 1.0 if mlp.gate_gain is None else mlp.gate_gain * read_rms**2
    return float(np.sqrt(gate * MOMENTS[mlp.activation](*_units(mlp, read))[0, 0]))


def _hidden(mlp: Attention | Mlp, read: np.ndarray) -> np.ndarray:
    """Return the second moments of what an MLP gives, (token, token)."""
    assert isinstance(mlp, Mlp)
    moment = MOMENTS[mlp.activation](*_units(mlp, read))
    gated = moment if mlp.gate_gain is None else moment * mlp.gate_gain * read
    whole: np.ndarray = mlp.output_gain * gated + mlp.bias_energy
    return whole


def _hidden_back(mlp: Attention | Mlp, arriving: np.ndarray, read: np.ndarray) -> np.ndarray:
    """Return what comes back to an MLP's input, (token, token)."""
    assert isinstance(mlp, Mlp)
    units = _units(mlp, read)
    slope = mlp.input_gain * SLOPES[mlp.activation](*units)
    if mlp.gate_gain is not None:
        slope = mlp.gate_gain * (slope * read + MOMENTS[mlp.activation](*units))
    whole: np.ndarray = mlp.output_gain * arriving * slope
    return whole
