"""Tell tensors whose numbers can be read from those that only stand for some."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import Buffer, Parameter

_PLAIN = (Tensor, Parameter, Buffer)


def is_plain(*tensors: object) -> bool:
    """Return whether all are ordinary dense tensors: none nested, sparse, distributed, on meta or inside vmap."""
    return all(
        isinstance(tensor, Tensor)
        and type(tensor) in _PLAIN
        and tensor.layout == torch.strided
        and not tensor.is_meta
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        for tensor in tensors
    )
