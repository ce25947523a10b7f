"""Find, by shape, which modules hold experts, and which expert a weight belongs to."""

from __future__ import annotations

from torch import Tensor, nn

Expert = tuple[int, int]  # of how many experts, and which


class ExpertWeights:
    """The experts inside a branch: several modules of the same shapes side by side, or weights stacked on axis 0.

    Attributes:
        sizes: module path of a branch -> the numbers of experts that its parameters could stand for.
    """

    def __init__(self, branches: dict[str, nn.Module]) -> None:
        """Look through the modules that hold a branch each, by their path."""
        self.sizes: dict[str, frozenset[int]] = {}
        self._single: dict[int, Expert] = {}
        self._stacked: dict[int, int] = {}
        for path, branch in branches.items():
            stacked = [parameter for parameter in branch.parameters() if parameter.dim() == 3 and len(parameter) > 1]
            groups = [group for group in map(_alike, branch.modules()) if len(group) > 1]
            found = frozenset([*(len(parameter) for parameter in stacked), *map(len, groups)])
            if found:
                self.sizes[path] = found
            self._stacked.update({id(parameter): len(parameter) for parameter in stacked})
            for group in groups:
                for index, child in enumerate(group):
                    self._single.update({id(parameter): (len(group), index) for parameter in child.parameters()})

    def expert_of(self, weight: Tensor) -> tuple[Expert, int] | None:
        """Return the expert whose weight this is and the identity of the parameter, None for any other weight."""
        single = self._single.get(id(weight))
        if single is not None:
            # A module's own parameters tell its weights apart by shape; which of them it is does not matter.
            return single, hash((weight.shape, weight.requires_grad))
        base = weight._base
        if base is None or id(base) not in self._stacked or weight.dim() != 2:
            return None
        index = (weight.storage_offset() - base.storage_offset()) // base.stride(0)
        return (self._stacked[id(base)], int(index)), id(base)


def _alike(module: nn.Module) -> list[nn.Module]:
    """Return the children of ``module`` if all of them have parameters of the same shapes."""
    children = list(module.children())
    shapes = {tuple(tuple(parameter.shape) for parameter in child.parameters()) for child in children}
    return children if len(shapes) == 1 and () not in shapes else []
