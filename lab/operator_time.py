"""Count a training step's floating-point operations and time by class of operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

CLASSES = ("tensor contraction", "normalisation and softmax", "element-wise")
_CONTRACTIONS = ("mm", "bmm", "addmm", "baddbmm", "matmul", "einsum", "scaled_dot_product", "flash_attention", "linear")
_STATISTICAL = ("norm", "softmax", "mean", "sum", "var", "logsumexp", "nll_loss", "cross_entropy")


def of_contractions(step: Callable[[], Any]) -> int:
    """Return the floating-point operations of a step's matrix products and attention, by torch's own counter."""
    # The fused attention of a CPU is not in torch's table.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def seconds_by_class(step: Callable[[], Any], repeats: int = 3) -> dict[str, float]:
    """Return the CPU seconds that a step spends in each class of operator, its own time, not that of what it calls."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            step()
    found: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            found[class_of(event.key.removeprefix("aten::"))] += event.self_cpu_time_total / 1e6 / repeats
    return {name: found[name] for name in CLASSES}


def class_of(operator: str) -> str:
    """Return which class an operator of torch belongs to: contraction, statistics over an axis, or one element at a time."""
    if any(operator.lstrip("_").startswith(name) for name in _CONTRACTIONS):
        return CLASSES[0]
    return CLASSES[1] if any(name in operator for name in _STATISTICAL) else CLASSES[2]


def forward_and_backward(module: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Return a function that runs ``module`` on ``x`` forward and backward."""
    read = x.detach().requires_grad_()  # as a block inside of a model has it

    def step() -> None:
        module.zero_grad()
        module(read).square().mean().backward()

    return step
