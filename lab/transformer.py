"""The reference transformer: plain torch, one class a screen, every choice read from its architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .architecture import GATED, Architecture
from .attention import Attention
from .init import initialise
from .norms import norm
from .positions import sinusoidal

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "squared_relu": lambda x: functional.relu(x).square(),
    "glu": torch.sigmoid,
    "reglu": functional.relu,
    "geglu": functional.gelu,
    "swiglu": functional.silu,
}


class Output(NamedTuple):
    """What the model returns: ``logits`` (batch, position, vocabulary) and, with targets, the scalar ``loss``."""

    logits: Tensor
    loss: Tensor | None


class MLP(nn.Module):
    """Two projections with an activation between, and a gate beside the first where the architecture has one."""

    def __init__(self, architecture: Architecture) -> None:
        """Make the projections and the dropout after the last."""
        super().__init__()
        width, hidden, bias = architecture.width, architecture.hidden, architecture.has_bias("mlp")
        self.up = nn.Linear(width, hidden, bias=bias)
        self.gate = nn.Linear(width, hidden, bias=bias) if architecture.activation in GATED else None
        self.activation = _ACTIVATIONS[architecture.activation]
        self.down = nn.Linear(hidden, width, bias=bias)
        self.dropout = nn.Dropout(architecture.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the MLP of every position."""
        hidden = self.activation(self.up(x))
        y: Tensor = self.dropout(self.down(hidden if self.gate is None else hidden * self.gate(x)))
        return y


class Block(nn.Module):
    """One attention and one MLP branch, with cross attention between them behind an encoder, normed as the architecture says."""

    def __init__(
        self, architecture: Architecture, index: int = 0, *, is_encoder: bool = False, reads_source: bool = False
    ) -> None:
        """Make the branches and their norms; a placement that norms nothing at a place has the identity there.

        Args:
            architecture: of the model.
            index: of the block in its stack.
            is_encoder: whether every position sees all others.
            reads_source: whether it has cross attention.
        """
        super().__init__()
        self.is_parallel = architecture.is_parallel
        self.skip_scale = architecture.deepnorm(of_encoder=is_encoder)[0]
        self.norm_scale = (1 + index) ** -0.5 if architecture.depth_scaling == "layernorm" else 1.0
        self.attention = Attention(architecture, is_causal=not is_encoder)
        self._add_norms("attention", architecture, architecture.norm_placement)
        self.cross = Attention(architecture, is_cross=True) if reads_source else None
        if reads_source:
            self._add_norms("cross", architecture, architecture.norm_placement)
        self.mlp = MLP(architecture)
        self._add_norms("mlp", architecture, architecture.placement_of_mlp)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """Return the next state of the stream, (batch, position, width)."""
        if self.is_parallel:
            reads = [self.get_submodule(f"{name}_in")(x) for name in ("attention", "mlp")]
            y: Tensor = x + self.attention(reads[0]) + self.mlp(reads[1])
            return y
        x = self._added("attention", x, self.attention)
        if self.cross is not None:
            x = self._added("cross", x, self.cross, source)
        return self._added("mlp", x, self.mlp)

    def _added(self, name: str, x: Tensor, branch: nn.Module, *more: Tensor | None) -> Tensor:
        before, after, behind = (self.get_submodule(f"{name}_{place}") for place in ("in", "out", "post"))
        read = before(x) if self.norm_scale == 1 else self.norm_scale * before(x)
        skip = x if self.skip_scale == 1 else self.skip_scale * x
        y: Tensor = behind(skip + after(branch(read, *more)))
        return y

    def _add_norms(self, name: str, architecture: Architecture, placement: str) -> None:
        places = {"in": ("pre", "double"), "out": ("double", "reordered"), "post": ("post",)}
        for place, having in places.items():
            self.add_module(f"{name}_{place}", norm(architecture) if placement in having else nn.Identity())


class ReferenceTransformer(nn.Module):
    """A language model; ``forward(tokens, targets)`` returns ``Output``."""

    def __init__(self, architecture: Architecture, seed: int = 0) -> None:
        """Build and initialise from ``seed``, without touching the global random state."""
        super().__init__()
        self.architecture = architecture
        n_encoder = architecture.n_encoder_blocks
        # torch's layers draw their default weights from the global state before ours replace them.
        with torch.random.fork_rng(devices=[]):
            self.token_embedding = nn.Embedding(architecture.vocabulary, architecture.width)
            if architecture.positions == "learned":
                self.position_embedding = nn.Embedding(architecture.context, architecture.width)
            self.encoder = nn.ModuleList(Block(architecture, k, is_encoder=True) for k in range(n_encoder))
            self.encoder_norm = norm(architecture) if n_encoder and architecture.has_final_norm else nn.Identity()
            self.blocks = nn.ModuleList(
                Block(architecture, k, reads_source=n_encoder > 0) for k in range(architecture.n_blocks)
            )
            self.final_norm = norm(architecture) if architecture.has_final_norm else nn.Identity()
            self.head = nn.Linear(architecture.width, architecture.vocabulary, bias=False)
        if architecture.ties_embeddings:
            self.head.weight = self.token_embedding.weight
        initialise(self, architecture, torch.Generator().manual_seed(seed))

    def forward(self, tokens: Tensor, targets: Tensor | None = None, source: Tensor | None = None) -> Output:
        """Return logits of the next token, and the loss where ``targets`` (batch, position) are given.

        Args:
            tokens: token ids, shape (batch, position).
            targets: what is to follow each of them; the loss is the mean cross-entropy, and the z-loss where there is one.
            source: token ids that the encoder reads; the decoder's own where none are given.
        """
        read = None
        if len(self.encoder):
            read = self._embedded(tokens if source is None else source)
            for block in self.encoder:
                read = block(read)
            read = self.encoder_norm(read)
        x = self._embedded(tokens)
        for block in self.blocks:
            x = block(x, read)
        logits: Tensor = self.head(self.final_norm(x))
        if self.architecture.logit_soft_cap:
            logits = self.architecture.logit_soft_cap * torch.tanh(logits / self.architecture.logit_soft_cap)
        return Output(logits, None if targets is None else self._loss(logits, targets))

    def _embedded(self, tokens: Tensor) -> Tensor:
        design = self.architecture
        x: Tensor = self.token_embedding(tokens)
        if design.embedding_scale != 1:
            x = design.embedding_scale * x
        if design.positions == "learned":
            x = x + self.position_embedding(torch.arange(tokens.shape[1], device=tokens.device))
        elif design.positions == "sinusoidal":
            x = x + sinusoidal(tokens.shape[1], design.width).to(x)
        return x

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        if self.architecture.z_loss:
            loss = loss + self.architecture.z_loss * logits.logsumexp(-1).square().mean()
        return loss


__all__ = ["MLP", "Attention", "Block", "Output", "ReferenceTransformer", "norm"]
