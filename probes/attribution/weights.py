"""Run a model with other weights in place of its own, as a model that takes the same batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


class WithWeights(nn.Module):
    """A model whose forward is another's with other weights; the other is no part of it, so that none of its names change."""

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Hold both; ``weights`` are by the names of ``model.named_parameters()``."""
        super().__init__()
        self._run: Callable[[Any, Any], Any] = lambda args, kwargs: functional_call(model, dict(weights), args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model gives."""
        return self._run(args, kwargs)
