"""Tell whether a model is compiled, find the model inside, and run it uncompiled where it must be seen."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Literal

import torch
from torch import nn

Compilation = Literal["none", "parts", "whole"]
IN_GRAPH = (
    "The model is compiled: its statistics come from an operator inside the graph of sampled steps, which is compiled beside "
    "that of the other steps. Attention, tokens, experts and what adds round away are not measured there."
)
EAGER = (
    "The compiled model cannot be seen from inside one graph: its parts are compiled one by one, one of its modules serves "
    "several places, or it had run before the probe was attached. Sampled steps run uncompiled, with kernels of their own, and "
    "so differ from compiled steps by rounding. Compile the whole model and attach before its first forward to measure inside "
    "the graph."
)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside the wrapper that ``torch.compile`` puts around it, or the model itself."""
    wrapper: Any = _wrapper()
    return model._orig_mod if wrapper is not None and isinstance(model, wrapper) else model


def is_compiled(model: nn.Module) -> bool:
    """Return whether the model or a part of it is compiled: by ``torch.compile(part)`` or by ``part.compile()``."""
    wrapper: Any = _wrapper()
    return any(
        module._compiled_call_impl is not None or (wrapper is not None and isinstance(module, wrapper))
        for module in model.modules()
    )


def compilation(model: nn.Module) -> Compilation:
    """Return how much of the model is compiled: of parts that share their code each would be compiled on its own."""
    if model._compiled_call_impl is not None or unwrapped(model) is not model:
        return "whole"
    return "parts" if is_compiled(model) else "none"


def uncompiled(*, is_on: bool = True) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which compiled code runs eagerly; nothing is compiled anew for it."""
    return torch.compiler.set_stance("force_eager") if is_on else contextlib.nullcontext()


def _wrapper() -> type[nn.Module] | None:
    """Return the class of ``torch.compile``'s wrapper; None where nothing was compiled in this process."""
    frames = sys.modules.get("torch._dynamo.eval_frame")
    return None if frames is None else frames.OptimizedModule
