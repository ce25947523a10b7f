"""Print what discovery costs: the traced forward against plain ones, and the whole against the number of blocks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rheoscope.probes.discovery import discover
from rheoscope.probes.discovery.trace import trace
from rheoscope.probes.untouched import untouched
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from small_models.parts import TOKENS, Attention, Mlp

WIDTH, BLOCKS, REPEATS = 256, 12, 5


class Block(nn.Module):
    """A pre-norm block of the width that is measured."""

    def __init__(self, width: int) -> None:
        """Make its parts."""
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Add both branches."""
        x = x + self.attention(self.n1(x))
        return x + self.mlp(self.n2(x))


def model(n_blocks: int, width: int = WIDTH) -> nn.Module:
    """Return a decoder of ``n_blocks`` blocks."""
    return nn.Sequential(nn.Embedding(TOKENS, width), *(Block(width) for _ in range(n_blocks)), nn.LayerNorm(width))


def seconds(action: Callable[[], object]) -> float:
    """Return the shortest of a few runs."""
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> None:
    """Print both."""
    torch.set_num_threads(1)
    ids = torch.randint(0, TOKENS, (4, 128))
    twelve = model(BLOCKS).eval()
    with torch.no_grad():
        plain = seconds(lambda: twelve(ids))
    with untouched(twelve, training=False):
        traced = seconds(lambda: trace(twelve, ids))
    ratio = f"{traced / plain:.1f} plain ones"
    print(f"{BLOCKS} blocks x {WIDTH}: plain forward {plain:.3f} s, traced {traced:.3f} s: {ratio}")  # noqa: T201
    for n_blocks in (12, 24, 48, 96):
        deep = model(n_blocks, 32)
        cost = seconds(lambda deep=deep: discover(deep, ids[:1, :16]))  # type: ignore[misc]
        print(f"{n_blocks:3} blocks: discovered in {cost:.2f} s, {1000 * cost / n_blocks:.1f} ms a block")  # noqa: T201


if __name__ == "__main__":
    main()
