"""Fix every design choice of the reference transformer as a field of one value."""

from __future__ import annotations

from dataclasses import dataclass

from rheoscope.probes.errors import LabError

_CHOICES = {
    "norm_placement": ("pre", "post", "double", "reordered"),
    "norm_kind": ("layernorm", "rmsnorm"),
    "activation": ("relu", "gelu", "silu", "swiglu"),
    "init": ("normal", "xavier"),
    "depth_scaling": ("none", "gpt2", "deepnorm"),
}


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer with learned positions.

    Attributes:
        n_blocks: blocks of one attention and one MLP branch.
        width: size of the residual stream.
        n_heads: attention heads; they divide the width.
        mlp_width: hidden units of an MLP; 0 for 4 x width, 8/3 x width with a gate.
        vocabulary: number of tokens.
        context: most positions.
        norm_placement: pre, post, double or reordered; post has no final norm, the others have one.
        norm_kind: layernorm or rmsnorm.
        biases: whether projections and LayerNorms have biases; the head never has one.
        activation: relu, gelu (exact), silu or swiglu (SiLU times a gate).
        is_parallel: attention and MLP read the same state and are added at once; pre-norm only.
        init: normal (every matrix N(0, init_std^2)) or xavier (each matrix its Xavier-normal std; embeddings N(0, 1)).
        init_std: of the normal init, and of the head in both.
        dropout: after each branch.
        qk_norm: whether the queries and keys of each head are normed.
        depth_scaling: gpt2 (last projections of std / sqrt(2 x blocks) at init), deepnorm (skips times (2 x blocks)^(1/4);
            values, last projections and MLPs of std / (8 x blocks)^(1/4); post-norm only) or none.

    Raises:
        LabError: two fields contradict each other, or one has no known value.
    """

    n_blocks: int = 12
    width: int = 128
    n_heads: int = 4
    mlp_width: int = 0
    vocabulary: int = 256
    context: int = 64
    norm_placement: str = "pre"
    norm_kind: str = "layernorm"
    biases: bool = True
    activation: str = "gelu"
    is_parallel: bool = False
    init: str = "normal"
    init_std: float = 0.02
    dropout: float = 0.0
    qk_norm: bool = False
    depth_scaling: str = "none"

    def __post_init__(self) -> None:
        """Check every field."""
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise LabError(f"Expected {name} to be one of {known}, got {getattr(self, name)!r}. Pass one of these.")
        for name in ("n_blocks", "width", "n_heads", "vocabulary", "context"):
            if getattr(self, name) < 1:
                raise LabError(f"Expected {name} >= 1, got {getattr(self, name)}. Pass a positive number.")
        if self.width % self.n_heads:
            raise LabError(
                f"Expected n_heads to divide width, got n_heads={self.n_heads} and width={self.width}. "
                f"Pass n_heads among the divisors of {self.width}."
            )
        if self.is_parallel and self.norm_placement != "pre":
            raise LabError(
                f"Expected is_parallel only with norm_placement='pre', got {self.norm_placement!r}. Set one or the other."
            )
        if self.depth_scaling == "deepnorm" and self.norm_placement != "post":
            raise LabError(
                f"Expected depth_scaling='deepnorm' only with norm_placement='post', got {self.norm_placement!r}. Set one or the "
                "other."
            )
        if not 0 <= self.dropout < 1:
            raise LabError(f"Expected 0 <= dropout < 1, got {self.dropout}. Pass a share.")

    @property
    def hidden(self) -> int:
        """Hidden units of an MLP."""
        return self.mlp_width or (8 * self.width // 3 if self.activation == "swiglu" else 4 * self.width)

    @property
    def skip_scale(self) -> float:
        """Factor of the skip in every add."""
        return (2 * self.n_blocks) ** 0.25 if self.depth_scaling == "deepnorm" else 1.0
