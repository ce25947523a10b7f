"""Transformers written by hand, whose parts have names that say nothing."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .sizes import HEADS, HIDDEN, LENGTH, VOCABULARY, WIDTH


class Scrambled(nn.Module):
    """Holds its parts under names that say nothing."""

    def __init__(self, chance: random.Random) -> None:
        """Hold nothing yet."""
        super().__init__()
        self.names: dict[str, str] = {}
        self.chance = chance

    def hold(self, role: str, module: nn.Module) -> None:
        """Hold a part under a name drawn at random."""
        name = "".join(self.chance.choices("abcdefghijklmnopqrstuvwxyz", k=6))
        self.names[role] = name
        self.add_module(name, module)

    def part(self, role: str) -> Any:
        """Return the part that plays a role."""
        return self.get_submodule(self.names[role])


class _HandBlock(Scrambled):
    """Pre-norm, attention by einsum; ``style`` changes norm, activation, and where they are."""

    def __init__(self, style: str, chance: random.Random) -> None:
        super().__init__(chance)
        self.style = style
        make = nn.RMSNorm if "rms" in style else nn.LayerNorm
        bias = "rms" not in style
        for role in ("norm 1", "norm 2"):
            self.hold(role, make(WIDTH))
        attention, mlp = _HandAttention(style, bias, chance), _HandMLP(style, bias, chance)
        self.hold("attention", attention)
        self.hold("mlp", mlp)

    def forward(self, x: Tensor) -> Tensor:
        attention, mlp, one, two = (self.part(role) for role in ("attention", "mlp", "norm 1", "norm 2"))
        if "post" in self.style:
            x = one(x + attention(x))
            return two(x + mlp(x))
        x = x + attention(one(x))
        return x + mlp(two(x))


class _HandAttention(Scrambled):
    def __init__(self, style: str, bias: bool, chance: random.Random) -> None:
        super().__init__(chance)
        for role in ("query", "key", "value", "out"):
            self.hold(role, nn.Linear(WIDTH, WIDTH, bias=bias))
        self.is_causal = "bidirectional" not in style

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.part(role)(x).unflatten(-1, (HEADS, -1)) for role in ("query", "key", "value"))
        logits = torch.einsum("bihd,bjhd->bhij", q, k) / (WIDTH // HEADS) ** 0.5
        if self.is_causal:
            n = x.shape[1]
            logits = logits.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
        return self.part("out")(torch.einsum("bhij,bjhd->bihd", logits.softmax(-1), v).flatten(-2))


class _HandMLP(Scrambled):
    def __init__(self, style: str, bias: bool, chance: random.Random) -> None:
        super().__init__(chance)
        self.is_gated = "swiglu" in style
        self.hold("in", nn.Linear(WIDTH, HIDDEN, bias=bias))
        if self.is_gated:
            self.hold("gate", nn.Linear(WIDTH, HIDDEN, bias=bias))
        self.hold("out", nn.Linear(HIDDEN, WIDTH, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.part("in")(x)
        hidden = hidden * functional.silu(self.part("gate")(x)) if self.is_gated else hidden.relu()
        return self.part("out")(hidden)


class HandModel(Scrambled):
    """A language model of such blocks; ``style`` names norm, placement, activation and mask."""

    def __init__(self, style: str, n_blocks: int, chance: random.Random) -> None:
        """Make its parts."""
        super().__init__(chance)
        self.hold("tokens", nn.Embedding(VOCABULARY, WIDTH))
        self.hold("positions", nn.Embedding(LENGTH, WIDTH))
        self.hold("blocks", nn.ModuleList(_HandBlock(style, chance) for _ in range(n_blocks)))
        self.hold("norm", nn.Identity() if "post" in style else nn.LayerNorm(WIDTH))
        self.hold("head", nn.Linear(WIDTH, VOCABULARY, bias=False))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits, (batch, position, vocabulary)."""
        x = self.part("tokens")(input_ids) + self.part("positions")(torch.arange(input_ids.shape[1]))
        for block in self.part("blocks"):
            x = block(x)
        return self.part("head")(self.part("norm")(x))
