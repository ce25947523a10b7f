"""Run a model as attribution needs it: unseen by probes, in evaluation, in float32, eagerly, all of it differentiable twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rheoscope.probes.batches import Arguments, Batch, arguments, describe
from rheoscope.probes.errors import BatchError, ProbeError
from rheoscope.probes.losses import LossFunction, default_loss
from rheoscope.probes.plain import is_plain
from rheoscope.probes.untouched import untouched
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

LossOf = Callable[[Any], Tensor]
NARROW = (torch.float16, torch.bfloat16)


@contextlib.contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Run a block in which the model stands still, and leave it bit-identical.

    Its modules are in evaluation, where no probe looks; what is compiled of it runs eagerly; autocast is off; half-precision
    weights are replaced by float32 copies; every floating parameter can be asked for a gradient, frozen or not, by a stand-in
    that shares its memory, so that neither ``.grad`` nor hooks of the real one are touched; attention runs in torch's own
    mathematics, which unlike the fused kernels can be differentiated twice and forward.

    Raises:
        ProbeError: the weights are not ordinary tensors of this process.
    """
    strange = [name for name, parameter in model.named_parameters() if not is_plain(parameter)]
    if strange:
        raise ProbeError(
            f"Expected a model whose weights are ordinary tensors of this process, got {len(strange)} that are not "
            f"({strange[0]!r:.100} is one). Load the checkpoint into the plain model, and attribute that."
        )
    with untouched(model, training=False), _stand_ins(model), _full_precision(model), sdpa_kernel(SDPBackend.MATH):
        yield


def widened(batch: Batch) -> Arguments:
    """Return the batch as arguments, with half-precision tensors in float32."""
    positional, keywords = arguments(batch)
    return Arguments(*tree_map(wide, (positional, keywords)))


def loss_of(batch: Batch, loss_fn: LossFunction | None) -> LossOf:
    """Return what turns the model's output into a scalar: a loss per example, or per token, is averaged.

    Raises:
        BatchError: no loss can be made of the output.
    """

    def found(output: Any) -> Tensor:
        loss: object = default_loss(output, batch) if loss_fn is None else loss_fn(output, batch)
        if not isinstance(loss, Tensor) or not loss.is_floating_point() or not loss.numel():
            got = describe(loss)
            raise BatchError(
                f"Expected loss_fn(output, batch) to return a floating-point Tensor, got {got}. Its first argument is what the "
                "model returned."
            )
        return loss.float().mean() if loss.dtype in NARROW else loss.mean()

    return found


def wide(value: Any) -> Any:
    """Return a half-precision tensor in float32, and anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype in NARROW else value


@contextlib.contextmanager
def _stand_ins(model: nn.Module) -> Iterator[None]:
    """Put a parameter that requires gradients, in float32, in the place of every floating one; a shared one stays shared."""
    held = [(module._parameters, dict(module._parameters)) for module in model.modules() if module._parameters]
    buffers = [(module._buffers, dict(module._buffers)) for module in model.modules() if module._buffers]
    made: dict[int, nn.Parameter | Tensor] = {}
    try:
        for slots, values in held:
            for name, parameter in values.items():
                if parameter is not None and parameter.is_floating_point():
                    made.setdefault(id(parameter), nn.Parameter(wide(parameter.detach())))
                    slots[name] = made[id(parameter)]  # type: ignore[assignment]
        for spaces, contents in buffers:
            for name, buffer in contents.items():
                if buffer is not None and buffer.dtype in NARROW:
                    spaces[name] = buffer.float()
        yield
    finally:
        for slots, values in held:
            slots.update(values)
        for spaces, contents in buffers:
            spaces.update(contents)


@contextlib.contextmanager
def _full_precision(model: nn.Module) -> Iterator[None]:
    kinds = {"cpu", *(parameter.device.type for parameter in model.parameters())}
    with contextlib.ExitStack() as stack:
        for kind in sorted(kinds):
            if torch.amp.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
