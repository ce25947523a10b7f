"""Leave a model as it was found: training flags, buffers, random state, gradients."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .compiled import is_compiled, uncompiled


@contextlib.contextmanager
def untouched(model: nn.Module, *, training: bool | None = None) -> Iterator[None]:
    """Run a block that may change buffers, flags, random state or ``.grad``, and put all of them back.

    What is compiled of the model runs uncompiled in it.

    Args:
        model: the model; its parameters are not copied: the block must not write to them.
        training: the mode in which the block runs; None leaves every module's flag.
    """
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(module, dict(module._buffers)) for module in model.modules() if module._buffers]
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not buffer.is_meta]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with _random_state(model), uncompiled(is_on=is_compiled(model)):
        try:
            if training is not None:
                model.train(training)
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for module, flag in flags:
                module.training = flag
            for module, held in buffers:
                # A forward may have put another tensor in the buffer's place.
                module._buffers.update(held)
            with torch.no_grad():
                for buffer, value in values:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
            for parameter, gradient in gradients:
                parameter.grad = gradient


@contextlib.contextmanager
def _random_state(model: nn.Module) -> Iterator[None]:
    """Put back the random state of torch on the CPU and the model's devices, of Python, and of numpy where it runs."""
    devices = {parameter.device.index or 0 for parameter in model.parameters() if parameter.device.type == "cuda"}
    python = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    legacy = None if numpy is None else numpy.random.get_state()
    with torch.random.fork_rng(devices=sorted(devices), device_type="cuda"):
        try:
            yield
        finally:
            random.setstate(python)
            if numpy is not None:
                numpy.random.set_state(legacy)
