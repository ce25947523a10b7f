"""Blocks that differ in where the stream is normed and what is summed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .parts import WIDTH, Block, Gated, HandNorm, Mlp, rms


class Pre(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.n1(x))
        return x + self.mlp(self.n2(x))


class HandPre(Pre):
    def __init__(self) -> None:
        super().__init__(HandNorm)


class RmsPre(Pre):
    def __init__(self) -> None:
        super().__init__(nn.RMSNorm)
        self.mlp = Gated()


class Post(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.n1(x + self.attention(x))
        return self.n2(x + self.mlp(x))


class Double(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.n2(self.attention(self.n1(x)))
        return x + self.n4(self.mlp(self.n3(x)))


class Reordered(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.n1(self.attention(x))
        return x + self.n2(self.mlp(x))


class NoNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.3 * self.attention(x)
        return x + 0.3 * self.mlp(x)


class Parallel(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.n1(x)
        return x + self.attention(y) + self.mlp(y)


class ParallelOneSum(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.n1(x)
        return x + (self.attention(y) + self.mlp(y))


class ParallelStack(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.n1(x)
        return torch.stack([x, self.attention(y), self.mlp(y)]).sum(0)


class FunctionalPre(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(rms(x))
        return x + self.mlp(rms(x))


class FunctionalPost(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x + self.attention(x), (WIDTH,))
        return F.layer_norm(x + self.mlp(x), (WIDTH,))


class DeepNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.n1(1.7 * x + self.attention(x))
        return self.n2(1.7 * x + self.mlp(x))


class LayerScale(Block):
    def __init__(self) -> None:
        super().__init__()
        self.g1, self.g2 = nn.Parameter(torch.full((WIDTH,), 0.2)), nn.Parameter(torch.full((WIDTH,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.g1 * self.attention(self.n1(x))
        return x + self.g2 * self.mlp(self.n2(x))


class AddCMul(LayerScale):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.addcmul(x, self.g1, self.attention(self.n1(x)))
        return torch.addcmul(x, self.g2, self.mlp(self.n2(x)))


class ReZero(Block):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.4))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x) * self.a
        return x + self.mlp(x) * self.a


class FusedAddNorm(Block):
    """Carries (branch output, residual), as fused add-norm kernels do."""

    def forward(self, pair: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
        y, residual = pair
        residual = y if residual is None else y + residual
        y = self.attention(self.n1(residual))
        residual = y + residual
        return self.mlp(self.n2(residual)), residual


class FusedProduct(Block):
    """Adds the residual inside the last projection's kernel."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.n1(x))
        hidden = F.gelu(self.mlp.up(self.n2(x))).flatten(0, 1)
        return torch.addmm(x.flatten(0, 1), hidden, self.mlp.down.weight.t()).view_as(x)


class ThreeBranches(Block):
    def __init__(self) -> None:
        super().__init__()
        self.other = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.n1(x))
        x = x + self.mlp(self.n2(x))
        return x + self.other(self.n3(x))


class Macaron(Block):
    """Half-step MLPs around attention, and a norm of the stream at the end: the conformer's block."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.first(self.n1(x))
        x = x + self.attention(self.n2(x))
        x = x + 0.5 * self.mlp(self.n3(x))
        return self.n4(x)


class Inner(Block):
    """A residual network inside the branch: no stream of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.m1, self.m2, self.m3 = Mlp(), Mlp(), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.n1(x))
        h = self.n2(x)
        for inner in (self.m1, self.m2, self.m3):
            h = h + inner(h)
        return x + self.mlp(h)


class QkNormGroupedCapped(nn.Module):
    """Attention with normed queries and keys, shared key-value heads, a soft cap, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)
        self.out, self.qn, self.kn = nn.Linear(16, WIDTH), nn.RMSNorm(4), nn.RMSNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.qn(self.q(x).view(b, t, 4, 4)).transpose(1, 2)
        k = self.kn(self.k(x).view(b, t, 2, 4)).transpose(1, 2).repeat_interleave(2, 1)
        v = self.v(x).view(b, t, 2, 4).transpose(1, 2).repeat_interleave(2, 1)
        logits = 30.0 * torch.tanh(q @ k.transpose(-1, -2) / 2.0 / 30.0)
        mask = torch.ones(t, t, dtype=torch.bool).triu(1)
        shares = logits.masked_fill(mask, float("-inf")).softmax(-1)
        return self.out((shares @ v).transpose(1, 2).reshape(b, t, 16))


class Capped(Block):
    def __init__(self) -> None:
        super().__init__()
        self.attention = QkNormGroupedCapped()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.n1(x))
        return x + self.mlp(self.n2(x))


__all__ = [name for name in dir() if name[0].isupper() and name not in ("Attention", "Block", "Tensor")]
