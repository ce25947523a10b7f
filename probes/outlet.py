"""Describe what stands behind the last state of a stack: its final norm, and the logits that it ends in."""

from __future__ import annotations

from dataclasses import dataclass

from .point import Point


@dataclass(frozen=True)
class Outlet:
    """The way out of a stack.

    Attributes:
        norm_path: the final norm, between the last state and whatever reads the stack; "" where it is written out in calls
            of its own, None where there is none.
        norm_kind: layernorm, rmsnorm or none.
        norm: where its output is seen.
        is_direct: whether the final norm alone reads the last state, all of it: the last state's gradient is then the gradient
            at the norm's input.
        has_logits: whether logits are made from this stack: what a last projection gives, of another width than the stream,
            and the model returns or makes its loss of.
        logits: where they are seen, as the model returns them where it does.
        partial: which of ``final_norm`` and ``logits`` are seen as a copy or another view alone: the gradient there is a part.
    """

    norm_path: str | None = None
    norm_kind: str = "none"
    norm: Point | None = None
    is_direct: bool = False
    has_logits: bool = False
    logits: Point | None = None
    partial: tuple[str, ...] = ()
