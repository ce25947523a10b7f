"""Give models fresh weights: by the user's own factory, or by drawing every parameter anew."""

from __future__ import annotations

from collections.abc import Callable

import torch
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.errors import LabError
from rheoscope.probes.wrappers import bare, parameters_of
from torch import nn

from .changes import copied

Make = Callable[[], nn.Module]

FROM_FACTORY = "Fresh weights come from make()."
REDRAWN = (
    "Fresh weights were drawn, for want of make=: every matrix from a normal distribution of its own mean and spread, "
    "gains set to 1 and biases to 0, all else kept. Where the model given is trained, that is not the init it began with."
)


class Fresh:
    """Makes models like one that is given, each seed with weights of its own.

    Attributes:
        told: where the weights come from, in a sentence.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, make: Make | None = None) -> None:
        """Prepare; ``make()`` returns a new model with the weights that it is to begin with."""
        self._model, self._anatomy, self._make = model, anatomy, make
        self.told = REDRAWN if make is None else FROM_FACTORY

    def of(self, seed: int) -> nn.Module:
        """Return a model that shares nothing with the one given. Draws from torch's global random state, seeded.

        Raises:
            LabError: the factory's model has other parameters than the one given.
        """
        torch.manual_seed(seed)
        if self._make is None:
            return redrawn(self._model, self._anatomy)
        made = bare(self._make())
        if _shapes(made) != _shapes(self._model):
            different = {name for name, _ in _shapes(made) ^ _shapes(self._model)}
            raise LabError(
                f"Expected make() to return a model like the one given, got one with other {sorted(different)[:3]}. "
                "Return a new one of the same configuration."
            )
        return made


def redrawn(model: nn.Module, anatomy: Anatomy) -> nn.Module:
    """Return a copy of ``model`` with parameters drawn anew; tied ones once.

    Matrices and tables come from N(mean, spread squared) of their own values; one that is constant is kept. A gain becomes 1, or
    0 where it is stored less 1; biases become 0; what else is a vector or a number is kept.
    """
    fresh = copied(model)
    biases = {p.bias for branch in anatomy.branches for p in branch.projections} | set(anatomy.norm_biases)
    biases |= {branch.output_bias for branch in anatomy.branches}
    with torch.no_grad():
        for name, parameter in parameters_of(fresh):
            if name in biases:
                parameter.zero_()
            elif name in anatomy.gains:
                parameter.fill_(float(parameter.mean().round()))
            elif parameter.dim() >= 2 and parameter.is_floating_point():
                mean, spread = float(parameter.double().mean()), float(parameter.double().std())
                if spread:
                    parameter.normal_(mean, spread)
    return fresh


def _shapes(model: nn.Module) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, tuple(parameter.shape)) for name, parameter in parameters_of(model)}
