"""Measure the bias that each branch's last projection adds, as it is in the forward: the optimizer moves it afterwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Branch
from .kernels import by_c, by_torch
from .wrappers import here, modules_of, parameters_of


def biased(anatomy: Anatomy, names: set[str]) -> list[Branch]:
    """Return the branches whose output bias is among the model's parameters ``names``, in order."""
    return [branch for branch in anatomy.branches if branch.output_bias in names]


class BiasTaps:
    """Reads the biases of one model at the beginning of a forward."""

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        """Look the biases up."""
        names = {name for name, p in parameters_of(model) if p.is_floating_point()}
        paths = [str(branch.output_bias).rpartition(".") for branch in biased(anatomy, names)]
        modules = modules_of(model)
        # By name: a parameter may be replaced.
        self._biases = [(modules[path]._parameters, name) for path, _, name in paths]

    def room(self, device: torch.device) -> Tensor:
        """Return room for one reading: a sum of squares each, NaN for now."""
        with torch.inference_mode(False):
            return torch.full((len(self._biases),), torch.nan, dtype=by_torch.wide_dtype(device), device=device)

    def read(self, to: Tensor) -> None:
        """Write the sums of squares."""
        for index, (parameters, name) in enumerate(self._biases):
            whole = parameters.get(name)
            bias = None if whole is None else here(whole)
            if bias is None:
                to[index] = torch.nan
            elif to.is_cpu and by_c.is_float32(bias):
                by_c.kernel.squares(bias.data_ptr(), bias.numel(), to.data_ptr() + 8 * index, 0)
            else:
                wide = bias.detach().to(by_torch.wide_dtype(bias.device))
                to[index] = wide.square().sum().to(to.device)
