"""Put what is inside branches, and what the model does with positions, into words."""

from __future__ import annotations

from collections.abc import Iterator

from rheoscope.probes.anatomy import Anatomy, Branch

from .theme import number, plain

_NORMS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}
_POSITIONS = {
    "learned": "learned positions",
    "sinusoidal": "sine and cosine positions",
    "rotary": "rotary positions",
    "alibi": "ALiBi",
    "relative": "relative positions",
    "none": "no positions",
}


def inside_of(branch: Branch) -> Iterator[str]:
    """Yield what a reader wants to know of the inside of a branch, in a few words each."""
    if branch.scale != 1:
        yield f"skip × {number(branch.scale)}"
    attention, hidden = branch.attention, branch.hidden
    if attention is not None:
        if attention.n_heads:
            size = f" of {attention.head_size}" if attention.head_size else ""
            shared = attention.n_key_value_heads not in (None, attention.n_heads)
            yield f"{attention.n_heads} heads{size}" + (
                f", {attention.n_key_value_heads} for keys and values" if shared else ""
            )
        if attention.qk_norm in _NORMS:
            yield f"QK-{_NORMS[attention.qk_norm]}"
        if attention.soft_cap:
            yield f"logits capped at {number(attention.soft_cap)}"
    if hidden is not None and hidden.width:
        gate = "gated " if hidden.is_gated else ""
        activation = plain(hidden.activation) if hidden.activation != "unknown" else "activation unknown"
        yield f"{hidden.width} wide, {gate}{activation}"


def details(anatomy: Anatomy) -> Iterator[str]:
    """Yield sentences on positions, causality, ties, vocabulary and dropout; what is unknown is said to be."""
    if not anatomy.stacks:
        return
    invariant = {True: ", attention depends on relative position alone", False: ", absolute position matters", None: ""}
    known = _POSITIONS.get(anatomy.positions, "positions unknown")
    yield f"{known[0].upper()}{known[1:]}{invariant[anatomy.is_shift_invariant]}."
    causal = {True: "causal", False: "not causal", None: "causality not settled"}
    names = [causal[stack.is_causal] for stack in anatomy.stacks]
    if len(set(names)) == 1:
        yield f"{names[0][0].upper()}{names[0][1:]}."
    else:
        yield (
            "; ".join(
                f"stack {stack.index} {name}" for stack, name in zip(anatomy.stacks, names, strict=True)
            ).capitalize()
            + "."
        )
    if anatomy.vocabulary:
        ties = {True: ", embeddings tied", False: ", embeddings not tied", None: ""}[anatomy.ties_embeddings]
        yield f"Vocabulary {anatomy.vocabulary:,}{ties}."
    if anatomy.dropout:
        yield f"Dropout {', '.join(number(p) for p in anatomy.dropout)}."
