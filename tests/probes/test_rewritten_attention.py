"""Attention with bounded logits is torch's own where the bound is far away, and the textbook's where it is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rheoscope.probes.rewritten_attention import capped_attention
from torch.nn import functional

MASK = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(1)) > 0.3
MASK[..., 0] = True


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": MASK},
        {"attn_mask": torch.where(MASK, 0.5, -3.0)},
        {"enable_gqa": True, "is_causal": True},
    ],
)
def test_a_bound_out_of_reach_changes_nothing(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    n_shared = 2 if "enable_gqa" in options else 4
    query = torch.randn(2, 4, 5, 8, generator=generator, dtype=torch.float64)
    key, value = (torch.randn(2, n_shared, 5, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    if options.get("attn_mask") is not None and options["attn_mask"].is_floating_point():
        options = {**options, "attn_mask": options["attn_mask"].double()}

    found = capped_attention(query, key, value, cap=1e6, **options)

    torch.testing.assert_close(found, functional.scaled_dot_product_attention(query, key, value, **options))


def test_logits_are_bounded_before_the_mask() -> None:
    query = key = 10 * torch.eye(2, dtype=torch.float64)[None, None]
    value = torch.eye(2, dtype=torch.float64)[None, None]

    found = capped_attention(query, key, value, scale=1.0, cap=2.0)

    bounded = torch.tensor([[2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)  # 2 tanh(100 / 2) is 2
    torch.testing.assert_close(found[0, 0], bounded.softmax(-1))
