"""Small models whose branches all matter, and batches for them, that the tests of attribution share."""

from __future__ import annotations

from typing import Any

import torch
from oracles import VOCABULARY
from torch import Tensor, nn

TINY: dict[str, Any] = {"n_blocks": 3, "width": 16, "n_heads": 2, "vocabulary": VOCABULARY, "context": 8}
DESIGNS = [
    {"norm_placement": "pre"},
    {"norm_placement": "post"},
    {"norm_placement": "double"},
    {"norm_placement": "reordered"},
    {"is_parallel": True},
    {"norm_placement": "post", "depth_scaling": "deepnorm"},
]


def ids_of(n: int = 3) -> Tensor:
    return torch.randint(VOCABULARY, (n, 8), generator=torch.Generator().manual_seed(0))


def shaken(model: nn.Module) -> nn.Module:
    """Return the model with weights that make every branch matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()
