"""A LayerNorm or RMSNorm of measured gain, bias and epsilon, to stand in for any norm; and a norm that is passed by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .discovery.norms import norm_behaviour
from .errors import LabError

_SIZES = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10)  # mean squares of inputs among which epsilon is read
_DIGITS = 4  # of epsilon


class PlainNorm(nn.Module):
    """``weight * normed(x) + bias`` over the last axis.

    Attributes:
        kind: layernorm or rmsnorm.
        eps: added to the variance, or to the mean square.
    """

    def __init__(self, kind: str, width: int, eps: float, weight: Tensor | None, bias: Tensor | None) -> None:
        """Take gain and bias, each of shape (width,); None for none. A parameter is taken as it is."""
        super().__init__()
        self.kind, self.width, self.eps = kind, width, eps
        self.weight, self.bias = _parameter(weight), _parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed ``x``, of the same shape."""
        if self.kind == "layernorm":
            return functional.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)
        y = functional.rms_norm(x, (self.width,), self.weight, self.eps)
        return y if self.bias is None else y + self.bias

    def new(self, width: int = 0, *, kind: str = "") -> PlainNorm:
        """Return another norm as a model is built with it: with gains of 1 and biases of 0 where this one has some."""
        width = width or self.width
        like = next((p for p in (self.weight, self.bias) if p is not None), torch.empty(0))
        one, zero = torch.ones(width).to(like), torch.zeros(width).to(like)
        weight, bias = (None if self.weight is None else one), (None if self.bias is None else zero)
        return PlainNorm(kind or self.kind, width, self.eps, weight, bias)


class Passed(nn.Module):
    """Holds a norm where it stood, so that its parameters keep their place, and returns its input: it is applied elsewhere."""

    def __init__(self, norm: nn.Module) -> None:
        """Hold ``norm``."""
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return ``x``."""
        return x

    def __getattr__(self, name: str) -> Any:
        """Return what the norm has: a model's code may ask for the type of its gain."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "norm":
                raise
            return getattr(self.norm, name)


def plain(norm: nn.Module, width: int, path: str, *, kind: str = "") -> PlainNorm:
    """Return a norm that does what ``norm`` does, with the same parameters; of another ``kind`` where one is given.

    Kind, gain and epsilon are read off what the module gives, not off its attributes. A gain that is stored less 1 is stored
    whole. Call it in eval mode, with hooks off.

    Args:
        norm: the module.
        width: of what it norms.
        path: of the module, for the error.
        kind: layernorm or rmsnorm.

    Raises:
        LabError: it is no plain norm of one last axis.
    """
    dtype = next((p.dtype for p in norm.parameters()), torch.float32)
    device = next((p.device for p in norm.parameters()), torch.device("cpu"))
    behaviour = norm_behaviour(norm, (2, width), dtype)
    own = dict(norm.named_parameters())
    biases = [] if behaviour is None else [own[name] for name in behaviour.biases]
    gains = [] if behaviour is None else [own[name] for name in behaviour.gains]
    if behaviour is None or len(gains) > 1 or len(biases) > 1 or any(p.shape != (width,) for p in (*gains, *biases)):
        raise LabError(
            f"Expected a norm over {width} features with at most one gain and one bias, got another at {path!r}. "
            "Leave its kind as it is."
        )
    x = torch.randn(8, width, generator=torch.Generator().manual_seed(0)).to(device)
    x = x - x.mean(-1, keepdim=True)
    x = x / x.square().mean(-1, keepdim=True).sqrt()
    with torch.no_grad():
        shift = norm.forward(torch.zeros_like(x).to(dtype)).double()
        large = norm.forward(x.to(dtype)).double() - shift
        measured = (large * x).sum(0) / x.double().square().sum(0)
        eps = _epsilon(norm, x, dtype, shift)
        weight = _gain(gains[0] if gains else None, measured)
    return PlainNorm(kind or behaviour.kind, width, eps, weight, biases[0] if biases else None)


def _gain(stored: nn.Parameter | None, measured: Tensor) -> Tensor | None:
    """Return the gain: as stored, or one more, whichever the measured one is."""
    if stored is None:
        return None
    wide = stored.detach().double()
    off_by = float((measured - wide - 1).abs().mean()), float((measured - wide).abs().mean())
    return stored if off_by[1] <= off_by[0] else (wide + 1).to(stored.dtype)


def _epsilon(norm: nn.Module, x: Tensor, dtype: torch.dtype, shift: Tensor) -> float:
    """Return epsilon: how much less a small input gives than a large one, read where the two differ by about a factor."""
    energy = (norm.forward((x * 1e3).to(dtype)).double() - shift).square().sum()
    found: list[tuple[float, float]] = []
    for size in _SIZES:
        small = (x * size**0.5).to(dtype)
        share = float((norm.forward(small).double() - shift).square().sum() / energy)
        if 0 < share < 1:
            found.append((abs(share - 0.5), size * (1 / share - 1)))
    return float(f"{min(found)[1]:.{_DIGITS}g}") if found and min(found)[0] < 0.49 else 0.0


def _parameter(values: Tensor | None) -> nn.Parameter | None:
    return values if values is None or isinstance(values, nn.Parameter) else nn.Parameter(values)
