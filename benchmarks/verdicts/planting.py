"""Ways to damage a model: editing parameters, wrapping modules, overriding forwards, hooks and autograd functions, recipes."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from .subjects import Subject

RATE = 1e-3  # of AdamW, everywhere
LARGER = 1.5  # times the RMS that a bias had: what it takes to call it large
Plant = Callable[[Subject, int, float], bool]
Then = Callable[[Tensor, Tensor], Tensor]  # of a module's output and its first argument


def edited(path: str, what: str = "weight") -> Plant:
    """Multiply a parameter of the block's part ``path``."""

    def plant(subject: Subject, block: int, severity: float) -> bool:
        module = subject.model.get_submodule(getattr(subject.parts[block], path))
        parameter = getattr(module, what, None)
        if not isinstance(parameter, Tensor):
            return False
        with torch.no_grad():
            parameter.mul_(severity)
        return True

    return plant


def qk(subject: Subject, block: int, severity: float) -> bool:
    """Multiply the query and key weights."""
    parts = subject.parts[block]
    with torch.no_grad():
        if subject.fused_qkv:
            weight: Any = subject.model.get_submodule(parts.query).weight
            if weight.shape[0] == weight.shape[1] * 3:
                return False  # heads one after the other: queries are not its first rows
            weight[:, : 2 * weight.shape[0]].mul_(severity)
        else:
            for path in (parts.query, parts.key):
                weight = subject.model.get_submodule(path).weight
                weight.mul_(severity)
    return True


def gain(subject: Subject, block: int, severity: float) -> bool:
    """Multiply a norm's gain: of the first norm in even blocks, of the second in odd ones."""
    norm: Any = subject.model.get_submodule(subject.parts[block].norms[block % 2])
    if not isinstance(getattr(norm, "weight", None), Tensor):
        return False
    with torch.no_grad():
        norm.weight.mul_(severity)
    return bool(norm.weight.detach().abs().max() > 0) or severity == 0


def bias(path: str, sign: float = 0.0) -> Plant:
    """Add noise of a size to a projection's bias, or a constant of a sign."""

    def plant(subject: Subject, block: int, severity: float) -> bool:
        bias: Any = getattr(subject.model.get_submodule(getattr(subject.parts[block], path)), "bias", None)
        if not isinstance(bias, Tensor):
            return False
        with torch.no_grad():
            before = float(bias.square().mean().sqrt())
            bias.add_(sign * severity if sign else severity * torch.randn_like(bias))
        # Where biases are as large already by init or training, nothing is wrong with it.
        return float(bias.detach().square().mean().sqrt()) > LARGER * before

    return plant


def epsilon(subject: Subject, block: int, severity: float) -> bool:
    """Give the second norm another epsilon."""
    norm: Any = subject.model.get_submodule(subject.parts[block].norms[1])
    name = next((name for name in ("eps", "variance_epsilon") if isinstance(getattr(norm, name, None), float)), None)
    if name is None:
        return False
    setattr(norm, name, severity)
    return True


def frozen(subject: Subject, block: int, _: float) -> bool:
    """Freeze the block."""
    for parameter in subject.model.get_submodule(subject.parts[block].block).parameters():
        parameter.requires_grad_(False)
    return True


class Wrapped(nn.Module):
    """Runs ``inner`` and then ``then(output, first argument)`` on what it returns first."""

    def __init__(self, inner: nn.Module, then: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Hold both."""
        super().__init__()
        self.inner, self.then = inner, then

    def __getattr__(self, name: str) -> Any:
        """Look for what the wrapped module has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run both."""
        output = self.inner(*args, **kwargs)
        read = args[0] if args else kwargs["hidden_states"]
        if isinstance(output, tuple):
            return (self.then(output[0], read), *output[1:])
        return self.then(output, read)


def wrapped(role: str, then: Callable[[float], Callable[[Tensor, Tensor], Tensor]]) -> Plant:
    """Put a module around a part that changes what it returns."""

    def plant(subject: Subject, block: int, severity: float) -> bool:
        path = getattr(subject.parts[block], role)
        # Where every position sees all others nothing can leak.
        if not path or ("bidirectional" in subject.name and then is leaking):
            return False
        replace(subject.model, path, Wrapped(subject.model.get_submodule(path), then(severity)))
        return True

    return plant


def overridden(role: str, then: Callable[[float], Callable[[Tensor, Tensor], Tensor]]) -> Plant:
    """As ``wrapped``, by another forward of the module itself."""

    def plant(subject: Subject, block: int, severity: float) -> bool:
        path = getattr(subject.parts[block], role)
        if not path:
            return False
        module, change = subject.model.get_submodule(path), then(severity)
        inner = module.forward

        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG001
            output = inner(*args, **kwargs)
            read = args[0] if args else kwargs["hidden_states"]
            return (change(output[0], read), *output[1:]) if isinstance(output, tuple) else change(output, read)

        module.forward = types.MethodType(forward, module)  # type: ignore[method-assign]
        return True

    return plant


def hooked(role: str, then: Callable[[float], Callable[[Tensor, Tensor], Tensor]]) -> Plant:
    """As ``wrapped``, by a forward hook."""

    def plant(subject: Subject, block: int, severity: float) -> bool:
        path = getattr(subject.parts[block], role)
        if not path:
            return False
        change = then(severity)

        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            read = args[0] if args else kwargs["hidden_states"]
            return (change(output[0], read), *output[1:]) if isinstance(output, tuple) else change(output, read)

        subject.model.get_submodule(path).register_forward_hook(hook, with_kwargs=True)
        return True

    return plant


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put another module in the place of one."""
    holder, _, name = path.rpartition(".")
    setattr(model.get_submodule(holder), name, module)


class _Bent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * ctx.factor, None


def bent(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Scale the gradient by an autograd function."""
    return lambda output, _: _Bent.apply(output, factor)  # type: ignore[no-any-return, no-untyped-call]


def turned(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Scale the gradient by a hook on the tensor."""

    def change(output: Tensor, _: Tensor) -> Tensor:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]
        return output

    return change


def no_norm(subject: Subject, block: int, _: float) -> bool:
    """Take a norm away."""
    replace(subject.model, subject.parts[block].norms[block % 2], nn.Identity())
    return True


def no_mask(subject: Subject, block: int, _: float) -> bool:
    """Take the causal mask away, where the attention has a switch for it."""
    attention: Any = subject.model.get_submodule(subject.parts[block].attention)
    if getattr(attention, "is_causal", None) is not True or "hand" not in subject.name:
        return False
    attention.is_causal = False
    return True


def query_scaled(subject: Subject, block: int, severity: float) -> bool:
    """Scale the queries behind their projection."""
    parts = subject.parts[block]
    width = subject.model.get_submodule(parts.query).weight.shape  # type: ignore[union-attr]
    if subject.fused_qkv and width[0] == 3 * width[1]:
        return False

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        n = output.shape[-1] // 3 if subject.fused_qkv else output.shape[-1]
        return torch.cat([output[..., :n] * severity, output[..., n:]], -1)

    subject.model.get_submodule(parts.query).register_forward_hook(hook)
    return True


def head(subject: Subject, _: int, severity: float) -> bool:
    """Multiply the head, where it is not the embedding."""
    head, embedding = (cast(Any, subject.model.get_submodule(path)) for path in (subject.head, subject.embedding))
    if head.weight is embedding.weight:
        return False
    with torch.no_grad():
        head.weight.mul_(severity)
    return True


def loss(subject: Subject, _: int, severity: float) -> bool:
    """Multiply the loss."""
    inner = subject.loss
    subject.loss = lambda output, batch: severity * inner(output, batch)
    return True


def dropout(subject: Subject, block: int, severity: float) -> bool:
    """Drop a share of what the MLP writes."""
    path = subject.parts[block].mlp
    if not path:
        return False
    inner = subject.model.get_submodule(path)
    subject.model.train()
    replace(subject.model, path, nn.Sequential(inner, nn.Dropout(severity)))
    return True


def rate(subject: Subject, block: int, severity: float) -> bool:
    """Give one block a learning rate of its own."""
    own = list(subject.model.get_submodule(subject.parts[block].block).parameters())
    subject.groups = [{"params": others(subject, own)}, {"params": own, "lr": RATE * severity}]
    return True


def decay(subject: Subject, block: int, severity: float) -> bool:
    """Decay the norm gains of one block."""
    norms = [subject.model.get_submodule(path) for path in subject.parts[block].norms]
    own = [p for norm in norms for p in norm.parameters() if p.dim() == 1]
    if not own:
        return False
    subject.groups = [{"params": others(subject, own)}, {"params": own, "weight_decay": severity}]
    return True


def forgotten(subject: Subject, block: int, _: float) -> bool:
    """Leave one block out of the optimizer."""
    own = list(subject.model.get_submodule(subject.parts[block].block).parameters())
    subject.groups = [{"params": others(subject, own)}]
    return True


def others(subject: Subject, own: list[nn.Parameter]) -> list[nn.Parameter]:
    """Return the trainable parameters that are not among ``own``."""
    ids = {id(p) for p in own}
    return [p for p in subject.model.parameters() if id(p) not in ids and p.requires_grad]


def ill(function: Callable[[Tensor], Tensor]) -> Callable[[float], Callable[[Tensor, Tensor], Tensor]]:
    """Return what applies a function that gives values that are not finite."""
    return lambda _: lambda output, __: function(output)


def leaking(size: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what adds a share of the mean over all positions."""
    return lambda output, _: output + size * output.mean(1, keepdim=True)
