"""Blocks that differ in how torch is asked to do the same thing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from .parts import HEADS, LENGTH, TOKENS, WIDTH, Attention, Block, Mlp, Model
from .placements import Pre


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x += self.attention(self.n1(x))
        x.add_(self.mlp(self.n2(x)))
        return x


class InPlaceBranch(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(self.n1(x))
        y += x
        z = self.mlp(self.n2(y))
        z += y
        return z


class SwappedAdd(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.add(self.attention(self.n1(x)), x)
        return self.mlp(self.n2(x)).add(x)


class Subtracting(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x - self.attention(self.n1(x))
        return x - self.mlp(self.n2(x))


class FunctionalDropout(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + F.dropout(self.attention(self.n1(x)), 0.1, self.training)
        return x + F.dropout(self.mlp(self.n2(x)), 0.1, self.training)


class StochasticDepth(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self._dropped(self.attention(self.n1(x)))
        return x + self._dropped(self.mlp(self.n2(x)))

    def _dropped(self, y: Tensor) -> Tensor:
        if not self.training:
            return y
        keep = torch.rand(y.shape[0], 1, 1) < 0.9
        return y / 0.9 * keep


class Checkpointed(Pre):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)  # type: ignore[no-any-return]


class _AddFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor) -> Tensor:
        return one + other

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient


class CustomFunction(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = _AddFunction.apply(x, self.attention(self.n1(x)))
        return _AddFunction.apply(x, self.mlp(self.n2(x)))  # type: ignore[no-any-return]


class Float64Stream(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x.double() + self.attention(self.n1(x.float())).double()
        return x + self.mlp(self.n2(x.float())).double()


class Batched(Model):
    """Carries the stream as (batch * position, width)."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).flatten(0, 1)
        for block in self.blocks:
            y = block.attention(block.n1(x).view(*ids.shape, WIDTH)).flatten(0, 1)
            x = x + y
            x = x + block.mlp(block.n2(x))
        return self.head(self.final(x)).view(*ids.shape, -1)


class TimeFirst(Model):
    """Carries the stream as (position, batch, width)."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).transpose(0, 1).contiguous()
        for block in self.blocks:
            x = x + block.attention(block.n1(x).transpose(0, 1)).transpose(0, 1)
            x = x + block.mlp(block.n2(x))
        return self.head(self.final(x)).transpose(0, 1)


class Planar(nn.Module):
    """Carries the stream as an image (batch, width, height, width), as ViTDet and its relatives do."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, 4)
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(3)), nn.Conv2d(WIDTH, 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image)
        b, c, h, w = x.shape
        for block in self.blocks:
            y = block.n1(x.flatten(2).transpose(1, 2))
            x = x + block.attention(y).transpose(1, 2).reshape(b, c, h, w)
            y = block.n2(x.permute(0, 2, 3, 1))
            x = x + block.mlp(y).permute(0, 3, 1, 2)
        return self.head(x)


class Scripted(nn.Module):
    """Only tensors and modules that TorchScript compiles."""

    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.up, self.down = nn.Linear(LENGTH, LENGTH), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.n1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.down(torch.relu(self.up(self.n2(x))))


class Inline(nn.Module):
    """Everything in one forward, parameters without modules."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.up = nn.ParameterList(nn.Parameter(torch.randn(WIDTH, 32) / 4) for _ in range(3))
        self.down = nn.ParameterList(nn.Parameter(torch.randn(32, WIDTH) / 6) for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens[ids]
        for up, down in zip(self.up, self.down, strict=True):
            x = x + (F.layer_norm(x, (WIDTH,)) @ up).relu() @ down
        return x @ self.tokens.t()


class Shared(Model):
    """One block, called four times (ALBERT)."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for _ in range(4):
            x = self.blocks[0](x)
        return self.head(self.final(x))


class Tupled(Model):
    """Blocks that hand on (branch output, residual)."""

    def forward(self, ids: Tensor) -> Tensor:
        pair = (self.embed(ids), None)
        for block in self.blocks:
            pair = block(pair)
        y, residual = pair
        return self.head(self.final(y + residual))


class Experts(nn.Module):
    """Two of four experts a token, chosen by a router, and one that all tokens pass."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4)
        self.experts, self.always = nn.ModuleList(Mlp() for _ in range(4)), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weights, chosen = self.router(flat).softmax(-1).topk(2)
        result = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == index)
            result = result.index_add(0, rows, expert(flat[rows]) * weights[rows, place, None])
        return (result + self.always(flat)).view_as(x)


class MixtureOfExperts(Pre):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = Experts()  # type: ignore[assignment]


class Attended(nn.Module):
    """torch.nn.MultiheadAttention in a pre-norm block."""

    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2, self.mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), Mlp()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.n1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.n2(x))


__all__ = ["Attention"]
