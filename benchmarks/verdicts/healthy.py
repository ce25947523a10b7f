"""Healthy models that look ill: designs that break a rule of thumb on purpose, and trained networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import rheoscope
import torch
from torch import Tensor, nn

from .planting import RATE, Wrapped, replace
from .sizes import WIDTH
from .subjects import Subject

Change = Callable[[Subject], bool]


class _LayerScale(nn.Module):
    def __init__(self, inner: nn.Module, value: float) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.full((WIDTH,), value))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.inner(*args, **kwargs)
        return (output[0] * self.scale, *output[1:]) if isinstance(output, tuple) else output * self.scale


def _each(subject: Subject, role: str, make: Callable[[nn.Module], nn.Module]) -> bool:
    for parts in subject.parts:
        path = getattr(parts, role)
        if not path:
            return False
        replace(subject.model, path, make(subject.model.get_submodule(path)))
    return True


def _both(subject: Subject, make: Callable[[nn.Module], nn.Module]) -> bool:
    has_attention, has_mlp = (_each(subject, role, make) for role in ("attention", "mlp"))
    return has_attention and has_mlp


def layer_scale(subject: Subject) -> bool:
    """Scale every branch by a learned vector that starts at 1e-2."""
    return _both(subject, lambda m: _LayerScale(m, 1e-2))


def rezero(subject: Subject) -> bool:
    """Start every branch at zero by a learned scale."""
    return _both(subject, lambda m: _LayerScale(m, 0.0))


def zero_init(subject: Subject) -> bool:
    """Start the last projection of every branch at zero."""
    with torch.no_grad():
        for parts in subject.parts:
            for path in (parts.attention_out, parts.mlp_out):
                subject.model.get_submodule(path).weight.zero_()  # type: ignore[union-attr, operator]
    return True


def depth_scaled(subject: Subject) -> bool:
    """Scale the last projections down with depth."""
    with torch.no_grad():
        for index, parts in enumerate(subject.parts):
            for path in (parts.attention_out, parts.mlp_out):
                subject.model.get_submodule(path).weight.mul_((2 * (index + 1)) ** -0.5)  # type: ignore[union-attr, operator]
    return True


def branch_alpha(subject: Subject) -> bool:
    """Scale every branch by one constant."""
    return _both(subject, lambda m: Wrapped(m, lambda o, _: 0.3 * o))


def soft_logits(subject: Subject) -> bool:
    """Scale the queries of every block alike, as muP's 1/d does, or T5 without any scale."""
    if subject.fused_qkv:
        return False
    for parts in subject.parts:
        subject.model.get_submodule(parts.query).register_forward_hook(lambda _, __, output: output * 2.5)
    return True


def large_embedding(subject: Subject) -> bool:
    """Multiply the embedding by the square root of the width, as Gemma does on the way."""
    subject.model.get_submodule(subject.embedding).register_forward_hook(lambda _, __, output: output * 8.0)
    return True


def adapters(subject: Subject) -> bool:
    """Freeze everything but low-rank adapters of the queries."""
    if subject.fused_qkv:
        return False
    for parameter in subject.model.parameters():
        parameter.requires_grad_(False)
    return _each(subject, "query", _Adapter)


class _Adapter(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner: Any = inner
        self.a = nn.Parameter(0.02 * torch.randn(4, inner.weight.shape[1]))  # type: ignore[union-attr, index, operator]
        self.b = nn.Parameter(torch.zeros(inner.weight.shape[0], 4))  # type: ignore[union-attr, index, operator]

    @property
    def weight(self) -> Tensor:
        found: Tensor = self.inner.weight
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x @ self.a.T @ self.b.T  # type: ignore[no-any-return]


def frozen_first(subject: Subject) -> bool:
    """Freeze the embedding and the first half, as in fine-tuning."""
    for parts in subject.parts[: len(subject.parts) // 2]:
        for parameter in subject.model.get_submodule(parts.block).parameters():
            parameter.requires_grad_(False)
    return True


def trained(steps: int, rate: float = RATE) -> Change:
    """Return what trains a subject for some steps on a repeating pattern."""

    def change(subject: Subject) -> bool:
        train(subject, steps, rate)
        return True

    change.__name__ = f"trained_{steps}"
    return change


def train(subject: Subject, steps: int, rate: float = RATE) -> None:
    """Train on sequences that repeat themselves: something a small model learns in tens of steps."""
    for _ in steps_of(subject, steps, rate):
        pass
    subject.batch = _repeating(subject, 2)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]] = {
    "adamw": lambda groups, rate: torch.optim.AdamW(groups, lr=rate),
    "adamw warmed up and clipped": lambda groups, rate: torch.optim.AdamW(groups, lr=2 * rate, betas=(0.9, 0.95)),
    "adam": lambda groups, rate: torch.optim.Adam(groups, lr=rate),
    "sgd": lambda groups, rate: torch.optim.SGD(groups, lr=50 * rate, momentum=0.9),
}
WARM_UP, CLIP = 50, 1.0  # steps of a rate that rises; norm of the gradient


def steps_of(
    subject: Subject, steps: int, rate: float = RATE, every: int = 0, folder: str = "", optimizer_name: str = "adamw"
) -> Iterator[Any]:
    """Train step by step and yield the probe, None without ``folder``, after each."""
    groups = subject.groups or [{"params": [p for p in subject.model.parameters() if p.requires_grad]}]
    optimizer = OPTIMIZERS[optimizer_name](groups, rate)
    is_warmed = "warmed" in optimizer_name
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP) if is_warmed else 1.0
    )
    probe = rheoscope.attach(subject.model, optimizer, every=every, folder=folder) if folder else None
    subject.model.train()
    for _ in range(steps):
        batch = _repeating(subject, 8)
        loss = subject.loss(subject.model(**batch), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        if is_warmed:
            nn.utils.clip_grad_norm_(subject.model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if probe is not None:
            probe.step(loss)
        yield probe


def _repeating(subject: Subject, n: int) -> dict[str, Tensor]:
    name, ids = next(iter(subject.batch.items()))
    half = torch.randint(4, 128, (n, ids.shape[1] // 2))
    return {name: torch.cat([half, half], 1)}


def as_it_is(_: Subject) -> bool:
    """Change nothing."""
    return True


TRAINED = (trained(60), trained(200))
LOOK_ALIKES: tuple[Change, ...] = (
    as_it_is, layer_scale, rezero, zero_init, depth_scaled, branch_alpha, soft_logits, large_embedding, adapters, frozen_first,
    *TRAINED,
)  # fmt: skip
