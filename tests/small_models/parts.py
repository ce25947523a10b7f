"""The parts that the small models are put together from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

WIDTH, LENGTH, HEADS, TOKENS = 16, 11, 2, 23


def batch(n: int = 2) -> Tensor:
    """Return token ids, the same at every call."""
    return torch.randint(0, TOKENS, (n, LENGTH), generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Causal self attention; ``source`` gives keys and values where they come from elsewhere."""

    def __init__(self, width: int = WIDTH, *, bias: bool = True, causal: bool = True) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.out = nn.Linear(width, width, bias=bias)
        self.causal = causal

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        other = x if source is None else source
        q, k, v = (self._split(part) for part in (self.query(x), self.key(other), self.value(other)))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal and source is None)
        return self.out(y.transpose(1, 2).reshape(x.shape))

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)


class Mlp(nn.Module):
    """Two projections and a GELU between them."""

    def __init__(self, width: int = WIDTH, *, bias: bool = True) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Gated(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, 24, bias=False) for _ in range(2))
        self.down = nn.Linear(24, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class HandNorm(nn.Module):
    """LayerNorm written out, under a name that gives nothing away."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(width)), nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * self.a + self.b


def rms(x: Tensor) -> Tensor:
    """RMSNorm as a function."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Model(nn.Module):
    """Token and position embeddings, blocks, final norm, head."""

    def __init__(
        self, block: Callable[[], nn.Module], n_blocks: int = 3, *, final: Callable[[int], nn.Module] = nn.LayerNorm
    ) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(n_blocks))
        self.final, self.head = final(WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        return self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.final(x))


class Block(nn.Module):
    """A block whose forward a subclass writes: two norms, attention, MLP."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.n1, self.n2, self.n3, self.n4 = (norm(WIDTH) for _ in range(4))
        self.attention, self.mlp = Attention(), Mlp()


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Return the model with fixed weights, gains and biases away from one and zero."""
    torch.manual_seed(1)
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 and parameter.is_floating_point():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model
