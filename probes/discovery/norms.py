"""Recognise norms by what they do: scale-invariant is RMSNorm, also shift-invariant is LayerNorm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from rheoscope.probes.batches import floating
from torch import Tensor, nn

_SCALE, _SHIFT = 7.0, 2.5
_CLOSE = 1e-2  # of the output's mean magnitude: covers eps, and bf16's resolution


@dataclass(frozen=True)
class NormBehaviour:
    """What a module that normalises does.

    Attributes:
        kind: layernorm (mean-invariant) or rmsnorm.
        gains: names of its parameters that scale, within the module.
        biases: names of its parameters that shift: what it returns for a zero input.
    """

    kind: str
    gains: tuple[str, ...]
    biases: tuple[str, ...]


def norm_behaviour(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> NormBehaviour | None:
    """Return how ``module`` normalises the last axis, None when it is no norm.

    The module's own ``forward`` is called, without hooks, on random input from a private generator.

    Args:
        module: a module in eval mode that holds no projection.
        shape: of its input; leading axes are cut to 2.
        dtype: of its input.
    """
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    small = tuple(min(2, size) for size in shape[:-1]) + shape[-1:]
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(small, generator=generator)).to(device, dtype)
    try:
        with torch.no_grad():
            kind = _kind(lambda value: _output(module, value), x)
            if kind is None:
                return None
            at_zero = _output(module, torch.zeros_like(x)).reshape(-1, shape[-1])[0]
    except Exception:  # noqa: BLE001 - any failure on random input means: not a plain norm
        return None
    gains: list[str] = []
    biases: list[str] = []
    for name, parameter in module.named_parameters():
        same = parameter.numel() == at_zero.numel() and bool(at_zero.any())
        is_bias = same and torch.allclose(parameter.detach().float().reshape(-1), at_zero, rtol=1e-2, atol=1e-6)
        (biases if is_bias else gains).append(name)
    if kind == "layernorm" and not biases and len(gains) >= 2 and not at_zero.any():
        # A bias of zeros shows nothing at zero input: it is the parameter that is zero itself.
        values = dict(module.named_parameters())
        biases = [name for name in gains if not values[name].detach().any()]
        gains = [name for name in gains if name not in biases]
    return NormBehaviour(kind, tuple(gains), tuple(biases))


def _output(module: nn.Module, x: Tensor) -> Tensor:
    found = floating(module.forward(x))
    if found is None or found.shape != x.shape:
        raise ValueError("no norm: another shape")
    return found.float()


def _kind(function: Callable[[Tensor], Tensor], x: Tensor) -> str | None:
    y = function(x.clone())
    size = y.abs().mean()
    if not bool(torch.isfinite(y).all()) or float(size) == 0 or bool((y == y.flatten()[0]).all()):
        return None
    if float((y - function(x * _SCALE)).abs().mean()) > _CLOSE * float(size):
        return None
    shift_invariant = float((y - function(x + _SHIFT)).abs().mean()) <= _CLOSE * float(size)
    return "layernorm" if shift_invariant else "rmsnorm"
