"""The norms of the reference transformer: torch's, and the same written out with their backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .architecture import Architecture


def norm(architecture: Architecture, width: int = 0) -> nn.Module:
    """Return one norm over ``width``, 0 for that of the stream."""
    width, eps, gain = width or architecture.width, architecture.norm_eps, architecture.norm_gain
    bias = architecture.has_bias("norm")
    if architecture.norm_kind == "rmsnorm":
        return nn.RMSNorm(width, eps=eps, elementwise_affine=gain)
    if architecture.norm_kind == "layernorm":
        return nn.LayerNorm(width, eps=eps, elementwise_affine=gain, bias=bias)
    return NormByHand(width, eps=eps, gain=gain, bias=bias, centred=architecture.norm_kind == "layernorm_by_hand")


class NormByHand(nn.Module):
    """LayerNorm (``centred``) or RMSNorm over the last axis, every formula in sight."""

    def __init__(self, width: int, *, eps: float, gain: bool, bias: bool, centred: bool) -> None:
        """Start with gains of 1 and biases of 0."""
        super().__init__()
        self.eps, self.centred = eps, centred
        self.weight = nn.Parameter(torch.ones(width)) if gain else None
        self.bias = nn.Parameter(torch.zeros(width)) if bias and centred else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed ``x``, of the same shape."""
        y: Tensor = _Normed.apply(x, self.eps, self.centred)  # type: ignore[no-untyped-call]
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias


class _Normed(torch.autograd.Function):
    """y = x_c / r with r^2 = mean(x_c^2) + eps, where x_c is x, less its mean where centred.

    Its Jacobian is (I - y y^T / d) / r, on what is centred: a norm divides the gradient by r and takes out the part along its own
    output, and a LayerNorm the mean as well (Xiong et al. 2020, lemma 3).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, centred: bool) -> Tensor:
        x_c = x - x.mean(-1, keepdim=True) if centred else x
        r = (x_c.square().mean(-1, keepdim=True) + eps).sqrt()
        y = x_c / r
        ctx.save_for_backward(y, r)
        ctx.centred = centred
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (g,), (y, r) = gradients, ctx.saved_tensors
        along = (g * y).mean(-1, keepdim=True) * y
        mean = g.mean(-1, keepdim=True) if ctx.centred else 0.0
        return (g - mean - along) / r, None, None
