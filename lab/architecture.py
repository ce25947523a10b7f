"""Fix every design choice of the reference transformer as a field of one value."""

from __future__ import annotations

from dataclasses import dataclass

from rheoscope.probes.errors import LabError

GATED = {"glu", "reglu", "geglu", "swiglu"}
_PLACEMENTS = ("pre", "post", "double", "reordered", "none")
_CHOICES = {
    "norm_placement": _PLACEMENTS,
    "mlp_norm_placement": ("", *_PLACEMENTS),
    "norm_kind": ("layernorm", "rmsnorm", "layernorm_by_hand", "rmsnorm_by_hand"),
    "activation": ("relu", "gelu", "silu", "squared_relu", "glu", "reglu", "geglu", "swiglu"),
    "positions": ("none", "learned", "sinusoidal", "rotary", "alibi"),
    "init": ("normal", "xavier", "lecun"),
    "depth_scaling": ("none", "gpt2", "deepnorm", "layernorm"),
}
_POSITIVE = ("n_blocks", "width", "n_heads", "vocabulary", "context")
_NOT_NEGATIVE = ("mlp_width", "n_key_value_heads", "head_size", "window", "n_encoder_blocks", "z_loss", "norm_eps")


@dataclass(frozen=True)
class Architecture:
    """A transformer: a decoder, or an encoder and a decoder.

    Attributes:
        n_blocks: blocks of one attention and one MLP branch; of the decoder, which has cross attention too behind an encoder.
        width: size of the residual stream.
        n_heads: attention heads; they divide the width unless ``head_size`` is given.
        mlp_width: hidden units of an MLP; 0 for 4 x width, 8/3 x width with a gate (as many parameters).
        vocabulary: number of tokens.
        context: most positions.
        norm_placement: pre, post, double, reordered or none. A stack that ends in a post-norm, or has none, has no final norm.
        norm_kind: layernorm or rmsnorm; with ``_by_hand`` the same written out, forward and backward.
        biases: whether projections and LayerNorms have biases; the head never has one.
        activation: relu, gelu (exact), silu, squared_relu; or with a gate: glu (sigmoid), reglu, geglu, swiglu.
        is_parallel: attention and MLP read the same state and are added at once; pre-norm only.
        init: normal (every matrix N(0, init_std^2)), xavier (Gaussians of variance 2 / (fan-in + fan-out)) or lecun (1 / fan-in);
            the latter two with embeddings whose sum has unit variance.
        init_std: of the normal init, and of the head in all.
        dropout: after each branch.
        qk_norm: whether the queries and keys of each head are normed.
        depth_scaling: gpt2 (last projections of std / sqrt(2 x blocks) at init), deepnorm (skips times alpha; values, last
            projections and MLPs times beta at init; post-norm only), layernorm (what the k-th block's norms give, over sqrt(k);
            pre-norm only) or none.
        mlp_norm_placement: of MLP branches where it is another; "" for the same.
        norm_gain: whether norms have gains, and LayerNorms with them biases.
        norm_eps: added to a norm's variance.
        attention_biases: of query, key and value projections; None as ``biases``, and so the next three.
        output_biases: of attention's last projection.
        mlp_biases: of an MLP's projections.
        norm_biases: of LayerNorms.
        positions: learned (added), sinusoidal (added), rotary, alibi or none.
        n_key_value_heads: heads of keys and values, which several heads of queries share; 0 for as many as those.
        head_size: width of a head; 0 for width / n_heads.
        window: how many positions back attention sees, its own among them; 0 for all.
        attention_soft_cap: logits of attention become cap x tanh(logits / cap); 0 for none.
        logit_soft_cap: the same for the head's logits.
        z_loss: the loss grows by this times the mean of log Z squared.
        ties_embeddings: whether the head is the token embedding.
        embedding_scale: token embeddings are multiplied by it.
        embedding_std: of the embeddings at init; 0 for that of the init.
        n_encoder_blocks: blocks of an encoder that the decoder's blocks attend to; 0 for a decoder alone.

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
    mlp_norm_placement: str = ""
    norm_gain: bool = True
    norm_eps: float = 1e-6
    attention_biases: bool | None = None
    output_biases: bool | None = None
    mlp_biases: bool | None = None
    norm_biases: bool | None = None
    positions: str = "learned"
    n_key_value_heads: int = 0
    head_size: int = 0
    window: int = 0
    attention_soft_cap: float = 0.0
    logit_soft_cap: float = 0.0
    z_loss: float = 0.0
    ties_embeddings: bool = False
    embedding_scale: float = 1.0
    embedding_std: float = 0.0
    n_encoder_blocks: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise LabError(f"Expected {name} to be one of {known}, got {getattr(self, name)!r}. Pass one of these.")
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise LabError(f"Expected {name} >= 1, got {getattr(self, name)}. Pass a positive number.")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise LabError(f"Expected {name} >= 0, got {getattr(self, name)}. Pass 0 or a positive number.")
        if not 0 <= self.dropout < 1:
            raise LabError(f"Expected 0 <= dropout < 1, got {self.dropout}. Pass a share.")
        self._check_heads()
        self._check_placements()

    def _check_heads(self) -> None:
        if not self.head_size and self.width % self.n_heads:
            raise LabError(
                f"Expected n_heads to divide width, got n_heads={self.n_heads} and width={self.width}. "
                f"Pass n_heads among the divisors of {self.width}, or a head_size."
            )
        if self.n_heads % self.n_shared_heads:
            raise LabError(
                f"Expected n_key_value_heads to divide n_heads, got n_key_value_heads={self.n_key_value_heads} and "
                f"n_heads={self.n_heads}. Pass one of the divisors of {self.n_heads}."
            )
        if self.positions == "rotary" and self.size_of_head % 2:
            raise LabError(
                f"Expected heads of even size with positions='rotary', got {self.size_of_head}. Pass another width or head_size."
            )

    def _check_placements(self) -> None:
        both = {self.norm_placement, self.placement_of_mlp}
        for name, wanted in (
            ("is_parallel", "pre"),
            ("depth_scaling='deepnorm'", "post"),
            ("depth_scaling='layernorm'", "pre"),
        ):
            field, _, value = name.partition("=")
            is_set = getattr(self, field) == value.strip("'") if value else getattr(self, field)
            if is_set and both != {wanted}:
                got = self.norm_placement if len(both) == 1 else " and ".join(sorted(both))
                raise LabError(
                    f"Expected {name} only with norm_placement={wanted!r}, got {got!r}. Set one or the other."
                )
        if self.is_parallel and self.n_encoder_blocks:
            raise LabError(
                "Expected is_parallel only without an encoder, got n_encoder_blocks too. Set one or the other."
            )
        if self.norm_biases and not self.norm_gain:
            raise LabError(
                "Expected norm_biases only with norm_gain, as torch's norms have it, got it without. Set one or the other."
            )

    @property
    def hidden(self) -> int:
        """Hidden units of an MLP."""
        return self.mlp_width or (8 * self.width // 3 if self.activation in GATED else 4 * self.width)

    @property
    def size_of_head(self) -> int:
        """Width of a head."""
        return self.head_size or self.width // self.n_heads

    @property
    def n_shared_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_key_value_heads or self.n_heads

    @property
    def placement_of_mlp(self) -> str:
        """Where MLP branches are normed."""
        return self.mlp_norm_placement or self.norm_placement

    @property
    def has_final_norm(self) -> bool:
        """Whether a norm stands between the last state and the head."""
        return self.placement_of_mlp not in ("post", "none")

    @property
    def skip_scale(self) -> float:
        """Factor of the skip in every add of the (decoder's) blocks: DeepNorm's alpha."""
        return self.deepnorm()[0]

    def deepnorm(self, *, of_encoder: bool = False) -> tuple[float, float]:
        """Return alpha and beta of a stack (Wang et al. 2022, DeepNet, table 1); 1 and 1 without DeepNorm."""
        n, m = self.n_encoder_blocks, self.n_blocks
        if self.depth_scaling != "deepnorm":
            return 1.0, 1.0
        if not n:
            return (2 * m) ** 0.25, (8 * m) ** -0.25
        if of_encoder:
            return 0.81 * (n**4 * m) ** (1 / 16), 0.87 * (n**4 * m) ** (-1 / 16)
        return (3 * m) ** 0.25, (12 * m) ** -0.25

    def has_bias(self, part: str) -> bool:
        """Return whether a ``part`` has biases: attention, output, mlp or norm."""
        own: bool | None = getattr(self, f"{part}_biases")
        return (self.biases if own is None else own) and (part != "norm" or self.norm_gain)
