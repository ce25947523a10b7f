"""The factors of attention logits and of writes: known by construction, measured to rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import HEADS, WIDTH, NanoGPT
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.discovery import discover
from rheoscope.probes.logit_scale import logit_scale
from rheoscope.probes.together import seen_in
from rheoscope.probes.untouched import untouched
from rheoscope.probes.write_scale import write_points, write_scale
from torch import Tensor, nn
from torch.nn import functional

IDS = torch.randint(0, 61, (2, 8), generator=torch.Generator().manual_seed(0))


class Times(nn.Module):
    """Multiplies what ``inner`` returns."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.inner(x)


class Inline(nn.Module):
    """Multiplies what a branch gives in the block's own forward, before a dropout that no hook sees."""

    def __init__(self, block: nn.Module, factor: float) -> None:
        super().__init__()
        self.block, self.factor = block, factor

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        x = x + functional.dropout(self.factor * block.attention(block.norm_1(x)), 0.1, self.training)
        return x + block.mlp(block.norm_2(x))


def write_scales(model: nn.Module, ids: Tensor, anatomy: Any) -> list[dict[str, Any]]:
    return write_scale(model, anatomy, seen_in(model, ids, write_points(model, anatomy)))


def measured(check: Any, model: nn.Module, ids: Tensor = IDS) -> dict[tuple[int, str, str], float]:
    anatomy = discover(model, ids)
    with untouched(model, training=False):
        rows = check(model, ids, anatomy)
    return {(row["block"], row["branch"], row["check"]): row["observed"] for row in rows}


def test_fused_attention_with_projections_of_its_own_tells_one_over_the_root_of_the_head_size() -> None:
    model = ReferenceTransformer(Architecture(n_blocks=4, width=32, n_heads=4, vocabulary=61, context=8), seed=0)
    found = measured(logit_scale, model)
    values = [value for (_, _, check), value in found.items() if check == "logit_scale"]
    assert values == pytest.approx([8**-0.5] * 4, rel=1e-6)


def test_attention_written_out_tells_the_slope_of_its_logits() -> None:
    torch.manual_seed(0)
    model = NanoGPT("pre", n_blocks=4)
    found = measured(logit_scale, model)
    sizes = [value for (_, _, check), value in found.items() if check == "logit_size"]
    assert len(sizes) == 4
    # Queries, keys and values come from one matrix: the factor is known up to how its thirds differ.
    scales = [value for (_, _, check), value in found.items() if check == "logit_scale"]
    assert scales == pytest.approx([(WIDTH // HEADS) ** -0.5] * 4, rel=0.3)


@pytest.mark.parametrize("factor", [0.95, 1.05, 4.0])
def test_a_query_that_is_scaled_behind_its_projection_is_measured(factor: float) -> None:
    model = ReferenceTransformer(Architecture(n_blocks=4, width=32, n_heads=4, vocabulary=61, context=8), seed=0)
    model.blocks[2].attention.query.register_forward_hook(lambda _, __, output: output * factor)
    found = measured(logit_scale, model)
    assert found[2, "attention", "logit_scale"] == pytest.approx(factor * 8**-0.5, rel=1e-5)
    assert found[1, "attention", "logit_scale"] == pytest.approx(8**-0.5, rel=1e-6)


@pytest.mark.parametrize("kind", ["pre", "post", "parallel"])
@pytest.mark.parametrize("factor", [-1.0, 0.5, 0.99])
def test_a_write_that_is_scaled_is_measured(kind: str, factor: float) -> None:
    torch.manual_seed(0)
    model = NanoGPT(kind)
    model.blocks[1].mlp = Times(model.blocks[1].mlp, factor)
    anatomy = discover(model, IDS)
    with untouched(model, training=False):
        rows = write_scales(model, IDS, anatomy)
    told = [round(row["observed"], 5) for row in rows if row["check"] == "write_scale"]
    assert sorted(told) == sorted([1.0, 1.0, 1.0, factor])


def test_a_factor_that_the_blocks_own_forward_holds_counts() -> None:
    torch.manual_seed(0)
    model = NanoGPT("pre", n_blocks=4)
    for index, block in enumerate(model.blocks):
        model.blocks[index] = Inline(block, 0.97 if index == 2 else 1.0)
    found = measured(write_scales, model)
    told = [found[block, "attention", "write_scale"] for block in range(4)]
    assert told == pytest.approx([1.0, 1.0, 0.97, 1.0], rel=1e-5)


def test_a_factor_behind_the_norm_that_ends_a_branch_counts() -> None:
    class Reordered(Inline):
        def forward(self, x: Tensor) -> Tensor:
            block = self.block
            x = x + functional.dropout(self.factor * block.norm_1(block.attention(x)), 0.1, self.training)
            return x + block.norm_2(block.mlp(x))

    torch.manual_seed(0)
    model = NanoGPT("pre", n_blocks=4)
    for index, block in enumerate(model.blocks):
        model.blocks[index] = Reordered(block, 0.9 if index == 1 else 1.0)
    found = measured(write_scales, model)
    told = [found[block, "attention", "write_scale"] for block in range(4)]
    assert told == pytest.approx([1.0, 0.9, 1.0, 1.0], rel=1e-5)
