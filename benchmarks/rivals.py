"""What a probe is compared with: hooks at the same points that only read, and hooks as most people write them."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rheoscope.probes.anatomy import Anatomy, Point
from rheoscope.probes.hooked import Hooked
from rheoscope.probes.sites import layout
from torch import Tensor, nn
from torch.optim import Optimizer

Timed = Callable[[Callable[..., Any]], Callable[..., Any]]


@cache
def read_once() -> Callable[[int, int], float]:
    """Compile and return a C function that sums n float32 at an address."""
    target = Path(tempfile.mkdtemp()) / "read_once.so"
    source = Path(__file__).with_suffix("").parent / "read_once.c"
    command = ["cc", "-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", "-o", str(target), str(source)]
    subprocess.run(command, check=True)
    total: Any = ctypes.CDLL(str(target)).total
    total.argtypes, total.restype = (ctypes.c_void_p, ctypes.c_long), ctypes.c_double
    return total  # type: ignore[no-any-return]


def put_on_readers(model: nn.Module, optimizer: Optimizer, anatomy: Anatomy, timed: Timed) -> None:
    """Read every tensor that a probe measures once, and every gradient, weight and a copy of it after each step."""
    total, found = read_once(), [0.0]

    def read(tensor: Tensor) -> None:
        found[0] = total(tensor.data_ptr(), tensor.numel())

    reads = timed(read)

    def see(tensor: Tensor) -> None:
        read(tensor)
        if tensor.requires_grad:
            tensor.register_hook(lambda gradient: reads(gradient))  # type: ignore[no-untyped-call]

    def view(point: Point) -> Callable[[Tensor], None]:  # noqa: ARG001 - the same at every point
        return timed(see)

    hooked = Hooked(model, layout(anatomy).points, view)
    # Calls are counted within a forward: without a new count nothing is seen after the first.
    model.register_forward_pre_hook(timed(lambda *_: hooked.restart()))
    pairs = [(p, p.detach().clone()) for p in model.parameters()]

    def after(*_: object) -> None:
        for parameter, kept in pairs:
            for tensor in (parameter.grad, parameter, kept):
                if tensor is not None:
                    read(tensor)

    optimizer.register_step_post_hook(timed(after))


def put_on_naive_hooks(model: nn.Module, optimizer: Optimizer, anatomy: Anatomy, timed: Timed) -> None:
    """Record the same statistics with torch's obvious operations, `.item()` and full backward hooks."""
    rows: list[dict[str, float]] = []

    def statistics(tensor: Tensor) -> dict[str, float]:
        x = tensor.detach()
        mean, std = x.mean(), x.std(correction=0)
        return {
            "mean": mean.item(),
            "std": std.item(),
            "rms": x.square().mean().sqrt().item(),
            "absmax": x.abs().max().item(),
            "kurtosis": (((x - mean) / std) ** 4).mean().item(),
            "zero_share": (x == 0).float().mean().item(),
            "nonfinite": (~torch.isfinite(x)).sum().item(),
            "channel_absmean": x.reshape(-1, x.shape[-1]).mean(0).abs().max().item(),
        }

    def first(values: object) -> Tensor | None:
        values = values if isinstance(values, tuple) else (values,)
        return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)

    def record(values: object) -> None:
        tensor = first(values)
        if tensor is not None:
            rows.append(statistics(tensor))

    sides: dict[str, set[str]] = {}
    for point in layout(anatomy).points:
        sides.setdefault(point.module_path, set()).add(point.side)
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, seen in sides.items():
        module, has_input, has_output = modules[path], "input" in seen, "output" in seen

        def forward(_: nn.Module, args: Any, output: Any, i: bool = has_input, o: bool = has_output) -> None:
            for is_wanted, values in ((i, args), (o, output)):
                if is_wanted:
                    record(values)

        def backward(_: nn.Module, into: Any, out: Any, i: bool = has_input, o: bool = has_output) -> None:
            for is_wanted, values in ((i, into), (o, out)):
                if is_wanted:
                    record(values)

        module.register_forward_hook(timed(forward))
        module.register_full_backward_hook(timed(backward))
    before: dict[nn.Parameter, Tensor] = {}

    def keep(*_: object) -> None:
        before.update((p, p.detach().clone()) for p in model.parameters())

    def after(*_: object) -> None:
        for parameter, kept in before.items():
            if parameter.grad is None:
                continue
            second = optimizer.state[parameter]["exp_avg_sq"].sqrt()
            parts = (
                parameter.grad,
                parameter.detach(),
                parameter.detach() - kept,
                parameter.grad / (second + 1e-8),
                second,
            )
            rows.append({str(i): part.square().mean().sqrt().item() for i, part in enumerate(parts)})
            rows.append({"absmax": parameter.grad.abs().max().item(), "below": (second < 1e-8).float().mean().item()})
        rows.clear()

    optimizer.register_step_pre_hook(timed(keep))
    optimizer.register_step_post_hook(timed(after))
