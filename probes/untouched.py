"""Leave a model as it was found: training flags, buffers, random state, gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def untouched(model: nn.Module, *, training: bool | None = None) -> Iterator[None]:
    """Run a block that may change buffers, flags, random state or ``.grad``, and put all of them back.

    Args:
        model: the model; its parameters are not copied: the block must not write to them.
        training: the mode in which the block runs; None leaves every module's flag.
    """
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not buffer.is_meta]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng(devices=[device.index or 0 for device in devices], device_type="cuda"):
        try:
            if training is not None:
                model.train(training)
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for module, flag in flags:
                module.training = flag
            with torch.no_grad():
                for buffer, value in buffers:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
            for parameter, gradient in gradients:
                parameter.grad = gradient
