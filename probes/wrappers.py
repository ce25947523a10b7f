"""Find the model inside what is wrapped around it, and give its parts the names that they have without the wrapper."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .compiled import unwrapped

# What torch's wrappers call the module that they hold: of compile, activation checkpointing, and fully sharded parallelism.
_HOLDERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
_PLAIN = (torch.Tensor, nn.Parameter)


def shell(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, or the model itself: whose forward is the model's own."""
    while isinstance(model, DistributedDataParallel):
        model = model.module
    return model


def bare(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel and the wrapper of ``torch.compile``, or the model itself."""
    while True:
        inside = unwrapped(shell(model))
        if inside is model:
            return model
        model = inside


def own_name(name: str) -> str:
    """Return a module's or a parameter's dotted name without the wrappers that it passes.

    Example:
        >>> own_name("blocks.0._checkpoint_wrapped_module.mlp.weight")
        'blocks.0.mlp.weight'
    """
    if not any(holder in name for holder in _HOLDERS):
        return name
    return ".".join(part for part in name.split(".") if part not in _HOLDERS)


def modules_of(model: nn.Module, *, remove_duplicate: bool = False) -> dict[str, nn.Module]:
    """Return the modules by their own names; of a wrapper and what it holds, which share one, the latter."""
    return {own_name(path): module for path, module in model.named_modules(remove_duplicate=remove_duplicate)}


def module_of(model: nn.Module, path: str) -> nn.Module:
    """Return one of ``modules_of(model)``, without naming all of them.

    Raises:
        KeyError: the model has no module of this name.
    """
    module = _held(model)
    for name in path.split(".") if path else ():
        module = _held(module._modules[name])
    return module


def _held(module: nn.Module | None) -> nn.Module:
    """Return the module inside torch's wrappers."""
    if module is None:
        raise KeyError("no module")
    inside = next((getattr(module, holder) for holder in _HOLDERS if holder in module._modules), None)
    return module if inside is None else _held(inside)


def parameters_of(model: nn.Module, *, remove_duplicate: bool = True) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters with their own names."""
    return [(own_name(name), p) for name, p in model.named_parameters(remove_duplicate=remove_duplicate)]


def here(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: the local part of a DTensor, the result a collective will give, itself."""
    if type(tensor) in _PLAIN:
        return tensor
    # Asked by attribute: where torch.distributed is not used, its tensors' classes are not imported.
    inner: Any = getattr(tensor, "_local_tensor", tensor)
    wait = getattr(inner, "trigger_wait", None)
    inner = inner if wait is None else wait()
    return inner if isinstance(inner, Tensor) else tensor


def is_summand(tensor: Tensor) -> bool:
    """Return whether the process holds a summand of the tensor, whose sum over processes was not taken yet."""
    return n_summands(tensor) > 1


def n_summands(tensor: Tensor) -> int:
    """Return how many summands of the tensor there are, each in a process of its own."""
    if type(tensor) in _PLAIN:
        return 1
    held: Any = tensor
    placements = getattr(tensor, "placements", ())
    return math.prod(held.device_mesh.size(dim) for dim, each in enumerate(placements) if each.is_partial())
