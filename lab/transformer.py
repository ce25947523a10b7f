"""The reference transformer: plain torch, one class a screen, every choice read from its architecture."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .architecture import Architecture

NORM_EPS = 1e-6
_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "swiglu": nn.SiLU}


class Output(NamedTuple):
    """What the model returns: ``logits`` (batch, position, vocabulary) and, with targets, the scalar ``loss``."""

    logits: Tensor
    loss: Tensor | None


class Attention(nn.Module):
    """Causal multi-head attention, input and output (batch, position, width)."""

    def __init__(self, architecture: Architecture) -> None:
        """Make the four projections and the dropout after the last."""
        super().__init__()
        width, bias = architecture.width, architecture.biases
        self.n_heads = architecture.n_heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)
        self.output = nn.Linear(width, width, bias=bias)
        self.query_norm, self.key_norm = (
            norm(architecture, width // architecture.n_heads) if architecture.qk_norm else nn.Identity()
            for _ in range(2)
        )
        self.dropout = nn.Dropout(architecture.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each position gathers from those up to it."""
        batch, length, width = x.shape
        heads = (batch, length, self.n_heads, width // self.n_heads)
        q, k, v = (project(x).view(heads).transpose(1, 2) for project in (self.query, self.key, self.value))
        q, k = self.query_norm(q), self.key_norm(k)
        gathered = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        y: Tensor = self.dropout(self.output(gathered.transpose(1, 2).reshape(batch, length, width)))
        return y


class MLP(nn.Module):
    """Two projections with an activation between, and a gate beside the first where the architecture has one."""

    def __init__(self, architecture: Architecture) -> None:
        """Make the projections and the dropout after the last."""
        super().__init__()
        self.up = nn.Linear(architecture.width, architecture.hidden, bias=architecture.biases)
        self.gate = (
            nn.Linear(architecture.width, architecture.hidden, bias=architecture.biases)
            if architecture.activation == "swiglu"
            else None
        )
        self.activation = _ACTIVATIONS[architecture.activation]()
        self.down = nn.Linear(architecture.hidden, architecture.width, bias=architecture.biases)
        self.dropout = nn.Dropout(architecture.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the MLP of every position."""
        hidden = self.activation(self.up(x))
        y: Tensor = self.dropout(self.down(hidden if self.gate is None else hidden * self.gate(x)))
        return y


class Block(nn.Module):
    """One attention and one MLP branch, normed where the architecture says."""

    def __init__(self, architecture: Architecture) -> None:
        """Make the branches and their norms; a placement that norms nothing at a place has the identity there."""
        super().__init__()
        placement = architecture.norm_placement
        self.attention, self.mlp = Attention(architecture), MLP(architecture)
        self.is_parallel, self.skip_scale = architecture.is_parallel, architecture.skip_scale
        before, after = placement in ("pre", "double"), placement in ("double", "reordered")
        self.attention_in, self.mlp_in = (norm(architecture) if before else nn.Identity() for _ in range(2))
        self.attention_out, self.mlp_out = (norm(architecture) if after else nn.Identity() for _ in range(2))
        self.attention_post, self.mlp_post = (
            norm(architecture) if placement == "post" else nn.Identity() for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the next state of the stream, (batch, position, width)."""
        if self.is_parallel:
            y: Tensor = x + self.attention(self.attention_in(x)) + self.mlp(self.mlp_in(x))
            return y
        skip = x if self.skip_scale == 1 else self.skip_scale * x
        x = self.attention_post(skip + self.attention_out(self.attention(self.attention_in(x))))
        skip = x if self.skip_scale == 1 else self.skip_scale * x
        z: Tensor = self.mlp_post(skip + self.mlp_out(self.mlp(self.mlp_in(x))))
        return z


class ReferenceTransformer(nn.Module):
    """A decoder-only language model; ``forward(tokens, targets)`` returns ``Output``."""

    def __init__(self, architecture: Architecture, seed: int = 0) -> None:
        """Build and initialise from ``seed``, without touching the global random state."""
        super().__init__()
        self.architecture = architecture
        # torch's layers draw their default weights from the global state before ours replace them.
        with torch.random.fork_rng(devices=[]):
            self.token_embedding = nn.Embedding(architecture.vocabulary, architecture.width)
            self.position_embedding = nn.Embedding(architecture.context, architecture.width)
            self.blocks = nn.ModuleList(Block(architecture) for _ in range(architecture.n_blocks))
            self.final_norm = nn.Identity() if architecture.norm_placement == "post" else norm(architecture)
            self.head = nn.Linear(architecture.width, architecture.vocabulary, bias=False)
        self._initialise(torch.Generator().manual_seed(seed))

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Output:
        """Return logits of the next token, and the mean cross-entropy where ``targets`` (batch, position) are given."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.final_norm(x))
        loss = None if targets is None else functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return Output(logits, loss)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """Draw every matrix; biases start at 0 and gains at 1."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
                continue
            std = self.architecture.init_std
            if self.architecture.init == "xavier" and "embedding" in name:
                std = math.sqrt(0.5)  # two embeddings are summed: state 0 has unit variance
            elif self.architecture.init == "xavier" and not name.startswith("head"):
                std = math.sqrt(2 / sum(parameter.shape))
            parameter.normal_(0.0, std * self._depth_factor(name), generator=generator)

    def _depth_factor(self, name: str) -> float:
        """Return by what the depth scales the init of a matrix (Radford et al. 2019; Wang et al. 2022, DeepNet)."""
        scaling, depth = self.architecture.depth_scaling, self.architecture.n_blocks
        if scaling == "gpt2" and name.endswith(("output.weight", "down.weight")):
            return math.sqrt(1 / (2 * depth))
        is_deep = scaling == "deepnorm" and (".mlp." in name or name.endswith(("value.weight", "output.weight")))
        return math.sqrt(math.sqrt(1 / (8 * depth))) if is_deep else 1.0


def norm(architecture: Architecture, width: int = 0) -> nn.Module:
    """Return one norm over ``width``, 0 for that of the stream."""
    width = width or architecture.width
    if architecture.norm_kind == "rmsnorm":
        return nn.RMSNorm(width, eps=NORM_EPS)
    return nn.LayerNorm(width, eps=NORM_EPS, bias=architecture.biases)
