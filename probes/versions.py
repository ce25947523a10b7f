"""Tell whether something was written into a tensor since it was seen."""

from __future__ import annotations

from torch import Tensor


def version_of(tensor: Tensor) -> int:
    """Return how often something was written into the tensor; 0 for one of inference mode, which does not count."""
    return 0 if tensor.is_inference() else tensor._version
