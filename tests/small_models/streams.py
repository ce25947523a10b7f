"""Models whose streams are several, rebuilt, gated or mixed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .parts import LENGTH, TOKENS, WIDTH, Attention, Block, Mlp, Model
from .placements import Pre


class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Model(Pre), Model(Pre)
        self.cross = nn.ModuleList(Attention() for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        memory = self.encoder.embed(ids)
        for block in self.encoder.blocks:
            memory = block(memory)
        memory = self.encoder.final(memory)
        x = self.decoder.embed(ids[:, :6])
        for block, cross, norm in zip(self.decoder.blocks, self.cross, self.norms, strict=True):
            x = x + block.attention(block.n1(x))
            x = x + self._attended(cross, norm(x), memory)
            x = x + block.mlp(block.n2(x))
        return self.decoder.head(x)

    def _attended(self, cross: Attention, x: Tensor, memory: Tensor) -> Tensor:
        return cross(x, memory)


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Model(Pre), Model(Pre)

    def forward(self, ids: Tensor) -> Tensor:
        return self.left(ids).mean(1) @ self.right(ids.flip(1)).mean(1).t()


class Stages(nn.Module):
    """Two stages of blocks with a projection to another width between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Model(Pre, 2), Model(Pre, 2)
        self.merge = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.first.embed(ids)[:, :10]
        for block in self.first.blocks:
            x = block(x)
        x = self.merge(x.reshape(len(ids), 5, 2 * WIDTH))
        for block in self.second.blocks:
            x = block(x)
        return x


class GruGate(Block):
    """GTrXL: a GRU decides how much of the branch enters."""

    def __init__(self) -> None:
        super().__init__()
        self.z1, self.z2 = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for gate, branch, norm in ((self.z1, self.attention, self.n1), (self.z2, self.mlp, self.n2)):
            y = branch(norm(x))
            z = torch.sigmoid(gate(torch.cat([x, y], -1)))
            x = (1 - z) * x + z * torch.tanh(y)
        return x


class Lerp(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.lerp(x, self.attention(self.n1(x)), 0.3)
        return torch.lerp(x, self.mlp(self.n2(x)), 0.3)


class NormalisedLerp(Block):
    """nGPT: a step towards the branch's output on the sphere."""

    def __init__(self) -> None:
        super().__init__()
        self.a1, self.a2 = nn.Parameter(torch.full((WIDTH,), 0.2)), nn.Parameter(torch.full((WIDTH,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        for rate, branch in ((self.a1, self.attention), (self.a2, self.mlp)):
            y = F.normalize(branch(x), dim=-1)
            x = F.normalize(x + rate * (y - x), dim=-1)
        return x


class ClassToken(Model):
    """Takes the class token out, works on the rest, and puts it back."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            first, rest = x[:, :1], x[:, 1:]
            rest = rest + block.attention(block.n1(rest))
            x = torch.cat([first, rest], 1)
            x = x + block.mlp(block.n2(x))
        return self.head(self.final(x))


class Scattered(Model):
    """Writes to some positions only, by a mask (two kinds of token)."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        mask = (ids % 2 == 0).unsqueeze(-1)
        for block in self.blocks:
            x = x + block.attention(block.n1(x))
            other = x + block.mlp(block.n2(x))
            x = torch.where(mask, other, x)
        return self.head(self.final(x))


class Pooled(Model):
    """Halves the positions between blocks (funnel)."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
            x = F.avg_pool1d(x.transpose(1, 2), 2, ceil_mode=True).transpose(1, 2)
        return self.head(self.final(x))


class UNet(Model):
    """Adds earlier states again, scaled (modded-nanoGPT)."""

    def __init__(self) -> None:
        super().__init__(Pre, 4)
        self.weights = nn.Parameter(torch.full((2,), 0.6))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        kept = []
        for block in self.blocks[:2]:
            x = block(x)
            kept.append(x)
        for weight, block in zip(self.weights, self.blocks[2:], strict=True):
            x = block(x + weight * kept.pop())
        return self.head(self.final(x))


class Reversible(Model):
    """Two streams that take turns (Reformer, RevNet)."""

    def forward(self, ids: Tensor) -> Tensor:
        one = two = self.embed(ids)
        for block in self.blocks:
            one = one + block.attention(block.n1(two))
            two = two + block.mlp(block.n2(one))
        return torch.cat([self.head(self.final(one)), self.head(self.final(two))], 1)


class HyperConnected(Model):
    """Four streams, mixed by a matrix before each write (static hyper-connections)."""

    def __init__(self) -> None:
        super().__init__(Block, 3)
        self.mixing = nn.ParameterList(nn.Parameter(torch.eye(4) + 0.1 * torch.randn(4, 4)) for _ in range(6))
        self.read = nn.ParameterList(nn.Parameter(torch.rand(4)) for _ in range(6))
        self.written = nn.ParameterList(nn.Parameter(torch.rand(4)) for _ in range(6))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).unsqueeze(-2).repeat(1, 1, 4, 1)
        number = 0
        for block in self.blocks:
            for norm, branch in ((block.n1, block.attention), (block.n2, block.mlp)):
                y = branch(norm((x * self.read[number][:, None]).sum(-2)))
                x = torch.matmul(self.mixing[number], x) + y.unsqueeze(-2) * self.written[number][:, None]
                number += 1
        return self.head(self.final(x.sum(-2)))


class Queries(nn.Module):
    """Learned queries that attend to the input (Perceiver, Q-Former): the stream starts as a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.queries, self.final = nn.Parameter(torch.randn(1, LENGTH, WIDTH)), nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        memory = self.embedding(ids)
        x = self.queries.expand(len(ids), -1, -1)
        for block in self.blocks:
            x = x + block.attention(block.n1(x), memory)
            x = x + block.mlp(block.n2(x))
        return self.final(x)


class Recurrent(nn.Module):
    """A branch that loops over positions: its own sums are no stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.into, self.decay, self.out = (
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        value, state, rows = self.into(y), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            state = state * torch.sigmoid(self.decay(y[:, t])) + self.decay(state) * 0.1 + value[:, t]
            rows.append(state)
        return x + self.out(torch.stack(rows, 1))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).relu()
        return x.mean()


class Mixer(nn.Module):
    """MLP-Mixer: mixes positions by a projection over them."""

    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2, self.mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), Mlp()
        self.over = nn.Linear(LENGTH, LENGTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.over(self.n1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp(self.n2(x))
