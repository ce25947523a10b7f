"""Faults to plant: by editing parameters, wrapping modules, overriding forwards, and by hooks and autograd functions."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .subjects import Subject

RATE = 1e-3  # of AdamW, everywhere
Plant = Callable[[Subject, int, float], bool]


@dataclass(frozen=True)
class Fault:
    """One class of faults.

    Attributes:
        name: of the class.
        plant: ``plant(subject, block, severity)`` damages the subject's model; False where it has no such part.
        severities: from gross to subtle.
        subtle: which of them count as subtle.
        codes: findings that name it, or an equivalent diagnosis.
        components: branches that are right; empty for any.
        is_exact: whether an identity shows it.
        is_local: whether it stands in one block.
        is_aside: kept aside while rules were written.
        is_recipe: whether it shows in training alone; ``plant`` then leaves parameter groups in ``subject.groups``.
    """

    name: str
    plant: Plant
    severities: tuple[float, ...]
    codes: tuple[str, ...]
    subtle: tuple[float, ...] = ()
    components: tuple[str, ...] = ()
    is_exact: bool = False
    is_local: bool = True
    is_aside: bool = False
    is_recipe: bool = False


def _edited(path: str, what: str = "weight") -> Plant:
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


def _qk(subject: Subject, block: int, severity: float) -> bool:
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


def _gain(subject: Subject, block: int, severity: float) -> bool:
    norm: Any = subject.model.get_submodule(subject.parts[block].norms[block % 2])
    if not isinstance(getattr(norm, "weight", None), Tensor):
        return False
    with torch.no_grad():
        norm.weight.mul_(severity)
    return bool(norm.weight.detach().abs().max() > 0) or severity == 0


def _bias(path: str, sign: float = 0.0) -> Plant:
    def plant(subject: Subject, block: int, severity: float) -> bool:
        bias: Any = getattr(subject.model.get_submodule(getattr(subject.parts[block], path)), "bias", None)
        if not isinstance(bias, Tensor):
            return False
        with torch.no_grad():
            bias.add_(sign * severity if sign else severity * torch.randn_like(bias))
        return True

    return plant


def _epsilon(subject: Subject, block: int, severity: float) -> bool:
    norm: Any = subject.model.get_submodule(subject.parts[block].norms[1])
    name = next((name for name in ("eps", "variance_epsilon") if isinstance(getattr(norm, name, None), float)), None)
    if name is None:
        return False
    setattr(norm, name, severity)
    return True


def _frozen(subject: Subject, block: int, _: float) -> bool:
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


def _wrapped(role: str, then: Callable[[float], Callable[[Tensor, Tensor], Tensor]]) -> Plant:
    def plant(subject: Subject, block: int, severity: float) -> bool:
        path = getattr(subject.parts[block], role)
        # Where every position sees all others nothing can leak.
        if not path or ("bidirectional" in subject.name and then is _leaking):
            return False
        _replace(subject.model, path, Wrapped(subject.model.get_submodule(path), then(severity)))
        return True

    return plant


def _overridden(role: str, then: Callable[[float], Callable[[Tensor, Tensor], Tensor]]) -> Plant:
    """As ``_wrapped``, by another forward of the module itself."""

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


def _hooked(role: str, then: Callable[[float], Callable[[Tensor, Tensor], Tensor]]) -> Plant:
    """As ``_wrapped``, by a forward hook."""

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


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
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


def _bent(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda output, _: _Bent.apply(output, factor)  # type: ignore[no-any-return, no-untyped-call]


def _turned(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    def change(output: Tensor, _: Tensor) -> Tensor:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]
        return output

    return change


def _no_norm(subject: Subject, block: int, _: float) -> bool:
    _replace(subject.model, subject.parts[block].norms[block % 2], nn.Identity())
    return True


def _no_mask(subject: Subject, block: int, _: float) -> bool:
    attention: Any = subject.model.get_submodule(subject.parts[block].attention)
    if getattr(attention, "is_causal", None) is not True or "hand" not in subject.name:
        return False
    attention.is_causal = False
    return True


def _query_scaled(subject: Subject, block: int, severity: float) -> bool:
    parts = subject.parts[block]
    width = subject.model.get_submodule(parts.query).weight.shape  # type: ignore[union-attr]
    if subject.fused_qkv and width[0] == 3 * width[1]:
        return False

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        n = output.shape[-1] // 3 if subject.fused_qkv else output.shape[-1]
        return torch.cat([output[..., :n] * severity, output[..., n:]], -1)

    subject.model.get_submodule(parts.query).register_forward_hook(hook)
    return True


def _embedding(subject: Subject, _: int, severity: float) -> bool:
    with torch.no_grad():
        subject.model.get_submodule(subject.embedding).weight.mul_(severity)  # type: ignore[union-attr, operator]
    return True


def _head(subject: Subject, _: int, severity: float) -> bool:
    head: Any = subject.model.get_submodule(subject.head)
    embedding: Any = subject.model.get_submodule(subject.embedding)
    if head.weight is embedding.weight:
        return False
    with torch.no_grad():
        head.weight.mul_(severity)
    return True


def _loss(subject: Subject, _: int, severity: float) -> bool:
    inner = subject.loss
    subject.loss = lambda output, batch: severity * inner(output, batch)
    return True


def _dropout(subject: Subject, block: int, severity: float) -> bool:
    """Drop a share of what the MLP writes."""
    path = subject.parts[block].mlp
    if not path:
        return False
    inner = subject.model.get_submodule(path)
    subject.model.train()
    _replace(subject.model, path, nn.Sequential(inner, nn.Dropout(severity)))
    return True


def _rate(subject: Subject, block: int, severity: float) -> bool:
    """Give one block a learning rate of its own."""
    own = list(subject.model.get_submodule(subject.parts[block].block).parameters())
    subject.groups = [{"params": _others(subject, own)}, {"params": own, "lr": RATE * severity}]
    return True


def _decay(subject: Subject, block: int, severity: float) -> bool:
    """Decay the norm gains of one block."""
    norms = [subject.model.get_submodule(path) for path in subject.parts[block].norms]
    own = [p for norm in norms for p in norm.parameters() if p.dim() == 1]
    if not own:
        return False
    subject.groups = [{"params": _others(subject, own)}, {"params": own, "weight_decay": severity}]
    return True


def _forgotten(subject: Subject, block: int, _: float) -> bool:
    """Leave one block out of the optimizer."""
    own = list(subject.model.get_submodule(subject.parts[block].block).parameters())
    subject.groups = [{"params": _others(subject, own)}]
    return True


def _others(subject: Subject, own: list[nn.Parameter]) -> list[nn.Parameter]:
    ids = {id(p) for p in own}
    return [p for p in subject.model.parameters() if id(p) not in ids and p.requires_grad]


def _ill(function: Callable[[Tensor], Tensor]) -> Callable[[float], Callable[[Tensor, Tensor], Tensor]]:
    return lambda _: lambda output, __: function(output)


WEIGHTS = ("weight-scale", "write-size", "write-scale", "hidden-scale")


def _leaking(size: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda output, _: output + size * output.mean(1, keepdim=True)


_IN_ATTENTION, _IN_MLP = ("attention", "parallel"), ("mlp", "parallel")
_BIASES = ("bias-scale", "bias-share", "write-size")
_GAINS = ("gain-scale", "hidden-scale", "attention-logits", "write-size")
_NORMS = ("norm-missing", "norm-placement-odd", "norm-kind-odd", "norm-epsilon")
_DETACHED = ("gradient-detached", "no-gradient")
FAULTS: tuple[Fault, ...] = (
    Fault("attention out scaled", _edited("attention_out"), (30, 10, 3, 0.1, 0, 1.2), WEIGHTS, (1.2,), _IN_ATTENTION),
    Fault("mlp out scaled", _edited("mlp_out"), (30, 10, 3, 0.1, 0, 1.2), WEIGHTS, (1.2,), _IN_MLP),
    Fault("queries and keys scaled", _qk, (12, 6, 3), ("weight-scale", "attention-logits"), (), _IN_ATTENTION),
    Fault("logits scaled", _query_scaled, (64, 16, 4, 1.05), ("attention-logits", "attention-scale"), (1.05,), _IN_ATTENTION,
          is_aside=True),
    Fault("norm gain scaled", _gain, (30, 5, 0.1, 0, 1.5, 0.5), _GAINS, (1.5, 0.5)),
    Fault("norm epsilon", _epsilon, (100, 1, 0.1), _NORMS, (0.1,), is_aside=True),
    Fault("norm removed", _no_norm, (1,), _NORMS),
    Fault("attention bias large", _bias("attention_out"), (5, 1, 0.02), _BIASES, (0.02,), _IN_ATTENTION),
    Fault("mlp bias large", _bias("mlp_out"), (5, 1, 0.02), _BIASES, (0.02,), _IN_MLP),
    Fault("dead units", _bias("mlp_in", -1.0), (20, 5, 2), ("dead-units", "bias-scale", "hidden-scale"), (), _IN_MLP,
          is_aside=True),
    Fault("dropout", _dropout, (0.9, 0.5, 0.2), ("dropout-odd",), (), _IN_MLP),
    Fault("frozen block", _frozen, (1,), ("frozen-block", "no-gradient")),
    Fault("attention write scaled", _wrapped("attention", lambda s: lambda o, _: s * o), (0.5, 0.9, 0.97, 0.99),
          ("write-scale", "write-size"), (0.97, 0.99), _IN_ATTENTION, is_exact=True),
    Fault("mlp write scaled", _hooked("mlp", lambda s: lambda o, _: s * o), (0.5, 0.9, 0.97, 0.99),
          ("write-scale", "write-size"), (0.97, 0.99), _IN_MLP, is_exact=True),
    Fault("stream added again", _wrapped("block", lambda s: lambda o, x: o + s * x), (1, -0.5, -0.1, -0.03),
          ("odd-block", "skip-scale"), (-0.03,), is_exact=True),
    Fault("attention detached", _wrapped("attention", lambda _: lambda o, __: o.detach()), (1,), _DETACHED, (),
          (*_IN_ATTENTION, "parameters"), is_exact=True),
    Fault("mlp detached", _overridden("mlp", lambda _: lambda o, __: o.detach()), (1,), _DETACHED, (),
          (*_IN_MLP, "parameters"), is_exact=True),
    Fault("attention gradient scaled", _hooked("attention", _turned), (-1, 0.1, 10, 0.8, 0.95), ("gradient-scaled",),
          (0.95, 0.8), _IN_ATTENTION, is_exact=True),
    Fault("mlp gradient scaled", _wrapped("mlp", _bent), (-1, 0.1, 10, 0.8, 0.95), ("gradient-scaled",), (0.95, 0.8), _IN_MLP,
          is_exact=True, is_aside=True),
    Fault("attention leaks", _wrapped("attention", _leaking), (1, 0.1, 0.01),
          ("mask-leak",), (0.01,), _IN_ATTENTION, is_exact=True),
    Fault("mask missing", _no_mask, (1,), ("mask-leak",), (), _IN_ATTENTION, is_exact=True, is_aside=True),
    Fault("tokens pulled together", _overridden("block", lambda s: lambda o, _: o + s * (o.mean(1, keepdim=True) - o)),
          (0.99, 0.9), ("mask-leak", "rank-collapse", "odd-block"), is_exact=True, is_aside=True),
    Fault("loss scaled", _loss, (1e3, 1e-3, -1), ("loss-scale",), is_exact=True, is_local=False),
    Fault("learning rate of a block", _rate, (100, 30, 0.01), ("update-ratio",), is_recipe=True),
    Fault("weight decay on gains", _decay, (30,), ("gain-scale",), is_recipe=True, is_aside=True),
    Fault("block not in the optimizer", _forgotten, (1,), ("update-ratio", "not-updated"), is_recipe=True, is_aside=True),
    Fault("head scaled", _head, (30,), ("initial-loss",), is_local=False, is_aside=True),
    Fault("nan in attention", _hooked("attention", _ill(lambda o: o + (o.abs() * 0).log())), (1,), ("nonfinite",), (),
          _IN_ATTENTION, is_exact=True),
    Fault("nan in mlp", _wrapped("mlp", _ill(lambda o: o / (o * 0))), (1,), ("nonfinite",), (), _IN_MLP, is_exact=True),
    Fault("nan on the way back", _overridden("mlp", _ill(lambda o: o + (o * 0).abs().sqrt())), (1,), ("nonfinite",), (),
          _IN_MLP, is_exact=True, is_aside=True),
)  # fmt: skip
