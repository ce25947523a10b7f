"""Put modules in the place of others, and new ones into a model."""

from __future__ import annotations

from rheoscope.probes.errors import LabError
from torch import nn

ADDED = "added_norms"  # the child of the model that holds what it did not have


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` stands in ``model``.

    Raises:
        LabError: it stands nowhere in it.
    """
    places = [(m, name) for m in model.modules() for name, child in m.named_children() if child is old and m is not new]
    for parent, name in places:
        parent._modules[name] = new
    if not places:
        raise LabError(
            f"Expected a {type(old).__name__} inside the model, got the model itself. Pass the model that holds it."
        )


def added(model: nn.Module, module: nn.Module, name: str) -> nn.Module:
    """Hold ``module`` in the model, so that its parameters train, and return it."""
    if not hasattr(model, ADDED):
        model.add_module(ADDED, nn.ModuleDict())
    model.get_submodule(ADDED).add_module(name, module)
    return module
