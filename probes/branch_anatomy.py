"""Describe what is inside a branch: its matrices, its heads, its hidden layer."""

from __future__ import annotations

from dataclasses import dataclass

from .point import Point


@dataclass(frozen=True)
class Projection:
    """One matrix of a branch.

    Attributes:
        weight: name of its parameter.
        bias: name of the bias that is added to its result, None without one.
    """

    weight: str
    bias: str | None = None


@dataclass(frozen=True)
class AttentionAnatomy:
    """What behaviour tells of an attention branch; None, or "unknown", where it does not settle it.

    Attributes:
        n_heads: heads of queries.
        n_key_value_heads: heads of keys and values.
        head_size: width of a head.
        qk_norm: kind of the norm of queries and keys, none without one.
        soft_cap: bound of tanh-capped logits, None without one.
        reason: why something is unknown, in a sentence.
    """

    n_heads: int | None = None
    n_key_value_heads: int | None = None
    head_size: int | None = None
    qk_norm: str = "unknown"
    soft_cap: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class HiddenAnatomy:
    """What behaviour tells of a feed-forward branch; None, or "unknown", where it does not settle it.

    Attributes:
        width: d_ff, the size of the hidden layer (of one expert).
        is_gated: whether the hidden layer is a product of two projections of the same input.
        activation: the torch function between the projections: gelu, silu, relu...
        reason: why something is unknown, in a sentence.
        point: where the hidden layer is seen, as the activation function or the gate gives it: before a dropout on it.
    """

    width: int | None = None
    is_gated: bool | None = None
    activation: str = "unknown"
    reason: str = ""
    point: Point | None = None
